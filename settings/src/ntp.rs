//! `settings.ntp`: who is asked for the time, and how.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::net::IpAddr;

use crate::parse::Mistake;
use crate::scalar::{checked_string, is_domain, shown};

/// Each further one adds little: four find one that is wrong.
const MOST_SERVERS: usize = 8;
/// Seconds between questions, as a power of two.
const INTERVALS: std::ops::RangeInclusive<u8> = 1..=10;

/// The time by NTP. ntpd-rs runs only when there are servers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Ntp {
    /// NTP servers, at most 8, instead of those that DHCP gives. A name is one server, also that of a pool. The clock follows
    /// what more than half of those that answer agree on. Without a server nobody is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!(["time.example.com", "10.0.0.123"]), extend("x-default" = "DHCP's"))]
    pub time_servers: Option<Vec<TimeServer>>,
    /// How servers are asked, those of settings and those of DHCP. `minpoll N` and `maxpoll N`: the shortest and the longest time
    /// between questions is 2^N seconds, N from 1 to 10. `iburst`: the first eight questions are 2 seconds apart, so that the clock
    /// is right soon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        example = json!(["iburst", "minpoll 4", "maxpoll 8"]),
        extend("x-default" = "`iburst`, and from 16 s to 1024 s between questions")
    )]
    pub options: Option<Vec<NtpOption>>,
}

checked_string!(
    /// A host or an IP address, without a port.
    TimeServer,
    |text| {
        if text.parse::<IpAddr>().is_ok() || is_domain(text) {
            return Ok(());
        }
        Err(format!("{} is not an NTP server: write a host or an IP address, such as time.example.com, without a port", shown(text)))
    }
);

checked_string!(
    /// `iburst`, `minpoll N` or `maxpoll N`, N from 1 to 10.
    NtpOption,
    |text| match NtpChoice::of(text) {
        Some(_) => Ok(()),
        None => Err(format!(
            "{} is not an option that ntpd-rs can follow: write iburst, minpoll N or maxpoll N, N from {} to {}",
            shown(text), INTERVALS.start(), INTERVALS.end()
        )),
    }
);

/// What an option asks for; intervals are powers of two of seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NtpChoice {
    FastStart,
    ShortestInterval(u8),
    LongestInterval(u8),
}

impl NtpChoice {
    fn of(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split(' ').collect();
        let interval = |number: &str| number.parse().ok().filter(|number| INTERVALS.contains(number));
        match words.as_slice() {
            ["iburst"] => Some(Self::FastStart),
            ["minpoll", number] => interval(number).map(Self::ShortestInterval),
            ["maxpoll", number] => interval(number).map(Self::LongestInterval),
            _ => None,
        }
    }
}

impl Ntp {
    /// What the options ask for; `None` when there are none.
    pub fn choices(&self) -> Option<Vec<NtpChoice>> {
        let options = self.options.as_ref()?;
        Some(options.iter().filter_map(|option| NtpChoice::of(option)).collect())
    }

    pub(crate) fn mistakes(&self) -> Vec<Mistake> {
        let mut mistakes = Vec::new();
        let count = self.time_servers.as_ref().map_or(0, Vec::len);
        if count > MOST_SERVERS {
            let reason = format!("{count} are more than the {MOST_SERVERS} that are asked");
            mistakes.push(Mistake::new("settings.ntp.time-servers", reason));
        }
        let choices = self.choices().unwrap_or_default();
        let mut wrong = |reason: String| mistakes.push(Mistake::new("settings.ntp.options", reason));
        let kinds: Vec<_> = choices.iter().map(std::mem::discriminant).collect();
        if (1..kinds.len()).any(|at| kinds[..at].contains(&kinds[at])) {
            wrong("an option is there twice: write each once".to_owned());
        }
        let find = |pick: fn(&NtpChoice) -> Option<u8>| choices.iter().find_map(pick);
        let shortest =
            find(|choice| if let NtpChoice::ShortestInterval(n) = choice { Some(*n) } else { None });
        let longest = find(|choice| if let NtpChoice::LongestInterval(n) = choice { Some(*n) } else { None });
        if let (Some(shortest), Some(longest)) = (shortest, longest)
            && shortest > longest
        {
            wrong(format!("minpoll {shortest} is more than maxpoll {longest}"));
        }
        mistakes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::from_json;

    #[test]
    fn what_would_not_be_followed_is_refused_with_what_would() {
        for (ntp, expected) in [
            (json!({"time-servers": vec!["a"; 9]}), "settings.ntp.time-servers: 9 are more than the 8"),
            (json!({"time-servers": []}), "settings.ntp.time-servers: expected 1 to 256 items"),
            (
                json!({"time-servers": ["a:123"]}),
                "settings.ntp.time-servers[0]: \"a:123\" is not an NTP server",
            ),
            (json!({"time-servers": ["http://a"]}), "without a port"),
            (json!({"time-servers": ["a\"\n[x]"]}), "is not an NTP server"),
            (json!({"options": ["prefer"]}), "settings.ntp.options[0]: \"prefer\" is not an option"),
            (json!({"options": ["minpoll 0"]}), "write iburst, minpoll N or maxpoll N, N from 1 to 10"),
            (json!({"options": ["minpoll"]}), "is not an option"),
            (json!({"options": ["maxpoll 11"]}), "N from 1 to 10"),
            (json!({"options": ["minpoll 8", "maxpoll 4"]}), "minpoll 8 is more than maxpoll 4"),
            (json!({"options": ["minpoll 4", "minpoll 5"]}), "twice"),
            (json!({"logging": ["tracking"]}), "settings.ntp.logging"),
        ] {
            let error = from_json(&json!({"ntp": ntp})).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn options_say_what_they_ask_for() {
        let ntp = json!({"time-servers": ["fd00::1", "10.0.0.1", "a.example"], "options": ["iburst", "minpoll 3", "maxpoll 10"]});
        let ntp = from_json(&json!({"ntp": ntp})).unwrap().ntp.unwrap();
        let asked = [NtpChoice::FastStart, NtpChoice::ShortestInterval(3), NtpChoice::LongestInterval(10)];
        assert_eq!(ntp.choices().as_deref(), Some(&asked[..]));
        assert_eq!(Ntp::default().choices(), None);
    }
}
