//! The kernel image of a new version: from its publisher to the ESP, piece by piece, as a patch of the one that runs when there is
//! one. It does not boot yet when it is there.

use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use update::file::{Padded, padded};
use update::manifest::{self, Hash, Patch, Uki};
use update::patch::Applier;

use super::esp::{Entries, Entry, Staging};
use super::install::Install;
use super::signature::is_signed;

/// Bytes of a kernel image: three of them fit into the ESP.
const LARGEST_UKI: u64 = 20 << 20;
/// Bytes that are read of a file at once.
const PART: usize = 64 << 10;

impl Install<'_> {
    /// Puts the kernel image beside the others. `own`: the entry of the version that runs.
    /// Gives the bytes that came over the network for it.
    pub async fn uki(&self, entries: &Entries, own: &Entry) -> Result<u64, String> {
        let uki = &self.update.uki;
        let name = format!("caisson_{}.efi", self.update.version);
        let about = |reason: String| format!("the kernel image {}: {reason}", uki.target);
        let publisher = "its publisher has to add the version again";
        if uki.name.as_str() != name || uki.size.bytes() > LARGEST_UKI {
            return Err(about(format!(
                "it is called {} and has {} bytes, instead of {name} and at most {LARGEST_UKI}: {publisher}",
                uki.name,
                uki.size.bytes()
            )));
        }
        let mut sink = Sink::new(entries.stage(&name)?, &self.update.root.hash);
        let received = match patch_of(uki, entries, own) {
            Some((patch, base)) => {
                self.uki_by_patch(&patch, base, &mut sink).await?;
                patch.size
            }
            None => {
                let file = manifest::File { target: uki.target.clone(), size: uki.size };
                let mut download = self.files.whole(&file)?;
                while let Some(piece) = download.next().await? {
                    sink.push(&piece)?;
                }
                uki.size
            }
        };
        let Sink { staging, hash, names, .. } = sink;
        if hash.finalize()[..] != uki.sha256.0 {
            return Err(about(format!("it is not the one that was signed: {publisher}")));
        }
        if !names.found {
            return Err(about(format!(
                "it does not boot the root {} that it came with: {publisher}",
                self.update.root.hash
            )));
        }
        staging.finish()?;
        self.check_staged(entries)?;
        Ok(received.bytes())
    }

    /// Bytes that it takes to get the kernel image.
    pub(super) fn uki_size(&self, entries: &Entries, own: &Entry) -> u64 {
        let uki = &self.update.uki;
        patch_of(uki, entries, own).map_or(uki.size, |(patch, _)| patch.size).bytes()
    }

    async fn uki_by_patch(
        &self,
        patch: &Patch,
        base: Padded<File>,
        sink: &mut Sink<'_>,
    ) -> Result<(), String> {
        let about = |error: update::patch::Error| format!("{}: {error}", patch.target);
        let uki = &self.update.uki;
        let mut applier = Applier::new(base, patch.from.0, uki.sha256.0, padded(uki.size.bytes()));
        let file = manifest::File { target: patch.target.clone(), size: patch.size };
        let mut download = self.files.whole(&file)?;
        while let Some(piece) = download.next().await? {
            let mut input = &piece[..];
            while let Some(segment) = applier.push(&mut input).map_err(about)? {
                // Zeroes fill the last block.
                let left = uki.size.bytes().saturating_sub(segment.offset);
                let content = usize::try_from(left).ok().and_then(|left| segment.content.get(..left));
                sink.push(content.unwrap_or(segment.content))?;
                tokio::task::yield_now().await;
            }
        }
        if applier.is_done() { Ok(()) } else { Err(format!("{} ends too early", patch.target)) }
    }

    /// Whether the kernel image on the ESP is the signed one.
    pub(super) fn check_staged(&self, entries: &Entries) -> Result<(), String> {
        check_staged(entries, self.update.uki.name.as_str(), &self.update.uki.sha256.to_string())
    }
}

/// A patch from the image of the version that runs, if there is one that brings less than the whole. Only what is on the ESP bit by
/// bit can be its base.
fn patch_of(uki: &Uki, entries: &Entries, own: &Entry) -> Option<(Patch, Padded<File>)> {
    if uki.patches.is_empty() {
        return None;
    }
    let hashed = entries.open(own).and_then(|file| Ok((hash_of_file(&file)?, file)));
    let ((hash, size), file) = match hashed {
        Ok(hashed) => hashed,
        Err(error) => {
            eprintln!("<4>update: cannot read the kernel image that runs, {}: {error}", own.name.as_str());
            return None;
        }
    };
    let smaller = |patch: &&Patch| patch.from == hash && patch.size < uki.size;
    let patch = uki.patches.iter().find(smaller)?.clone();
    Some((patch, Padded::new(file, size)))
}

/// The SHA-256 of a file from where it is read on, and how many bytes that were.
pub(super) fn hash_of_file(mut file: &File) -> io::Result<(Hash, u64)> {
    let (mut hash, mut size) = (Sha256::new(), 0);
    let mut part = vec![0; PART];
    loop {
        let count = file.read(&mut part)?;
        if count == 0 {
            return Ok((Hash(hash.finalize().into()), size));
        }
        hash.update(&part[..count]);
        size += count as u64;
    }
}

/// Whether the staged kernel image has this SHA-256, in hexadecimal digits.
pub(super) fn check_staged(entries: &Entries, name: &str, sha256: &str) -> Result<(), String> {
    let staged = entries.open_staged(name).and_then(|file| hash_of_file(&file)).map_err(|error| {
        format!("the staged kernel image cannot be read: {error}; apiclient update apply stages it again")
    })?;
    if staged.0.to_string() == sha256 {
        return Ok(());
    }
    Err(format!(
        "the kernel image {name} on the ESP is not what was staged: apiclient update apply stages it again"
    ))
}

/// Whether firmware could take the staged kernel image, as far as that can be told: with Secure Boot it boots nothing without a signature.
pub(super) fn check_signature(entries: &Entries, name: &str, secure_boot: bool) -> Result<(), String> {
    if !secure_boot {
        return Ok(());
    }
    let look = || -> io::Result<bool> {
        let file = entries.open_staged(name)?;
        is_signed(file.metadata()?.len(), |at, buffer| file.read_exact_at(buffer, at))
    };
    match look() {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!(
            "the kernel image {name} carries no signature, and Secure Boot is on: firmware would refuse it, so it is not to boot. Its publisher has to build the version with the keys of this node's image (cargo caisson keys) and add it again, or turn Secure Boot off"
        )),
        Err(error) => Err(format!(
            "the staged kernel image {name} cannot be read: {error}; apiclient update apply stages it again"
        )),
    }
}

/// Where the pieces of a kernel image go.
struct Sink<'a> {
    staging: Staging<'a>,
    hash: Sha256,
    names: Search,
}

impl<'a> Sink<'a> {
    fn new(staging: Staging<'a>, root: &Hash) -> Self {
        Self { staging, hash: Sha256::new(), names: Search::new(root.to_string().into_bytes()) }
    }

    fn push(&mut self, piece: &[u8]) -> Result<(), String> {
        self.hash.update(piece);
        self.names.push(piece);
        self.staging.write(piece)
    }
}

/// Looks for bytes in what comes in pieces.
struct Search {
    wanted: Vec<u8>,
    /// The end of what came, as long as the beginning of what is wanted could be in it.
    end: Vec<u8>,
    found: bool,
}

impl Search {
    fn new(wanted: Vec<u8>) -> Self {
        Self { wanted, end: Vec::new(), found: false }
    }

    fn push(&mut self, piece: &[u8]) {
        if self.found {
            return;
        }
        let inside = |bytes: &[u8]| bytes.windows(self.wanted.len()).any(|part| part == self.wanted);
        let keep = self.wanted.len().saturating_sub(1);
        // Over the border between two pieces.
        self.end.extend_from_slice(&piece[..keep.min(piece.len())]);
        self.found = inside(&self.end) || inside(piece);
        if piece.len() >= keep {
            self.end = piece[piece.len() - keep..].to_vec();
        } else {
            self.end.drain(..self.end.len().saturating_sub(keep));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::signature::tests::signed;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn with_secure_boot_nothing_boots_that_carries_no_signature() {
        let folder = tempfile::tempdir().unwrap();
        let entries = Entries::in_folder(folder.path());
        let stage = |image: &[u8]| {
            let mut staging = entries.stage("caisson_2.efi").unwrap();
            staging.write(image).unwrap();
            staging.finish().unwrap();
        };
        stage(&signed()[..100]);
        check_signature(&entries, "caisson_2.efi", false).unwrap();
        let error = check_signature(&entries, "caisson_2.efi", true).unwrap_err();
        assert!(error.contains("caisson_2.efi carries no signature, and Secure Boot is on"), "{error}");
        stage(&signed());
        check_signature(&entries, "caisson_2.efi", true).unwrap();
        assert!(check_signature(&entries, "caisson_3.efi", true).unwrap_err().contains("cannot be read"));
    }

    proptest! {
        #[test]
        fn what_is_looked_for_is_found_wherever_the_pieces_are_cut(
            text in "[ab]{0,40}", wanted in "[ab]{1,6}", cuts in prop::collection::vec(1usize..9, 1..40),
        ) {
            let mut search = Search::new(wanted.clone().into_bytes());
            let (mut rest, mut cuts) = (text.as_bytes(), cuts.iter().cycle());
            while !rest.is_empty() {
                let cut = cuts.next().map_or(1, |cut| *cut).min(rest.len());
                search.push(&rest[..cut]);
                rest = &rest[cut..];
            }
            prop_assert_eq!(search.found, text.contains(&wanted));
        }
    }
}
