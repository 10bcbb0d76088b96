//! The manual of `apiclient` and its completion for shells, from the definition of its command line. They are made on the host: a
//! node has neither a shell nor a pager.

use anyhow::{Context, Result};
use clap::Command;
use clap::builder::PossibleValuesParser;
use clap_complete::Shell;
use clap_mangen::Man;
use settings::Manual;
use std::fmt::Write;

/// Commands whose arguments are keys of settings, and the names of these arguments.
const WITH_KEYS: [(&str, &str); 5] =
    [("set", "pairs"), ("delete", "keys"), ("explain", "key"), ("edit", "key"), ("watch", "key")];
/// What `apiclient get` shows, beside settings.
const AREAS: [&str; 3] = ["os", "services", "status"];

/// What a page defines before it uses it: an apostrophe that stays one.
const APOSTROPHE: [&str; 2] = [".ie \\n(.g .ds Aq \\(aq\n", ".el .ds Aq '\n"];

/// A script for a shell to source. It knows the commands, their options, and the keys of settings.
pub fn completion(shell: Shell) -> Result<String> {
    let keys = keys()?;
    let whole = |key: &String| format!("settings.{key}");
    let shown: Vec<String> = AREAS.map(str::to_owned).into_iter().chain(keys.iter().map(whole)).collect();
    let mut command = apiserver::cli::definition();
    for (name, argument) in WITH_KEYS {
        command = with_values(command, name, argument, &keys);
    }
    command = with_values(command, "get", "prefixes", &shown);
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "apiclient", &mut script);
    let mut script = String::from_utf8(script).context("the completion is not UTF-8")?;
    // For fish the generator leaves arguments without a dash out.
    if shell == Shell::Fish {
        let commands = WITH_KEYS.map(|(name, _)| name).join(" ");
        for (commands, values) in [(commands.as_str(), &keys), ("get", &shown)] {
            let seen = format!("__fish_seen_subcommand_from {commands}");
            writeln!(script, "complete -c apiclient -n \"{seen}\" -f -a \"{}\"", values.join(" "))?;
        }
    }
    Ok(script)
}

fn with_values(command: Command, name: &str, argument: &str, values: &[String]) -> Command {
    // Clap wants names that stay: this is done once in a run.
    let values: Vec<&'static str> = values.iter().map(|value| &*value.clone().leak()).collect();
    command.mut_subcommand(name, |command| {
        command.mut_arg(argument, |argument| argument.value_parser(PossibleValuesParser::new(values)))
    })
}

/// Keys of settings and of tables of them, without the outer layer; as far as the names are not a node's own.
fn keys() -> Result<Vec<String>> {
    let schema = serde_json::from_str(settings::SCHEMA).context("the schema of the settings is not JSON")?;
    let mut keys = Vec::new();
    for row in Manual::new(schema).rows("settings") {
        let key = row.key.trim_start_matches("settings.");
        let key = key.split(['<', '[']).next().unwrap_or_default().trim_end_matches('.');
        let parts: Vec<&str> = key.split('.').collect();
        keys.extend((1..=parts.len()).map(|count| parts[..count].join(".")));
    }
    keys.sort();
    keys.dedup();
    Ok(keys)
}

/// The manual page, as `man -l` reads it.
pub fn page() -> Result<String> {
    let command = apiserver::cli::definition();
    let man = Man::new(command.clone()).date("").manual("Caisson");
    let mut page = APOSTROPHE.concat();
    page.push_str(&part(|out| man.render_title(out))?);
    page.push_str(&part(|out| man.render_name_section(out))?);
    page.push_str(&part(|out| man.render_synopsis_section(out))?);
    page.push_str(&part(|out| man.render_description_section(out))?);
    page.push_str(&part(|out| man.render_options_section(out))?);
    page.push_str(".SH COMMANDS\n");
    commands(&mut page, "apiclient", &command)?;
    page.push_str(&part(|out| man.render_extra_section(out))?.replace(".SH EXTRA", ".SH EXAMPLES"));
    Ok(page)
}

fn commands(page: &mut String, parent: &str, command: &Command) -> Result<()> {
    for command in command.get_subcommands().filter(|command| command.get_name() != "help") {
        let name = format!("{parent} {}", command.get_name());
        let command = command.clone().disable_help_flag(true).disable_help_subcommand(true).bin_name(&name);
        let man = Man::new(command.clone());
        writeln!(page, ".SS \"{name}\"")?;
        for section in [
            part(|out| man.render_synopsis_section(out))?,
            part(|out| man.render_description_section(out))?,
            if command.get_arguments().next().is_some() {
                part(|out| man.render_options_section(out))?
            } else {
                String::new()
            },
        ] {
            let lines = section.lines().filter(|line| !line.starts_with(".SH "));
            let lines: Vec<&str> = lines.collect();
            if !lines.is_empty() {
                writeln!(page, ".PP\n{}", lines.join("\n"))?;
            }
        }
        commands(page, &name, &command)?;
    }
    Ok(())
}

/// One section, without the lines that each begins with, which only the first of a page needs.
fn part(render: impl Fn(&mut dyn std::io::Write) -> std::io::Result<()>) -> Result<String> {
    let mut text = Vec::new();
    render(&mut text).context("cannot make the manual page")?;
    let text = String::from_utf8(text).context("the manual page is not UTF-8")?;
    let lines = text.split_inclusive('\n').filter(|line| !APOSTROPHE.contains(line));
    Ok(lines.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::process::Command as Process;

    #[test]
    fn the_manual_page_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/apiclient.1");
        let page = page().unwrap();
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, &page).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == page,
            "docs/apiclient.1 is not current: UPDATE_DOCS=1 cargo test -p caisson-build manual"
        );
    }

    #[test]
    fn the_manual_page_has_every_command() {
        let page = page().unwrap();
        for command in ["set", "apply", "edit", "explain", "watch", "container logs", "trial"] {
            assert!(page.contains(&format!(".SS \"apiclient {command}\"\n")), "{command}");
        }
        assert!(
            page.contains(".SH EXAMPLES\n") && page.contains("apiclient explain network.hostname"),
            "{page}"
        );
    }

    /// What bash offers for the last of the words.
    fn completed(words: &[&str]) -> Vec<String> {
        let script = completion(Shell::Bash).unwrap();
        let last = words.len() - 1;
        let ask = format!(
            "{script}\nCOMP_WORDS=({}); COMP_CWORD={last}; _apiclient apiclient \"{}\" \"{}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" "),
            words[last],
            words[last - 1],
        );
        let output = Process::new("bash").args(["--norc", "-c", &ask]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn bash_completes_commands_options_and_keys() {
        assert_eq!(completed(&["apiclient", "expl"]), ["explain"]);
        assert_eq!(completed(&["apiclient", "explain", "network.ho"]), ["network.hostname", "network.hosts"]);
        assert_eq!(completed(&["apiclient", "set", "kernel.sys"]), ["kernel.sysctl"]);
        assert_eq!(completed(&["apiclient", "get", "settings.mo"]), ["settings.motd"]);
        assert_eq!(
            completed(&["apiclient", "delete", "contai"]),
            [
                "container-networks",
                "container-registry",
                "container-registry.credentials",
                "container-registry.mirrors",
                "containers"
            ]
        );
        assert!(completed(&["apiclient", "edit", "--"]).contains(&"--dry-run".to_owned()));
        assert_eq!(completed(&["apiclient", "watch", "--events", "comm"]), ["commit"]);
    }

    #[test]
    fn zsh_and_fish_know_the_keys() {
        let zsh = completion(Shell::Zsh).unwrap();
        assert!(zsh.starts_with("#compdef apiclient") && zsh.contains("network.hostname"), "{zsh}");
        let fish = completion(Shell::Fish).unwrap();
        let keys = fish.lines().last().unwrap();
        assert!(keys.contains("from get\" -f -a \"os services status settings."), "{keys}");
        assert!(fish.contains("from set delete explain edit watch\" -f -a \"api "), "{fish}");
    }
}
