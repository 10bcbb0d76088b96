//! What `apiclient` does with commits on trial and dry runs.

use clap::Args;
use hyper::Method;
use serde_json::Value;

use crate::cli::{Api, Failure};
use crate::trial::SECONDS;
use crate::trials::Shown;

/// How a change is committed.
#[derive(Args, Default)]
pub(crate) struct How {
    /// Take it back after so long (30s, 5m, 1h) unless `apiclient confirm` says that it works, or at once when it cannot be
    /// applied
    #[arg(long = "try", value_name = "TIME", value_parser = seconds, conflicts_with = "dry_run")]
    pub(crate) trial: Option<u32>,
    /// Only show what would change, or why it would be refused
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Only if this generation is the newest
    #[arg(skip)]
    pub(crate) after: Option<u64>,
}

/// Of 30s, 5m, 1h, or several in a row: 1h30m.
pub(crate) fn seconds(text: &str) -> Result<u32, String> {
    let wrong =
        || format!("{text:?} is not a time such as 30s, 5m or 1h, at most {} h", SECONDS.end() / 3600);
    let (mut total, mut rest) = (0u32, text);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, after) = rest.split_at(digits);
        let unit = after.chars().next().ok_or_else(wrong)?;
        let factor = [('s', 1), ('m', 60), ('h', 3600)].into_iter().find(|(known, _)| *known == unit);
        let (_, factor) = factor.ok_or_else(wrong)?;
        let number: u32 = number.parse().map_err(|_| wrong())?;
        total = number.checked_mul(factor).and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
        rest = &after[unit.len_utf8()..];
    }
    Some(total).filter(|total| SECONDS.contains(total)).ok_or_else(wrong)
}

fn time(seconds: u64) -> String {
    let parts = [(seconds / 3600, "h"), (seconds / 60 % 60, "min"), (seconds % 60, "s")];
    let parts: Vec<String> =
        parts.iter().filter(|(count, _)| *count > 0).map(|(count, unit)| format!("{count} {unit}")).collect();
    if parts.is_empty() { "0 s".to_owned() } else { parts.join(" ") }
}

fn ask(api: &Api) -> Result<Option<Shown>, Failure> {
    api.read(api.get("/actions/trial")?)
}

/// What is said after a commit on trial.
pub(crate) fn begun(api: &Api) -> Result<String, Failure> {
    Ok(match ask(api)? {
        Some(shown) => format!(
            "{}: if it works, say so with: apiclient confirm --generation {}",
            told(&shown),
            shown.generation
        ),
        None => "nothing changed, so nothing is on trial".to_owned(),
    })
}

fn told(shown: &Shown) -> String {
    let Shown { generation, before, seconds_left, .. } = shown;
    let back =
        if *before == 0 { "the defaults come".to_owned() } else { format!("generation {before} comes") };
    format!("generation {generation} is on trial, and {back} back in {}", time(*seconds_left))
}

pub(crate) fn show(api: &Api) -> Result<String, Failure> {
    Ok(ask(api)?.map_or("no generation is on trial".to_owned(), |shown| told(&shown)))
}

pub(crate) fn confirm(api: &Api, generation: Option<u64>) -> Result<String, Failure> {
    let shown = ask(api)?;
    // The one that was shown, not one that began since.
    let number = generation.or(shown.map(|shown| shown.generation));
    let query = number.map(|number| format!("?generation={number}")).unwrap_or_default();
    api.send(Method::POST, &format!("/actions/confirm{query}"), None)?;
    Ok(number.map_or_else(String::new, |number| format!("generation {number} stays")))
}

pub(crate) fn revert(api: &Api) -> Result<String, Failure> {
    let answer = api.send(Method::DELETE, "/actions/trial", None)?;
    let keys: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let keys: Vec<String> = api.read(keys)?;
    Ok(format!("taken back: {}", keys.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_people_write_them() {
        for (text, expected) in
            [("30s", 30), ("5m", 300), ("1h", 3600), ("1h30m", 5400), ("90s", 90), ("24h", 86_400)]
        {
            assert_eq!(seconds(text), Ok(expected), "{text}");
        }
        for wrong in
            ["", "0s", "60", "s", "1d", "-5s", "1 m", "25h", "99999999999h", "4000000000h", "5é", "1.5h"]
        {
            let said = seconds(wrong).unwrap_err();
            assert!(said.contains("30s, 5m or 1h"), "{said}");
        }
        assert_eq!((time(59), time(3661), time(7200), time(0)).3, "0 s");
        assert_eq!(
            (time(59).as_str(), time(3661).as_str(), time(7200).as_str()),
            ("59 s", "1 h 1 min 1 s", "2 h")
        );
    }
}
