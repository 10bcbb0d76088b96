//! Files, by landlock: <https://docs.kernel.org/userspace-api/landlock.html>.

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError,
    RulesetStatus, Scope, path_beneath_rules,
};

use std::path::Path;

use crate::state::Paths;
use crate::trials::BOOT_ID;

/// Linux 6.12's: what this was tested with. An older kernel does what it can of it.
const TESTED: ABI = ABI::V6;

/// Returns a line for the log.
pub(super) fn confine(paths: &Paths) -> Result<&'static str, String> {
    match restrict(paths).map_err(|error| error.to_string())? {
        RulesetStatus::FullyEnforced => Ok("<6>landlock: all of it is enforced"),
        RulesetStatus::PartiallyEnforced => {
            Ok("<4>landlock: this kernel enforces a part of it, as it is older than Linux 6.12")
        }
        RulesetStatus::NotEnforced => Err("this kernel does not offer it".to_owned()),
    }
}

/// Everything is refused but what is named here: also binding and connecting TCP sockets, abstract Unix sockets and signals of
/// other processes. A path that is not there is passed over: who opens it will tell.
fn restrict(paths: &Paths) -> Result<RulesetStatus, RulesetError> {
    let read = [paths.defaults.as_path(), &paths.os_release, Path::new(BOOT_ID)];
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(TESTED))?
        .handle_access(AccessNet::from_all(TESTED))?
        .scope(Scope::from_all(TESTED))?
        .create()?
        .add_rules(path_beneath_rules([&paths.settings], in_store()))?
        .add_rules(path_beneath_rules(read, AccessFs::ReadFile))?
        .restrict_self()?;
    Ok(status.ruleset)
}

/// What the store does in its folder: no folders, links, devices or sockets are made there.
fn in_store() -> BitFlags<AccessFs> {
    use AccessFs::{MakeReg, ReadDir, ReadFile, RemoveFile, Truncate, WriteFile};
    ReadFile | ReadDir | WriteFile | Truncate | MakeReg | RemoveFile
}
