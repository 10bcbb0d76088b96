//! What is told of one container beside its status: how it was started last.

use serde_json::Value;
use std::fs;
use std::path::Path;

use crate::container::image;
use crate::container::record::Places;
use crate::files::read_bounded;

/// Bytes of it that fit into an answer of the agent.
const LARGEST_CONFIG: u64 = 4 << 20;

/// What the runtime was told, as it may be shown; none when it was told nothing yet, or more than can be shown.
pub fn runtime(places: &Places) -> Option<Value> {
    let config = read_bounded(&places.bundle().join("config.json"), LARGEST_CONFIG).ok()?;
    Some(shown(serde_json::from_slice(&config).ok()?))
}

/// Without the values of variables, which may be secret, and without the rules for system calls, which are the same for all and
/// longer than all the rest. Pure.
fn shown(mut config: Value) -> Value {
    let variables = config.pointer_mut("/process/env").and_then(Value::as_array_mut);
    for variable in variables.into_iter().flatten() {
        let name = variable.as_str().and_then(|text| text.split('=').next()).unwrap_or_default();
        *variable = name.into();
    }
    if let Some(profile) = config.pointer_mut("/linux/seccomp").and_then(Value::as_object_mut) {
        profile.remove("syscalls");
    }
    config
}

/// The digest of its image, by the folder that its root is made of.
pub fn image_digest(places: &Places) -> Option<String> {
    digest_of_root(&fs::read_link(places.lower()).ok()?)
}

fn digest_of_root(rootfs: &Path) -> Option<String> {
    let folder = rootfs.parent().filter(|folder| folder.parent() == Some(Path::new(image::PULLED)))?;
    Some(image::digest_of(folder.file_name()?.to_str()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_of_variables_are_not_shown() {
        let config = json!({
            "process": {"args": ["a", "-b"], "env": ["PATH=/bin", "TOKEN=secret=1", "EMPTY="], "cwd": "/"},
            "linux": {"seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"]}]}},
        });
        let expected = json!({
            "process": {"args": ["a", "-b"], "env": ["PATH", "TOKEN", "EMPTY"], "cwd": "/"},
            "linux": {"seccomp": {"defaultAction": "SCMP_ACT_ERRNO"}},
        });
        assert_eq!(shown(config), expected);
        // Of one that is superpowered.
        assert_eq!(shown(json!({"linux": {}})), json!({"linux": {}}));
    }

    #[test]
    fn an_image_that_was_pulled_has_a_digest() {
        let pulled = Path::new("/data/images/sha256-abc/rootfs");
        assert_eq!(digest_of_root(pulled).as_deref(), Some("sha256:abc"));
        assert_eq!(digest_of_root(Path::new("/usr/lib/caisson/images/busybox/rootfs")), None);
    }
}
