//! Bootstrap commands: `apiclient` as the user that the API server runs as, which may do nothing but ask the API.

use settings::ApiclientCommand;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout_at;

pub(super) const APICLIENT: &str = "/usr/bin/apiclient";
/// User and group `api`.
const API: u32 = 274;
/// For all commands of one name.
const PATIENCE: Duration = Duration::from_secs(600);
/// Bytes that are kept of what one command says is wrong.
const MOST_SAID: u64 = 1 << 10;

/// One after another up to the first that fails; the error says which, and why.
pub(super) async fn run(name: &str, commands: &[ApiclientCommand]) -> Result<(), String> {
    run_program(Path::new(APICLIENT), Some(API), PATIENCE, name, commands).await
}

async fn run_program(
    program: &Path,
    user: Option<u32>,
    patience: Duration,
    name: &str,
    commands: &[ApiclientCommand],
) -> Result<(), String> {
    let deadline = tokio::time::Instant::now() + patience;
    for (number, command) in (1..).zip(commands) {
        let arguments = command.arguments().iter().map(|item| item.as_str());
        // The rest may have secrets in it.
        let shown = format!("command {number} (apiclient {})", arguments.clone().next().unwrap_or_default());
        let mut process = Command::new(program);
        process.args(arguments).env_clear().env("PATH", "/usr/bin").current_dir("/").kill_on_drop(true);
        process.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        if let Some(user) = user {
            // This also takes all capabilities and further groups from it.
            process.uid(user).gid(user);
        }
        let mut child = process.spawn().map_err(|error| format!("{shown} cannot be started: {error}"))?;
        let stderr = child.stderr.take();
        let mut said = Vec::new();
        let end = async {
            if let Some(stderr) = stderr {
                let _ = stderr.take(MOST_SAID).read_to_end(&mut said).await;
            }
            child.wait().await
        };
        let ended = timeout_at(deadline, end).await;
        let said = String::from_utf8_lossy(&said).trim().replace('\n', "; ");
        if !said.is_empty() {
            eprintln!("<6>{name}: {shown} said: {said}");
        }
        let said = if said.is_empty() { String::new() } else { format!(": {said}") };
        match ended {
            Ok(Ok(status)) if status.success() => {}
            Ok(Ok(status)) => {
                let how =
                    status.code().map_or_else(|| status.to_string(), |code| format!("exit code {code}"));
                return Err(format!("{shown} ended with {how}{said}"));
            }
            Ok(Err(error)) => return Err(format!("{shown} cannot be waited for: {error}")),
            Err(_) => {
                return Err(format!(
                    "{shown} was ended, as all commands together may take {} s{said}",
                    patience.as_secs()
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    async fn run_script(script: &str, arguments: &[&[&str]]) -> Result<(), String> {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("apiclient");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let commands: Vec<Vec<&str>> =
            arguments.iter().map(|items| [&["apiclient"], *items].concat()).collect();
        let tree = json!({"bootstrap-commands": {"a": {"commands": commands}}});
        let commands = settings::from_json(&tree).unwrap().bootstrap_commands.unwrap();
        let commands = commands.into_values().next().unwrap().commands.unwrap();
        run_program(&program, None, Duration::from_secs(2), "a", &commands).await
    }

    #[tokio::test]
    async fn the_first_that_fails_is_the_last_and_is_told_without_its_values() {
        let script =
            "echo \"$1\" >> \"$(dirname \"$0\")/ran\"; [ $1 = bad ] && { echo why >&2; exit 3; }; exit 0";
        run_script(script, &[&["one"], &["two"]]).await.unwrap();
        let error = run_script(script, &[&["one"], &["bad", "token=hunter2"], &["three"]]).await.unwrap_err();
        assert_eq!(error, "command 2 (apiclient bad) ended with exit code 3: why");
    }

    #[tokio::test]
    async fn one_that_hangs_or_floods_is_ended() {
        let error = run_script("exec sleep 60", &[&["one"]]).await.unwrap_err();
        assert!(error.contains("may take 2 s"), "{error}");
        // More than is kept: the pipe is closed, which ends the program.
        let error = run_script("exec yes >&2", &[&["one"]]).await.unwrap_err();
        assert!(error.len() < 5000 && error.contains("ended with"), "{error}");
    }
}
