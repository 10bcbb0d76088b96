//! Which entry of the ESP boots: the rule of systemd-boot 257, so that a VMM without firmware comes to the same slot.
//!
//! A VMM that loads the kernel itself does, at each boot of the guest:
//!
//! 1. Read `EFI/Linux` of the ESP. Each file that [`FileName::parse`] takes is a UKI; its section `.osrel` and the name make an
//!    [`Entry`].
//! 2. [`choose`].
//! 3. Where [`FileName::tried`] gives a name, rename the file to it and make that durable, before the guest runs. Without this
//!    step a slot that fails is tried for ever.
//! 4. Start the sections `.linux` and `.cmdline`.
//!
//! The guest does the rest: it blesses its entry when it is healthy ([`FileName::blessed`]).
//!
//! Left out, as nothing of ours sets them: a default or one-shot entry in EFI variables or `loader.conf`, Type #1 entries, profiles
//! of a UKI. Two entries of the same version and product that differ in the counter only are no state that an updater may leave:
//! loaders after 257 leave their order to the directory's.

mod name;
mod version;

pub use name::{Counter, FileName};
pub use version::compare_versions;

use std::cmp::Ordering;

/// A unified kernel image of the ESP, as far as its place in the order goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: FileName,
    /// `IMAGE_ID` or `ID`.
    sort_key: Option<String>,
    /// `IMAGE_VERSION`, `VERSION`, `VERSION_ID` or `BUILD_ID`.
    version: Option<String>,
}

impl Entry {
    /// `os_release` is the text of the UKI's section `.osrel`. None when the loader would not list it: it names no system.
    pub fn new(name: FileName, os_release: &str) -> Option<Self> {
        let value = |key| value(os_release, key);
        value("PRETTY_NAME")
            .or_else(|| value("IMAGE_ID"))
            .or_else(|| value("NAME"))
            .or_else(|| value("ID"))?;
        Some(Self {
            name,
            sort_key: value("IMAGE_ID").or_else(|| value("ID")),
            version: value("IMAGE_VERSION")
                .or_else(|| value("VERSION"))
                .or_else(|| value("VERSION_ID"))
                .or_else(|| value("BUILD_ID")),
        })
    }
}

/// The last value of `key` in the text of an os-release file.
fn value(os_release: &str, key: &str) -> Option<String> {
    let lines = os_release.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let (_, value) = lines.filter_map(|line| line.split_once('=')).rfind(|(name, _)| *name == key)?;
    let unquoted = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
    let value = unquoted.unwrap_or(value);
    (!value.is_empty()).then(|| value.to_owned())
}

/// The entry that boots; none when there is none. One without tries left boots only when all are.
pub fn choose(entries: &[Entry]) -> Option<&Entry> {
    entries.iter().min_by(|a, b| order(a, b))
}

/// What boots first is less.
fn order(a: &Entry, b: &Entry) -> Ordering {
    let spent = |entry: &Entry| entry.name.counter().is_some_and(|counter| counter.left == 0);
    spent(a).cmp(&spent(b)).then_with(|| a.sort_key.is_none().cmp(&b.sort_key.is_none())).then_with(|| {
        let by_version = match (&a.sort_key, &b.sort_key) {
            (Some(key_a), Some(key_b)) => key_a.cmp(key_b).then_with(|| {
                let (a, b) = (a.version.as_deref(), b.version.as_deref());
                compare_versions(b.unwrap_or_default(), a.unwrap_or_default())
            }),
            _ => Ordering::Equal,
        };
        // The name with its counter: of two names that differ in it only, the one with more tries left is first.
        let (name_a, name_b) = (a.name.as_str().to_ascii_lowercase(), b.name.as_str().to_ascii_lowercase());
        by_version.then_with(|| compare_versions(&name_b, &name_a))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(name: &str, version: &str) -> Entry {
        let os_release = format!("NAME=Caisson\nID=caisson\nVERSION=\"{version}\"\nVERSION_ID={version}\n");
        Entry::new(FileName::parse(name).unwrap(), &os_release).unwrap()
    }

    fn chosen(names: &[(&str, &str)]) -> String {
        let entries: Vec<Entry> = names.iter().map(|(name, version)| entry(name, version)).collect();
        choose(&entries).unwrap().name.as_str().to_owned()
    }

    #[test]
    fn the_newest_version_boots_whatever_the_order_of_the_directory() {
        assert_eq!(
            chosen(&[("caisson_1.9.0.efi", "1.9.0"), ("caisson_1.10.0.efi", "1.10.0")]),
            "caisson_1.10.0.efi"
        );
        assert_eq!(
            chosen(&[("caisson_1.10.0.efi", "1.10.0"), ("caisson_1.9.0.efi", "1.9.0")]),
            "caisson_1.10.0.efi"
        );
        assert_eq!(chosen(&[("b.efi", "1.0.0~rc1"), ("a.efi", "1.0.0")]), "a.efi");
    }

    #[test]
    fn an_update_that_never_comes_up_is_tried_three_times_and_then_the_old_one_boots() {
        let mut new = entry("caisson_1.2.0+3.efi", "1.2.0");
        let old = entry("caisson_1.1.0.efi", "1.1.0");
        for seen in ["caisson_1.2.0+2-1.efi", "caisson_1.2.0+1-2.efi", "caisson_1.2.0+0-3.efi"] {
            assert_eq!(choose(&[old.clone(), new.clone()]), Some(&new));
            new.name = new.name.tried().unwrap();
            assert_eq!(new.name.as_str(), seen);
        }
        assert_eq!(choose(&[new.clone(), old.clone()]), Some(&old));
        // When nothing else is left, even that one.
        assert_eq!(choose(std::slice::from_ref(&new)), Some(&new));
    }

    #[test]
    fn a_rollback_is_giving_the_newer_one_up() {
        let mut new = entry("caisson_1.2.0.efi", "1.2.0");
        new.name = new.name.given_up();
        assert_eq!(new.name.as_str(), "caisson_1.2.0+0.efi");
        let old = entry("caisson_1.1.0.efi", "1.1.0");
        assert_eq!(choose(&[new, old.clone()]), Some(&old));
    }

    #[test]
    fn what_names_its_product_comes_before_what_does_not() {
        let bare = Entry::new(FileName::parse("zzz_9.efi").unwrap(), "NAME=Other\nVERSION=9\n").unwrap();
        let ours = entry("caisson_1.0.0.efi", "1.0.0");
        assert_eq!(choose(&[bare, ours.clone()]), Some(&ours));
        assert_eq!(Entry::new(FileName::parse("x.efi").unwrap(), "VERSION=1\n"), None);
    }

    #[test]
    fn the_keys_of_os_release_are_taken_in_the_loaders_order() {
        let text = "# ID=not\n  ID='caisson'\nVERSION_ID=1\nVERSION=2\nIMAGE_VERSION=\"3\"\nBUILD_ID=4\n";
        let entry = Entry::new(FileName::parse("x.efi").unwrap(), text).unwrap();
        assert_eq!((entry.sort_key.as_deref(), entry.version.as_deref()), (Some("caisson"), Some("3")));
    }

    fn any_entry() -> impl Strategy<Value = Entry> {
        let counter = prop_oneof![
            Just(String::new()),
            (0u32..5, 0u32..5).prop_map(|(left, done)| format!("+{left}-{done}")),
            (0u32..5).prop_map(|left| format!("+{left}")),
        ];
        ("[0-3]\\.[0-3]", counter)
            .prop_map(|(version, counter)| entry(&format!("caisson_{version}{counter}.efi"), &version))
    }

    proptest! {
        /// Boots that all fail, one after the other: what is blessed keeps its name, no counted entry is tried more often than it has
        /// tries while another one is there, and something boots each time.
        #[test]
        fn boots_that_fail_use_tries_up_and_nothing_else(entries in prop::collection::vec(any_entry(), 1..5)) {
            let mut now = entries.clone();
            let mut tried = vec![0; entries.len()];
            for _ in 0..30 {
                let best = choose(&now).expect("there is an entry");
                let at = now.iter().position(|entry| entry == best).unwrap();
                let rest = now.iter().any(|entry| entry.name.counter().is_none_or(|counter| counter.left > 0));
                tried[at] += 1;
                if let Some(next) = now[at].name.tried() {
                    if rest {
                        prop_assert!(tried[at] <= entries[at].name.counter().unwrap().left);
                    }
                    now[at].name = next;
                }
            }
            for (before, after) in entries.iter().zip(&now) {
                if before.name.counter().is_none() {
                    prop_assert_eq!(before, after);
                }
            }
            // One that is blessed at the end is what a node falls back to.
            if entries.iter().any(|entry| entry.name.counter().is_none()) {
                prop_assert_eq!(choose(&now).unwrap().name.counter(), None);
            }
        }

        #[test]
        fn the_choice_does_not_hang_on_the_order_of_the_directory(entries in prop::collection::vec(any_entry(), 1..6).prop_shuffle()) {
            let mut turned = entries.clone();
            turned.reverse();
            let (a, b) = (choose(&entries).unwrap(), choose(&turned).unwrap());
            prop_assert_eq!(order(a, b), Ordering::Equal);
        }

        #[test]
        fn no_name_or_text_is_too_strange(name in ".{0,20}", text in "(?s).{0,60}") {
            if let Some(name) = FileName::parse(&name) {
                let _ = (name.tried(), name.blessed(), name.given_up());
                if let Some(entry) = Entry::new(name, &text) {
                    prop_assert_eq!(choose(std::slice::from_ref(&entry)), Some(&entry));
                }
            }
        }
    }
}
