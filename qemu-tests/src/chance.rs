//! How often and when a story does what it does at random.

use std::time::Duration;

/// How often: what the environment variable says, else `otherwise`.
#[track_caller]
pub fn times(variable: &str, otherwise: u32) -> u32 {
    std::env::var(variable).map_or(otherwise, |times| match times.parse() {
        Ok(times) => times,
        Err(_) => panic!("{variable}: {times:?} is not a number"),
    })
}

/// Other values in each process.
pub struct Chance(u64);

impl Chance {
    pub fn new() -> Self {
        Self(std::process::id().into())
    }

    /// A time below this one.
    pub fn below(&mut self, longest: Duration) -> Duration {
        // Knuth's generator (MMIX): its upper bits are good ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        longest.mul_f64((self.0 >> 40) as f64 / (1u64 << 24) as f64)
    }
}

impl Default for Chance {
    fn default() -> Self {
        Self::new()
    }
}
