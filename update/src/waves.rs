//! Which part of a fleet may have an update when. Each node has a seed; a wave is a range of seeds and the time when it begins.
//! Within a wave the nodes come one after another, evenly until the next one begins; those of the last come at its beginning.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Seeds that there are: 0 to 2047, as with Bottlerocket.
pub const SEEDS: u32 = 2048;
/// Waves that an update can have.
const MOST_WAVES: usize = 64;

/// Where a node stands in its fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seed(u32);

impl Seed {
    /// `None` for what is no seed.
    pub fn new(seed: u32) -> Option<Self> {
        (seed < SEEDS).then_some(Self(seed))
    }

    /// The same one for the same bytes, spread evenly: of a hash of the node's identity, say.
    pub fn of_bytes(bytes: [u8; 4]) -> Self {
        Self(u32::from_be_bytes(bytes) % SEEDS)
    }

    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Seeds below `below`, from where the wave before it ends, and the time when it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wave {
    pub below: u32,
    #[serde(with = "timestamp")]
    pub start: Timestamp,
}

/// All waves of an update. Each node is in one of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Wave>", into = "Vec<Wave>")]
pub struct Waves(Vec<Wave>);

impl TryFrom<Vec<Wave>> for Waves {
    type Error = String;

    fn try_from(waves: Vec<Wave>) -> Result<Self, String> {
        if !(1..=MOST_WAVES).contains(&waves.len()) {
            return Err(format!("{} waves: there have to be 1 to {MOST_WAVES}", waves.len()));
        }
        for pair in waves.windows(2) {
            if pair[0].below >= pair[1].below || pair[0].start >= pair[1].start {
                return Err(format!(
                    "the wave below {} has to come after the one below {}, in seeds and in time",
                    pair[1].below, pair[0].below
                ));
            }
        }
        let (first, last) = (waves[0].below, waves[waves.len() - 1].below);
        if first == 0 || last != SEEDS {
            return Err(format!(
                "waves below {first} to {last}: they have to reach each seed, from 0 to below {SEEDS}"
            ));
        }
        Ok(Self(waves))
    }
}

impl From<Waves> for Vec<Wave> {
    fn from(waves: Waves) -> Self {
        waves.0
    }
}

impl Waves {
    /// When the node with this seed may have the update.
    pub fn release(&self, seed: Seed) -> Timestamp {
        let index = self.0.partition_point(|wave| wave.below <= seed.0);
        let Some(wave) = self.0.get(index) else { return Timestamp::MAX };
        let first = index.checked_sub(1).map_or(0, |before| self.0[before].below);
        let Some(next) = self.0.get(index + 1) else { return wave.start };
        let length = i128::from(next.start.as_second() - wave.start.as_second());
        // From the wave's first seed on, not from seed 0: Bottlerocket has later waves wait until the next one.
        let late = length * i128::from(seed.0 - first) / i128::from(wave.below - first);
        let late = i64::try_from(late).unwrap_or(i64::MAX);
        Timestamp::from_second(wave.start.as_second().saturating_add(late)).unwrap_or(next.start)
    }
}

/// A step of a schedule: from so many seconds after the start on, so much of the fleet in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    pub seconds: i64,
    pub percent: u32,
}

/// The waves of a schedule that begins at `start`.
pub fn schedule(start: Timestamp, steps: &[Step]) -> Result<Waves, String> {
    let wave = |step: &Step| {
        if step.percent > 100 {
            return Err(format!("{} % of a fleet are more than all of it", step.percent));
        }
        let begins = start.as_second().checked_add(step.seconds);
        let begins = begins.and_then(|second| Timestamp::from_second(second).ok());
        let start = begins.ok_or_else(|| format!("{} s after {start} is no time", step.seconds))?;
        Ok(Wave { below: step.percent * SEEDS / 100, start })
    };
    steps.iter().map(wave).collect::<Result<Vec<_>, String>>()?.try_into()
}

/// RFC 3339, in whole seconds.
mod timestamp {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(time)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = || de::Error::custom("not a time as RFC 3339 has it, such as 2026-11-24T12:00:00Z");
        if text.len() > 64 {
            return Err(wrong());
        }
        let time: Timestamp = text.parse().map_err(|_| wrong())?;
        Timestamp::from_second(time.as_second()).map_err(|_| wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const HOUR: i64 = 3600;

    fn start() -> Timestamp {
        "2026-11-24T12:00:00Z".parse().unwrap()
    }

    fn steps(steps: &[(i64, u32)]) -> Result<Waves, String> {
        let steps: Vec<Step> =
            steps.iter().map(|(hours, percent)| Step { seconds: hours * HOUR, percent: *percent }).collect();
        schedule(start(), &steps)
    }

    fn hours(waves: &Waves, seed: u32) -> i64 {
        (waves.release(Seed::new(seed).unwrap()).as_second() - start().as_second()) / HOUR
    }

    /// Bottlerocket multiplies by the seed itself: there, who is in the middle of a later wave waits until that wave is over.
    #[test]
    fn a_later_wave_is_spread_over_its_own_time() {
        let waves = steps(&[(0, 50), (10, 75), (20, 100)]).unwrap();
        assert_eq!([0, 512, 1023].map(|seed| hours(&waves, seed)), [0, 5, 9]);
        assert_eq!([1024, 1280, 1535].map(|seed| hours(&waves, seed)), [10, 15, 19]);
        assert_eq!([1536, 2047].map(|seed| hours(&waves, seed)), [20, 20]);
    }

    #[test]
    fn waves_that_leave_nodes_out_or_go_back_are_refused() {
        for (wrong, expected) in [
            (&[][..], "0 waves"),
            (&[(0, 50)], "they have to reach each seed"),
            (&[(0, 0), (1, 100)], "they have to reach each seed"),
            (&[(0, 50), (1, 50), (2, 100)], "has to come after"),
            (&[(5, 50), (5, 100)], "has to come after"),
            (&[(0, 101)], "more than all"),
        ] {
            let error = steps(wrong).unwrap_err();
            assert!(error.contains(expected), "{wrong:?}: {error}");
        }
        let wave = json!([{"below": 2048, "start": "tomorrow"}]);
        let error = serde_json::from_value::<Waves>(wave).unwrap_err().to_string();
        assert!(error.contains("RFC 3339"), "{error}");
    }

    proptest! {
        #[test]
        fn nobody_waits_longer_than_for_the_last_wave_and_nobody_overtakes(
            cuts in proptest::collection::btree_set(1u32..SEEDS, 0..8),
            gaps in proptest::collection::vec(1i64..1_000_000, 9),
        ) {
            let mut at = start().as_second();
            let bounds = cuts.into_iter().chain([SEEDS]);
            let waves: Vec<Wave> = bounds.zip(gaps).map(|(below, gap)| {
                at += gap;
                Wave { below, start: Timestamp::from_second(at).unwrap() }
            }).collect();
            let (first, last) = (waves[0].start, waves[waves.len() - 1].start);
            let waves = Waves::try_from(waves).unwrap();
            let releases: Vec<Timestamp> = (0..SEEDS).map(|seed| waves.release(Seed(seed))).collect();
            prop_assert!(releases.is_sorted());
            prop_assert_eq!(releases[0], first);
            prop_assert_eq!(releases[SEEDS as usize - 1], last);
            let text = serde_json::to_string(&waves).unwrap();
            prop_assert_eq!(serde_json::from_str::<Waves>(&text).unwrap(), waves);
        }
    }
}
