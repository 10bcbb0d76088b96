//! Parameters of the kernel. What each was before is kept, so that one that is no longer set gets it back.

use settings::{Kernel, Settings};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::files;

/// Parameters by name.
type Values = BTreeMap<String, String>;

/// Where parameters are, and where their values from before are kept: over restarts of the agent, and not over one of the kernel.
struct Places<'a> {
    parameters: &'a Path,
    before: &'a Path,
}

/// Makes the kernel's parameters those of the settings. One that the kernel refuses does not stop the others.
pub fn apply(settings: &Settings) -> Result<(), String> {
    let parameters = settings.kernel.iter().flat_map(|Kernel { sysctl, .. }| sysctl.iter().flatten());
    let wanted =
        parameters.map(|(key, value)| (key.as_str().to_owned(), value.as_str().to_owned())).collect();
    Places { parameters: Path::new("/proc/sys"), before: Path::new("/run/agent/sysctl.json") }.apply(&wanted)
}

/// What was kept of parameters that are no longer set.
fn given_back<'a>(before: &'a Values, wanted: &Values) -> Vec<(&'a String, &'a String)> {
    before.iter().filter(|(key, _)| !wanted.contains_key(*key)).collect()
}

impl Places<'_> {
    fn apply(&self, wanted: &Values) -> Result<(), String> {
        let mut before = self.read_before()?;
        let mut failures = Vec::new();
        for (key, value) in given_back(&before.clone(), wanted) {
            match fs::write(self.path(key), value) {
                Ok(()) => _ = before.remove(key),
                Err(error) => failures.push(format!("{key} cannot get back {value:?}: {}", reason(&error))),
            }
        }
        // What is put back first: a general parameter (net.ipv4.conf.all) may change others.
        for (key, value) in wanted {
            if let Err(error) = self.set(key, value, &mut before) {
                failures.push(format!("{key} cannot be set to {value:?}: {error}"));
            }
        }
        self.keep_before(&before)?;
        if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
    }

    fn set(&self, key: &str, value: &str, before: &mut Values) -> Result<(), String> {
        let path = self.path(key);
        let found = fs::read_to_string(&path).map_err(|error| reason(&error))?;
        let first = !before.contains_key(key);
        if first {
            // Kept before it is changed: cut off between the two, nothing is lost.
            before.insert(key.to_owned(), found.trim_end().to_owned());
            self.keep_before(before)?;
        }
        fs::write(&path, value).map_err(|error| {
            if first {
                before.remove(key);
            }
            reason(&error)
        })
    }

    /// A [`settings::SysctlKey`] has neither empty parts nor a `/`: it leads nowhere else.
    fn path(&self, key: &str) -> PathBuf {
        self.parameters.join(key.replace('.', "/"))
    }

    fn read_before(&self) -> Result<Values, String> {
        match fs::read(self.before) {
            Ok(data) => serde_json::from_slice(&data).map_err(|error| error.to_string()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Values::new()),
            Err(error) => Err(error.to_string()),
        }
        .map_err(|error| format!("cannot read {}: {error}", self.before.display()))
    }

    fn keep_before(&self, before: &Values) -> Result<(), String> {
        let folder = self.before.parent().unwrap_or(Path::new("/"));
        let kept = fs::create_dir_all(folder)
            .and_then(|()| files::replace(self.before, &serde_json::to_vec(before).unwrap_or_default()));
        kept.map_err(|error| format!("cannot write {}: {error}", self.before.display()))
    }
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "this kernel has no such parameter".to_owned(),
        io::ErrorKind::InvalidInput => format!("the kernel does not take this value ({error})"),
        io::ErrorKind::IsADirectory => "it is a group of parameters: name one of them".to_owned(),
        io::ErrorKind::PermissionDenied => format!("the kernel does not let it be read or changed ({error})"),
        _ => format!("the kernel refuses it ({error})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with parameters as `/proc/sys` has them.
    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            fs::create_dir_all(tree.0.path().join("sys/vm")).unwrap();
            for (name, value) in [("swappiness", "60\n"), ("ratio", "50\n")] {
                fs::write(tree.0.path().join("sys/vm").join(name), value).unwrap();
            }
            tree
        }

        fn apply(&self, wanted: &[(&str, &str)]) -> Result<(), String> {
            let (parameters, before) = (self.0.path().join("sys"), self.0.path().join("run/before.json"));
            let wanted = wanted.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            Places { parameters: &parameters, before: &before }.apply(&wanted.collect())
        }

        fn get(&self, name: &str) -> String {
            fs::read_to_string(self.0.path().join("sys/vm").join(name)).unwrap()
        }
    }

    #[test]
    fn what_is_no_longer_set_gets_back_what_it_was_before_the_first_change() {
        let tree = Tree::new();
        tree.apply(&[("vm.swappiness", "10")]).unwrap();
        tree.apply(&[("vm.swappiness", "20"), ("vm.ratio", "70")]).unwrap();
        assert_eq!((tree.get("swappiness"), tree.get("ratio")), ("20".to_owned(), "70".to_owned()));
        tree.apply(&[("vm.ratio", "70")]).unwrap();
        assert_eq!((tree.get("swappiness"), tree.get("ratio")), ("60".to_owned(), "70".to_owned()));
        // Set by somebody else meanwhile: it is not ours any more.
        fs::write(tree.0.path().join("sys/vm/swappiness"), "33").unwrap();
        tree.apply(&[]).unwrap();
        assert_eq!((tree.get("swappiness"), tree.get("ratio")), ("33".to_owned(), "50".to_owned()));
    }

    #[test]
    fn each_that_the_kernel_refuses_is_told_and_the_others_are_set() {
        let tree = Tree::new();
        let error = tree.apply(&[("vm.nothing", "1"), ("vm.ratio", "1"), ("vm.none.at", "2")]).unwrap_err();
        assert!(
            error.contains("vm.nothing cannot be set to \"1\": this kernel has no such parameter"),
            "{error}"
        );
        assert!(error.contains("vm.none.at cannot be set"), "{error}");
        assert_eq!(tree.get("ratio"), "1");
        fs::remove_file(tree.0.path().join("sys/vm/ratio")).unwrap();
        fs::create_dir(tree.0.path().join("sys/vm/ratio")).unwrap();
        let error = tree.apply(&[]).unwrap_err();
        assert!(error.contains("vm.ratio cannot get back \"50\": it is a group"), "{error}");
    }
}
