//! How full the partitions are that the node writes to.

use init_control::Problem;
use std::io;
use std::path::Path;

/// Where data and state are mounted, with what to do when they are full.
const PLACES: [(&str, &str); 2] = [
    (
        "/data",
        "containers and logs are kept there: make containers write less, remove some, or give the machine a larger disk; \
         the partition grows with it at the next restart",
    ),
    (
        "/state",
        "settings are kept there: they cannot be changed until there is space; start the machine from a fresh disk",
    ),
];

/// What is free on a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    pub free: u64,
    pub total: u64,
}

impl Space {
    pub fn of(path: &Path) -> io::Result<Self> {
        let stat = nix::sys::statvfs::statvfs(path)?;
        let block = stat.fragment_size();
        Ok(Self { free: stat.blocks_available() * block, total: stat.blocks() * block })
    }

    /// Less than a fifth is free: what can be had again is to go.
    pub fn is_tight(self) -> bool {
        self.free < self.total / 5
    }

    /// Less than a twentieth is free, and less than 16 MiB.
    fn is_short(self) -> bool {
        self.free < (self.total / 20).min(16 << 20)
    }
}

/// What is full now.
pub fn problems() -> Vec<Problem> {
    let spaces =
        PLACES.iter().filter_map(|(path, hint)| Some((*path, *hint, Space::of(Path::new(path)).ok()?)));
    spaces.filter_map(|(path, hint, space)| problem(path, hint, space)).collect()
}

fn problem(path: &str, hint: &str, space: Space) -> Option<Problem> {
    space.is_short().then(|| Problem {
        source: "space".to_owned(),
        subject: path.to_owned(),
        message: format!("{path} is full: {} of {} MiB are free", space.free >> 20, space.total >> 20),
        hint: hint.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_tight_before_it_is_full() {
        let tight = |free: u64, total: u64| Space { free, total }.is_tight();
        assert!(tight(0, 100) && tight(19, 100) && !tight(20, 100) && !tight(100, 100));
    }

    #[test]
    fn a_partition_is_full_before_nothing_is_left() {
        let short = |free: u64, total: u64| Space { free: free << 20, total: total << 20 }.is_short();
        assert!(short(0, 32) && short(1, 32) && !short(2, 32));
        assert!(short(15, 100_000) && !short(16, 100_000));
        let problem = problem("/data", "do something", Space { free: 3 << 20, total: 96 << 20 }).unwrap();
        assert_eq!(problem.message, "/data is full: 3 of 96 MiB are free");
    }
}
