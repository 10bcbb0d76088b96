//! The boot loader on the ESP, which boots both slots: a version that stays brings a newer one along, and none brings an older one.
//!
//! There is one loader, at the path that firmware looks for without any variable. A rename over a name that is there changes that
//! name's entry in place, which is one sector (`vfat_rename`), so a power cut leaves the old loader or the new one. It may also leave
//! the new one two names; so no name beside it is ever removed, and each content has a name of its own. The clusters of the old one
//! are freed when nobody has it open any more: it is kept open until the new one is on the disk.

use boot_choice::compare_versions;
use sha2::{Digest, Sha256};
use std::cmp::Ordering;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::esp::{Esp, flush};
use super::signature::is_signed_in;
use super::slots::Slots;
use crate::files::read_bounded;
use crate::node::secure_boot;

/// As the image brings it.
const IMAGE: &str = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi";
const FOLDER: &str = "EFI/BOOT";
const NAME: &str = "BOOTX64.EFI";
/// Bytes of a loader; it has an eighth of that.
const LARGEST: u64 = 1 << 20;
/// How systemd-boot says its version, for `bootctl` (systemd: src/boot/boot.c).
const BEFORE_VERSION: &[u8] = b"#### LoaderInfo: systemd-boot ";
const AFTER_VERSION: &[u8] = b" ####";
/// Bytes of a version.
const LONGEST_VERSION: usize = 64;

/// Puts this version's loader on the ESP if the one there is older, and says so. To be called when this version is not on trial.
pub(super) fn renew() {
    // A root that is on no slot has no ESP beside it.
    let Ok(slots) = Slots::find() else { return };
    let renewed = Esp::mount(&slots.esp.device).and_then(|esp| {
        let image = read_bounded(Path::new(IMAGE), LARGEST)
            .map_err(|error| format!("cannot read the boot loader of this version, {IMAGE}: {error}"))?;
        renew_in(&esp.path(FOLDER), &image, secure_boot() == Some(true))
    });
    match renewed {
        Ok(Some(version)) => eprintln!("<5>update: the boot loader is systemd-boot {version} from now on"),
        Ok(None) => {}
        Err(error) => eprintln!("<3>update: {error}"),
    }
}

/// Replaces the loader in a folder by a newer one; says which version it has then, if it was replaced. What is there and is not
/// systemd-boot, or is nothing, is somebody's own way to boot and stays.
fn renew_in(folder: &Path, new: &[u8], must_be_signed: bool) -> Result<Option<String>, String> {
    let failed = |what: &str, error: &io::Error| {
        format!(
            "cannot {what} the boot loader of the ESP ({FOLDER}/{NAME}): {error}; the one that is there stays, and the next start tries again"
        )
    };
    let path = folder.join(NAME);
    let old = match File::open(&path) {
        Ok(old) => old,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("open", &error)),
    };
    let known = read_bounded(&path, LARGEST).map_err(|error| failed("read", &error))?;
    let (Some(before), Some(version)) = (version(&known), version(new)) else { return Ok(None) };
    if compare_versions(before, version) != Ordering::Less {
        return Ok(None);
    }
    if must_be_signed && !is_signed_in(new) {
        return Err(format!(
            "the boot loader of this version, systemd-boot {version}, carries no signature, and Secure Boot is on: firmware would refuse it, so systemd-boot {before} stays; build the image with keys (cargo caisson keys)"
        ));
    }
    let beside = folder.join(beside(new));
    let written = File::create(&beside).and_then(|mut file| {
        file.write_all(new)?;
        file.sync_all()
    });
    if let Err(error) = written {
        // It is not what boots, so it shares nothing with that.
        let _ = fs::remove_file(&beside);
        return Err(failed("write", &error));
    }
    fs::rename(&beside, &path).and_then(|()| flush(folder)).map_err(|error| failed("replace", &error))?;
    drop(old);
    Ok(Some(version.to_owned()))
}

/// A name for what is not the loader yet.
fn beside(new: &[u8]) -> String {
    let hash = Sha256::digest(new);
    format!("loader-{:02x}{:02x}{:02x}{:02x}.new", hash[0], hash[1], hash[2], hash[3])
}

/// The version that a systemd-boot says it has.
fn version(loader: &[u8]) -> Option<&str> {
    let at = loader.windows(BEFORE_VERSION.len()).position(|bytes| bytes == BEFORE_VERSION)?;
    let rest = loader.get(at + BEFORE_VERSION.len()..)?;
    let rest = rest.get(..LONGEST_VERSION + AFTER_VERSION.len()).unwrap_or(rest);
    let end = rest.windows(AFTER_VERSION.len()).position(|bytes| bytes == AFTER_VERSION)?;
    let version = std::str::from_utf8(&rest[..end]).ok()?;
    (!version.is_empty() && version.bytes().all(|byte| byte.is_ascii_graphic())).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::super::signature::tests::signed;
    use super::*;

    fn loader(version: &str) -> Vec<u8> {
        [b"MZ".as_slice(), &[7; 100], format!("#### LoaderInfo: systemd-boot {version} ####").as_bytes()]
            .concat()
    }

    fn folder(loader: Option<&[u8]>) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        if let Some(loader) = loader {
            fs::write(folder.path().join(NAME), loader).unwrap();
        }
        folder
    }

    fn files(folder: &tempfile::TempDir) -> Vec<(String, Vec<u8>)> {
        let mut all: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
            .collect();
        all.sort();
        all
    }

    #[test]
    fn the_version_is_what_bootctl_takes_for_it() {
        assert_eq!(version(&loader("257.13-1~deb13u1")), Some("257.13-1~deb13u1"));
        for none in ["", "a b", "\u{e4}", &"1".repeat(65)] {
            assert_eq!(version(&loader(none)), None, "{none}");
        }
        assert_eq!(version(b"#### LoaderInfo: systemd-boot 257"), None);
        assert_eq!(version(b"#### LoaderInfo: rEFInd 1 ####"), None);
        assert_eq!(version(&[]), None);
    }

    #[test]
    fn only_a_newer_one_takes_the_place_of_the_one_that_is_there() {
        for (before, new, is_renewed) in [
            ("257.13-1~deb13u1", "258.1-1", true),
            ("257.9-1~deb13u1", "257.13-1~deb13u1", true),
            ("257.13-1~deb13u1", "257.13-1~deb13u1", false),
            ("258~rc1-1", "257.13-1", false),
        ] {
            let (old, new) = (loader(before), loader(new));
            let folder = folder(Some(&old));
            let renewed = renew_in(folder.path(), &new, false).unwrap();
            assert_eq!(renewed.is_some(), is_renewed, "{before}");
            let there = if is_renewed { new } else { old };
            assert_eq!(files(&folder), [(NAME.to_owned(), there)]);
        }
    }

    /// A power cut left two names for it; and one left a part of it.
    #[test]
    fn what_is_beside_it_stays_while_it_is_the_loader_and_is_written_anew_when_it_is_not() {
        let (old, new) = (loader("257"), loader("258"));
        let shared = folder(Some(&new));
        fs::hard_link(shared.path().join(NAME), shared.path().join(beside(&new))).unwrap();
        assert_eq!(renew_in(shared.path(), &new, false).unwrap(), None);
        assert_eq!(files(&shared), [(NAME.to_owned(), new.clone()), (beside(&new), new.clone())]);
        let torn = folder(Some(&old));
        fs::write(torn.path().join(beside(&new)), &new[..50]).unwrap();
        assert_eq!(renew_in(torn.path(), &new, false).unwrap().as_deref(), Some("258"));
        assert_eq!(files(&torn), [(NAME.to_owned(), new)]);
    }

    #[test]
    fn what_is_not_systemd_boot_stays() {
        let own = folder(Some(b"MZ something else"));
        assert_eq!(renew_in(own.path(), &loader("258"), false).unwrap(), None);
        let none = folder(None);
        assert_eq!(renew_in(none.path(), &loader("258"), false).unwrap(), None);
        assert_eq!(files(&none), []);
    }

    #[test]
    fn with_secure_boot_only_a_signed_one_is_taken() {
        let (old, unsigned) = (loader("257"), loader("258"));
        let folder = folder(Some(&old));
        let error = renew_in(folder.path(), &unsigned, true).unwrap_err();
        assert!(error.contains("258, carries no signature") && error.contains("257 stays"), "{error}");
        assert_eq!(files(&folder), [(NAME.to_owned(), old)]);
        let signed = [signed(), loader("258")].concat();
        assert_eq!(renew_in(folder.path(), &signed, true).unwrap().as_deref(), Some("258"));
    }
}
