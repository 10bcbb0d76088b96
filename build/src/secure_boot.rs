//! Secure Boot: keys of one's own, what is signed with them, and how a machine's firmware learns them (UEFI specification,
//! section 32; systemd-boot(7), "secure-boot-enroll").
//!
//! The platform key admits changes of the key exchange key, that one changes of the signature database, and the database's key
//! signs the loader and the unified kernel image. The kernel and its command line, which names the root by its hash, are in the
//! signed image: what is signed is all that runs.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::artifacts::uki_name;
use crate::cache::{Entry, Key, sha256_file};
use crate::command::run_quiet;
use crate::esp;
use crate::project::Project;
use crate::toolbox::Toolbox;

/// The signed loader, in the step's result.
pub const LOADER: &str = "BOOTX64.EFI";
/// systemd-boot gives the keys in it to a virtual machine's firmware that has none yet, and restarts.
pub const KEYS_FOLDER: &str = "::/loader/keys/auto";
/// Whose keys these are, in the firmware's lists.
const OWNER: &str = "ca155011-0000-4000-8000-0000000000ff";
const NAMES: [&str; 3] = ["PK", "KEK", "db"];
const DAYS: &str = "7300";

/// A folder with `PK`, `KEK` and `db`, each as `.key` (secret), `.crt` and `.auth`.
#[derive(Debug, Clone)]
pub struct Keys {
    folder: PathBuf,
}

impl Keys {
    /// Where a project's keys are: `CAISSON_KEYS`, else `keys/` of the sources.
    pub fn folder(project: &Project) -> PathBuf {
        std::env::var_os("CAISSON_KEYS").map_or_else(|| project.sources.join("keys"), PathBuf::from)
    }

    /// The project's keys; none when there are none, and images are not signed then.
    pub fn find(project: &Project) -> Result<Option<Self>> {
        let folder = std::path::absolute(Self::folder(project))?;
        if !folder.exists() && std::env::var_os("CAISSON_KEYS").is_none() {
            return Ok(None);
        }
        Self::open(&folder).map(Some)
    }

    pub fn open(folder: &Path) -> Result<Self> {
        for name in ["PK.auth", "KEK.auth", "db.auth", "db.key", "db.crt"] {
            let file = folder.join(name);
            ensure!(
                file.is_file(),
                "{} is missing: `cargo caisson keys` makes a set in a folder that is not there yet",
                file.display()
            );
        }
        Ok(Self { folder: folder.to_owned() })
    }

    /// Makes a set of keys that never was. A folder that is there already is left alone: who loses the platform key can never
    /// change the keys of machines that have it.
    pub fn generate(project: &Project, folder: &Path) -> Result<Self> {
        ensure!(
            !folder.exists(),
            "{} is there already: nothing was changed. To make other keys, move it away, and keep it: machines that have its platform key take no other",
            folder.display()
        );
        let folder = std::path::absolute(folder)?;
        let parent = folder.parent().context("a folder for keys has a parent")?;
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        let toolbox = Toolbox::for_tests(project)?.with_share(parent);
        let new = tempfile::Builder::new()
            .prefix(".keys-")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(parent)?;
        let path = |name: &str, kind: &str| new.path().join(format!("{name}.{kind}"));
        for name in NAMES {
            let what = format!("making the key {name}");
            run_quiet(
                toolbox
                    .command("openssl")
                    .args(["req", "-new", "-x509", "-newkey", "rsa:2048", "-sha256", "-nodes", "-days", DAYS])
                    .args(["-subj", &format!("/CN=Caisson {name}/"), "-keyout"])
                    .arg(path(name, "key"))
                    .arg("-out")
                    .arg(path(name, "crt")),
                &what,
            )?;
            run_quiet(
                toolbox
                    .command("cert-to-efi-sig-list")
                    .args(["-g", OWNER])
                    .arg(path(name, "crt"))
                    .arg(path(name, "esl")),
                &what,
            )?;
        }
        for (by, name) in [("PK", "PK"), ("PK", "KEK"), ("KEK", "db")] {
            run_quiet(
                toolbox
                    .command("sign-efi-sig-list")
                    .args(["-g", OWNER, "-k"])
                    .arg(path(by, "key"))
                    .arg("-c")
                    .arg(path(by, "crt"))
                    .arg(name)
                    .arg(path(name, "esl"))
                    .arg(path(name, "auth")),
                &format!("signing the list of {name} with {by}"),
            )?;
            fs::remove_file(path(name, "esl"))?;
            fs::set_permissions(path(name, "key"), fs::Permissions::from_mode(0o600))?;
        }
        fs::rename(new.keep(), &folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Self::open(&folder)
    }

    /// A signed copy of a program for EFI.
    pub fn sign(&self, toolbox: &Toolbox, from: &Path, to: &Path) -> Result<()> {
        run_quiet(
            toolbox
                .clone()
                .with_share(&self.folder)
                .command("sbsign")
                .arg("--key")
                .arg(self.folder.join("db.key"))
                .arg("--cert")
                .arg(self.folder.join("db.crt"))
                .arg("--output")
                .arg(to)
                .arg(from),
            &format!("signing {}", from.display()),
        )?;
        Ok(())
    }

    /// The step that signs the loader.
    pub fn signed_loader(&self, project: &Project, toolbox: &Toolbox) -> Result<Entry> {
        let key = Key::new("signed loader 1").text(&toolbox.id).file(&self.folder.join("db.crt"))?;
        project.cache.step("signed-loader", "the loader, signed", key, |out| {
            // Both trees are in the cache, which each sees.
            self.sign(&Toolbox::for_tests(project)?, &toolbox.root.join(esp::LOADER), &out.join(LOADER))
        })
    }

    /// The step that signs a unified kernel image. What it holds is public.
    pub fn signed(&self, project: &Project, toolbox: &Toolbox, uki: &Entry) -> Result<Entry> {
        let mut key = Key::new("signed 2").text(&toolbox.id).entry(uki).text(project.version);
        for name in ["PK.auth", "KEK.auth", "db.auth", "db.crt"] {
            key = key.text(&sha256_file(&self.folder.join(name))?);
        }
        project.cache.step("signed", "the unified kernel image, signed", key, |out| {
            let tests = Toolbox::for_tests(project)?;
            let uki_name = uki_name(project.version);
            self.sign(&tests, &uki.path.join(&uki_name), &out.join(&uki_name))?;
            for name in NAMES {
                let list = format!("{name}.auth");
                fs::copy(self.folder.join(&list), out.join(&list))?;
            }
            Ok(())
        })
    }
}

/// The lists that firmware takes, from a folder that has them, and where they are in the ESP.
pub fn enrolment(folder: &Path) -> Vec<(PathBuf, String)> {
    NAMES
        .iter()
        .map(|name| (folder.join(format!("{name}.auth")), format!("{KEYS_FOLDER}/{name}.auth")))
        .collect()
}
