//! From what was found to settings, or to everything that is wrong. Pure.

use init_control::Problem;
use settings::{Settings, UserData};

use super::collect::Collected;
use super::source::{Found, Source, Wrong, names};

/// What to do about what is wrong with user data.
const REFUSED: &str = "no user data was applied, of this source or another: correct it and restart the node, or use apiclient apply";

/// What all sources say together.
#[derive(Debug)]
pub(super) struct Merged {
    pub settings: Settings,
    /// The first in precedence first.
    parts: Vec<(Source, UserData)>,
}

/// Puts all sources together, key by key. When one of them is bad, none counts: a node that has the half of what somebody wanted
/// is worse than one that says what is wrong, as a container may run then without the setting that fences it in.
pub(super) fn merge(collected: &Collected) -> Result<Merged, Vec<Problem>> {
    let mut problems: Vec<(Source, Problem)> = collected.wrong.iter().map(of_source).collect();
    let mut parts = Vec::new();
    for Found { source, content } in &collected.found {
        match read(source, content) {
            Ok(user_data) => parts.push((source.clone(), user_data)),
            Err(messages) => {
                let wrong = messages.into_iter().map(|message| Wrong { source: source.clone(), message });
                problems.extend(wrong.map(|wrong| of_source(&wrong)));
            }
        }
    }
    if !problems.is_empty() {
        problems.sort_by(|(one, _), (other, _)| one.cmp(other));
        return Err(problems.into_iter().map(|(_, problem)| problem).collect());
    }
    let later_first = parts.iter().rev();
    let settings = later_first.fold(Settings::default(), |under, (_, over)| under.with(&over.settings));
    Ok(Merged { settings, parts })
}

fn of_source(wrong: &Wrong) -> (Source, Problem) {
    let problem = problem(&names(std::iter::once(&wrong.source)), wrong.message.clone(), REFUSED);
    (wrong.source.clone(), problem)
}

fn read(source: &Source, content: &[u8]) -> Result<UserData, Vec<String>> {
    let text = std::str::from_utf8(content).map_err(|error| vec![format!("it is not UTF-8: {error}")])?;
    // QEMU may add a zero byte.
    let text = text.trim_end_matches('\0');
    let read = if source.is_net_toml() { UserData::read_net_toml(text) } else { UserData::read(text) };
    read.map_err(|mistakes| mistakes.0.iter().map(ToString::to_string).collect())
}

pub(super) fn problem(source: &str, message: String, hint: &str) -> Problem {
    Problem {
        source: "user-data".to_owned(),
        subject: format!("user data from {source}"),
        message,
        hint: hint.to_owned(),
    }
}

impl Merged {
    pub(super) fn names(&self) -> String {
        names(self.parts.iter().map(|(source, _)| source))
    }

    /// What the API does not take, each line a mistake: `KEY: REASON`. It knows the whole, and we know who said which part.
    pub(super) fn refused(&self, text: &str) -> Vec<Problem> {
        let mistakes = text.lines().filter(|line| !line.trim().is_empty());
        mistakes.map(|line| self.refused_line(line)).collect()
    }

    fn refused_line(&self, message: &str) -> Problem {
        let place = message.split_once(": ").and_then(|(key, _)| self.place_of(key));
        match place {
            Some((source, line)) => {
                problem(&names(std::iter::once(source)), format!("line {line}: {message}"), REFUSED)
            }
            None => problem(&self.names(), message.to_owned(), REFUSED),
        }
    }

    /// Who sets a key, or most of the tables around it: of several, the one that holds.
    fn place_of(&self, key: &str) -> Option<(&Source, usize)> {
        let places = self.parts.iter().filter_map(|(source, part)| Some((source, part.line_of(key)?)));
        // The last of equals is the maximum, so the list is turned round.
        let places: Vec<_> = places.collect();
        let best = places.into_iter().rev().max_by_key(|(_, (_, names))| *names);
        // All of them have the table `settings`.
        best.filter(|(_, (_, names))| *names > 1).map(|(source, (line, _))| (source, line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn collected(found: &[(Source, &str)]) -> Collected {
        let found =
            found.iter().map(|(source, text)| Found { source: source.clone(), content: (*text).into() });
        Collected { found: found.collect(), ..Collected::default() }
    }

    fn told(problems: &[Problem]) -> Vec<String> {
        problems.iter().map(|problem| format!("{}: {}", problem.subject, problem.message)).collect()
    }

    #[test]
    fn the_earlier_source_wins_for_each_key() {
        let disk = Source::NoCloud("vdb".to_owned());
        let merged = merge(&collected(&[
            (Source::FwCfg, "{\"settings\": {\"motd\": \"fw\", \"containers\": {\"web\": {\"command\": [\"x\"]}}}}"),
            (disk, "[settings]\nmotd = \"disk\"\n[settings.network]\nhostname = \"disk\"\n[settings.containers.web]\nimage = \"i\"\ncommand = [\"a\", \"b\"]\n"),
            (Source::StateFile, "[settings.network]\nhostname = \"state\"\n[settings.containers.db]\nimage = \"d\"\n"),
        ]))
        .unwrap();
        let expected = json!({
            "motd": "fw",
            "network": {"hostname": "disk"},
            "containers": {"web": {"image": "i", "command": ["x"]}, "db": {"image": "d"}},
        });
        assert_eq!(merged.settings.to_json(), expected);
        assert_eq!(merged.names(), "fw_cfg, the NoCloud disk vdb and /state/user-data.toml");
    }

    #[test]
    fn net_toml_lies_below_the_settings_beside_it() {
        let merged = merge(&collected(&[
            (Source::FwCfg, "[settings.network.interfaces.eno1]\ndhcp4 = false\n"),
            (
                Source::FwCfgNetToml,
                "version = 2\n[eno1]\ndhcp4 = true\n[eno1.static4]\naddresses = [\"10.0.0.5/24\"]\n",
            ),
            (Source::StateNetToml, "version = 1\n[eno2]\ndhcp6 = true\n"),
        ]))
        .unwrap();
        let interfaces = json!({
            "eno1": {"dhcp4": {"enabled": false}, "static4": {"addresses": ["10.0.0.5/24"]}},
            "eno2": {"dhcp6": {"enabled": true}},
        });
        assert_eq!(merged.settings.to_json(), json!({"network": {"interfaces": interfaces}}));
        let refused = merged.refused("settings.network.interfaces.eno1.static4.addresses: no");
        assert_eq!(
            told(&refused),
            [
                "user data from net.toml in fw_cfg: line 5: settings.network.interfaces.eno1.static4.addresses: no"
            ]
        );
        let problems =
            merge(&collected(&[(Source::StateNetToml, "version = 1\n[eno1]\ndchp4 = true\n")])).unwrap_err();
        assert!(
            told(&problems)[0].starts_with(
                "user data from /state/net.toml: line 3: settings.network.interfaces.eno1.dchp4"
            ),
            "{problems:?}"
        );
    }

    #[test]
    fn one_bad_source_keeps_all_away_and_all_mistakes_are_told() {
        let mut all = collected(&[
            (Source::CommandLine, "[settings]\nmotd = 1\n[settings.network]\nhostnme = \"a\"\n"),
            (Source::FwCfg, "[settings]\nmotd = \"fine\"\n"),
            (Source::StateFile, "{"),
        ]);
        all.found.push(Found { source: Source::Metadata, content: vec![0xff] });
        all.wrong.push(Wrong { source: Source::Smbios, message: "this is not base64".to_owned() });
        let problems = merge(&all).unwrap_err();
        for (told, expected) in told(&problems).iter().zip([
            "user data from the kernel command line: line 2: settings.motd: expected a string",
            "user data from the kernel command line: line 4: settings.network.hostnme: unknown key",
            "user data from SMBIOS: this is not base64",
            "user data from /state/user-data.toml: line 1: this is not JSON",
            "user data from the metadata service: it is not UTF-8",
        ]) {
            assert!(told.starts_with(expected), "{told}");
        }
        assert_eq!(problems.len(), 5);
        assert!(problems.iter().all(|problem| problem.hint.starts_with("no user data was applied")));
    }

    #[test]
    fn what_the_api_refuses_is_told_with_its_source_and_line() {
        let merged = merge(&collected(&[
            (Source::CommandLine, "[settings]\nmotd = \"a\"\n"),
            (Source::FwCfg, "[settings.containers.web]\npids = 1\n"),
            (Source::StateFile, "[settings.containers.web]\npids = 2\n\n[settings.containers.db]\n"),
        ]))
        .unwrap();
        let problems = merged.refused(
            "settings.containers.web.image: missing\nsettings.containers.db.image: missing\n\nsettings: too large\nno",
        );
        let all = "user data from the kernel command line, fw_cfg and /state/user-data.toml";
        assert_eq!(
            told(&problems),
            [
                "user data from fw_cfg: line 1: settings.containers.web.image: missing",
                "user data from /state/user-data.toml: line 4: settings.containers.db.image: missing",
                &format!("{all}: settings: too large"),
                &format!("{all}: no"),
            ]
        );
    }

    proptest! {
        #[test]
        fn hostile_sources_never_panic(contents in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..4), said in "\\PC{0,60}") {
            let found = contents.into_iter().map(|content| Found { source: Source::FwCfg, content });
            if let Ok(merged) = merge(&Collected { found: found.collect(), ..Collected::default() }) {
                merged.refused(&said);
            }
        }
    }
}
