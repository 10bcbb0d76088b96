//! User data: settings that the VMM, a disk or a metadata service brings, committed through the API once, at the node's first
//! boot. The sources and their order are in `docs/user-data.md` and [`source::Source`].

mod collect;
mod content;
mod merge;
mod metadata;
mod nocloud;
mod record;
mod smbios;
mod source;
mod words;

use init_control::Problem;
use settings::{Interfaces, Settings};
use std::path::Path;
use std::time::Duration;
use tokio::time::sleep;

use collect::Collected;
use merge::{Merged, problem};
use record::{RECORD, Record};
use source::{Source, names};

use crate::commit::{Failure, How, commit};

/// Between tries while the API cannot take it.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(10);

const PASSING: &str =
    "it is not applied yet, and tried again; if that goes on, /data/log/apiserver.log may say more";
const AGAIN: &str = "it was applied, and is applied again at the next restart, over what was set since: see whether /state is full";

/// Applies user data if there is some and none was applied before, and tells what is wrong with it. Tries until the API has taken
/// or refused it. True when something was applied; nothing of any source is when one has a mistake. When a metadata service is to
/// be asked, the network is begun with what the other sources say of it.
pub async fn apply_once(tell: impl Fn(Vec<Problem>), begin_network: impl Fn(Option<Interfaces>)) -> bool {
    let record = Record::read(Path::new(RECORD));
    let Ok(mut collected) = tokio::task::spawn_blocking(|| collect::collect(Path::new("/"))).await else {
        return false;
    };
    if let Some(record) = record {
        // The metadata service is not asked: nobody needs its answer, and a boot without it must not be slower.
        tell_differences(&record, &collected);
        return false;
    }
    if collected.metadata {
        let local = merge::merge(&collected).ok().and_then(|merged| merged.settings.network);
        begin_network(local.and_then(|network| network.interfaces));
        let answer = metadata::fetch().await;
        collected.add(Source::Metadata, answer);
    }
    let merged = match merge::merge(&collected) {
        Ok(merged) => merged,
        Err(problems) => {
            tell(problems);
            return false;
        }
    };
    if collected.found.is_empty() || !commit_patiently(&merged, &tell).await {
        return false;
    }
    eprintln!("<5>user data from {} applied", merged.names());
    // Cut off before this, the same is committed again at the next boot, to the same effect.
    let kept = Record::of(&collected.found).keep(Path::new(RECORD));
    let not_kept = kept.err().map(|error| {
        problem(&merged.names(), format!("cannot keep in {RECORD} that it was applied: {error}"), AGAIN)
    });
    tell(not_kept.into_iter().collect());
    true
}

/// What the sources below `root` say together, or everything that is wrong with them. The metadata service is not asked. Blocks.
pub fn settings_below(root: &Path) -> Result<Settings, Vec<Problem>> {
    merge::merge(&collect::collect(root)).map(|merged| merged.settings)
}

/// What was applied holds, whatever sources say now, so nothing of this is wrong with the node.
fn tell_differences(record: &Record, collected: &Collected) {
    let unreadable = collected.wrong.iter().map(|wrong| &wrong.source);
    let differing: Vec<&Source> = record.differing(&collected.found).chain(unreadable).collect();
    if !differing.is_empty() {
        eprintln!(
            "<5>user data from {} differs from what was applied at the first boot, and is not applied again: use apiclient apply",
            names(differing.into_iter())
        );
    }
}

/// Until the API has taken or refused it.
async fn commit_patiently(merged: &Merged, tell: &impl Fn(Vec<Problem>)) -> bool {
    let mut delay = FIRST_DELAY;
    loop {
        match commit("user-data", &merged.settings, How::Commit).await {
            Ok(()) => return true,
            Err(Failure::Refused(text)) => {
                tell(merged.refused(&text));
                return false;
            }
            Err(Failure::Passing(message)) => tell(vec![problem(&merged.names(), message, PASSING)]),
        }
        sleep(delay).await;
        delay = (delay * 2).min(LONGEST_DELAY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use collect::Collected;

    const DOCUMENT: &str = include_str!("../../../docs/user-data.md");

    /// Blocks of the document in one language.
    fn blocks(language: &str) -> Vec<&'static str> {
        let start = format!("```{language}\n");
        DOCUMENT.split(&start).skip(1).filter_map(|rest| rest.split("```").next()).collect()
    }

    fn assert_takes(source: Source, raw: Result<Vec<u8>, String>) {
        let mut collected = Collected::default();
        collected.add(source, raw.map(Some));
        let merged = merge::merge(&collected).unwrap_or_else(|problems| panic!("{problems:?}"));
        assert!(!settings::flatten(&merged.settings).is_empty());
        merged.settings.check().unwrap();
    }

    #[test]
    fn examples_in_the_document_are_user_data() {
        let (tables, json) = (blocks("toml"), blocks("json"));
        assert_eq!((tables.len(), json.len()), (1, 2));
        tables.iter().for_each(|text| assert_takes(Source::StateFile, Ok(text.as_bytes().to_vec())));
        for text in json {
            let value: serde_json::Value = serde_json::from_str(text).unwrap();
            // What MMDS holds, or user data.
            let text = value.pointer("/latest/user-data").map_or(text, |text| text.as_str().unwrap());
            assert_takes(Source::Metadata, Ok(text.as_bytes().to_vec()));
        }
    }

    #[test]
    fn words_in_the_document_are_understood() {
        let words = DOCUMENT.split("caisson.user-data=").skip(1).filter_map(|rest| {
            let word = rest.split(|c: char| !c.is_ascii_alphanumeric() && !"+/=".contains(c)).next();
            word.filter(|word| !word.is_empty())
        });
        let words: Vec<&str> = words.collect();
        assert_eq!(words.len(), 4);
        for word in words {
            let said = words::of_cmdline(&format!("quiet caisson.user-data={word}"));
            assert_takes(Source::CommandLine, said.user_data.unwrap());
        }
        assert_eq!(words::of_cmdline("caisson.metadata=ec2").metadata, Some(Ok(())));
    }

    #[test]
    fn mistakes_in_the_document_are_told_so() {
        let mut collected = Collected::default();
        let sources = [
            (Source::CommandLine, "[settings]\nmotd = 1\n"),
            (Source::FwCfg, "[settings]\nmotd = \"hello\"\n[settings.containers.web]\npids = \"many\"\n"),
        ];
        for (source, text) in sources {
            collected.add(source, Ok(Some(text.into())));
        }
        let told = merge::merge(&collected).unwrap_err();
        let told = told.iter().map(|problem| format!("{}: {}\n", problem.subject, problem.message));
        assert_eq!(blocks("text"), [told.collect::<String>()]);
    }
}
