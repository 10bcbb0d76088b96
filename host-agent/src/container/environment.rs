//! What a container is told beside its command: variables, also of files of the node, and secrets.

use nix::fcntl::OFlag;
use settings::{Container, EnvFile, SecretText};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;

use crate::container::bundle::User;

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Bytes of a file with variables.
const LARGEST_FILE: u64 = 256 << 10;
/// Where a container finds its secrets.
pub(super) const SECRETS: &str = "/run/secrets";

/// The image's environment, and what files say, with that of the settings over it, and secrets over all. Pure.
pub(super) fn variables(
    before: &[String],
    container: &Container,
    secrets: &BTreeMap<String, SecretText>,
) -> Vec<String> {
    let mut all: BTreeMap<&str, &str> = BTreeMap::new();
    for variable in std::iter::once(DEFAULT_PATH).chain(before.iter().map(String::as_str)) {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        all.insert(name, value);
    }
    all.extend(container.env.iter().flatten().map(|(name, value)| (name.as_str(), value.reveal())));
    // Each is there: a commit without it is refused.
    let of_secrets = container.env_secrets.iter().flatten();
    all.extend(of_secrets.filter_map(|(name, of)| Some((name.as_str(), secrets.get(of.as_str())?.reveal()))));
    all.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

/// The variables of files, as `NAME=VALUE`, in their order.
pub(super) fn of_files(files: &[EnvFile]) -> Result<Vec<String>, String> {
    let mut all = Vec::new();
    for file in files {
        let path = Path::new(file.as_str());
        let text =
            read(path).map_err(|error| format!("cannot read {} of env-files: {error}", path.display()))?;
        let variables = parse(&text).map_err(|(line, reason)| {
            format!(
                "{} of env-files, line {line}: {reason}; lines are NAME=VALUE, or begin with #",
                path.display()
            )
        })?;
        all.extend(variables);
    }
    Ok(all)
}

/// The folder that it is in may be a container's, too: no link is followed, and nothing is waited for.
fn read(path: &Path) -> io::Result<String> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = fs::File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut text = String::new();
    file.take(LARGEST_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LARGEST_FILE {
        return Err(io::Error::other(format!("it has more than {} KiB", LARGEST_FILE >> 10)));
    }
    Ok(text)
}

/// `NAME=VALUE` on each line, as docker's --env-file has it: no quotes, what is behind `=` is the value. The error has the line. What is
/// written there may be a secret, and is not told.
fn parse(text: &str) -> Result<Vec<String>, (usize, &'static str)> {
    let mut all = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = line.split_once('=').ok_or((number, "there is no '='"))?;
        let name: settings::EnvName =
            name.parse().map_err(|_| (number, "what is before '=' is not the name of a variable"))?;
        if value.contains('\0') {
            return Err((number, "there is a byte that is zero"));
        }
        all.push(format!("{}={value}", name.as_str()));
    }
    Ok(all)
}

/// Writes the secrets that a container has as files, for its user alone; others go. In memory: `folder` is in `/run`.
pub(super) fn write_secrets(
    folder: &Path,
    container: &Container,
    secrets: &BTreeMap<String, SecretText>,
    user: User,
) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let Some(names) = &container.secrets else { return Ok(()) };
    fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    for name in names {
        let Some(secret) = secrets.get(name.as_str()) else { continue };
        let path = folder.join(name.as_str());
        // Named twice.
        if path.exists() {
            continue;
        }
        let mut file = fs::File::options().write(true).create_new(true).mode(0o400).open(&path)?;
        file.write_all(secret.reveal().as_bytes())?;
        chown(&path, Some(user.uid), Some(user.gid))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn container(tree: serde_json::Value) -> Container {
        let tree = json!({"containers": {"web": tree}});
        settings::from_json(&tree).unwrap().containers.unwrap().into_values().next().unwrap()
    }

    fn secrets() -> BTreeMap<String, SecretText> {
        [("db".to_owned(), SecretText::try_from("hunter2\n".to_owned()).unwrap())].into()
    }

    #[test]
    fn each_lies_over_the_one_before() {
        let before = ["A=image", "B=image", "C=image", "D=image", "PATH=/bin", "B=file", "C=file", "D=file"];
        let container = container(json!({"env": {"C": "env", "D": "env"}, "env-secrets": {"D": "db"}}));
        let all = variables(&before.map(str::to_owned), &container, &secrets());
        assert_eq!(all, ["A=image", "B=file", "C=env", "D=hunter2\n", "PATH=/bin"]);
    }

    #[test]
    fn a_file_has_a_variable_on_each_line_and_what_is_wrong_is_told_by_line_only() {
        let text = "# of the app\n\nA=1\n  B = 2 \"x\"\n";
        assert_eq!(parse(text), Err((4, "what is before '=' is not the name of a variable")));
        let text = "# of the app\r\n\r\nA=1\r\n  B== 2 \"x\"\nC=";
        assert_eq!(parse(text).unwrap(), ["A=1", "B== 2 \"x\"", "C="]);
        assert_eq!(parse("A=1\nhunter2"), Err((2, "there is no '='")));
    }

    #[test]
    fn a_file_that_a_container_could_have_made_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("secret"), "A=1").unwrap();
        assert_eq!(read(&at("secret")).unwrap(), "A=1");
        std::os::unix::fs::symlink(at("secret"), at("link")).unwrap();
        assert!(read(&at("link")).is_err());
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert_eq!(read(&at("pipe")).unwrap_err().to_string(), "it is not a file");
        fs::write(at("large"), vec![b'#'; (LARGEST_FILE + 1) as usize]).unwrap();
        assert!(read(&at("large")).unwrap_err().to_string().contains("more than 256 KiB"));
    }

    #[test]
    fn secrets_are_files_of_its_user_and_go_with_their_setting() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("secrets");
        let user = User { uid: nix::unistd::getuid().as_raw(), gid: nix::unistd::getgid().as_raw() };
        let write = |tree| write_secrets(&folder, &container(tree), &secrets(), user).unwrap();
        write(json!({"secrets": ["db", "db"]}));
        assert_eq!(fs::read_to_string(folder.join("db")).unwrap(), "hunter2\n");
        assert_eq!(fs::metadata(folder.join("db")).unwrap().permissions().mode() & 0o777, 0o400);
        write(json!({}));
        assert!(!folder.exists());
    }
}
