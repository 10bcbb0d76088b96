//! Memory that is not needed any more is the node's again. glibc keeps what was freed for the next who asks (malloc(3), mallopt(3)): in
//! an arena for each thread, and more of it after each large piece that was freed, until the agent has for good what one pull took.

#![allow(unsafe_code)]

use nix::libc::{self, M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD};

/// Bytes: larger pieces are the kernel's again when they are freed, and so is what is free at the heap's end. glibc's own
/// values at a program's start, which it raises unless they were set.
const THRESHOLD: libc::c_int = 128 << 10;

/// One arena, and thresholds that stay. To be called before there are other threads.
pub fn be_thrifty() {
    for (parameter, value) in [(M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, THRESHOLD), (M_TRIM_THRESHOLD, THRESHOLD)]
    {
        // SAFETY: it takes two numbers, and changes how memory is got that is asked for later (mallopt(3)). What it refuses stays as it was.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Gives back what is free when it is dropped: after work that took much.
#[derive(Debug)]
pub struct GiveBack;

impl Drop for GiveBack {
    fn drop(&mut self) {
        // SAFETY: it takes no pointer, locks each arena, and gives back whole pages that are free (malloc_trim(3)).
        unsafe { libc::malloc_trim(0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anonymous_kib() -> u64 {
        let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
        let line = text.lines().find(|line| line.starts_with("Anonymous:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn what_was_freed_is_given_back() {
        let before = anonymous_kib();
        let mut pieces: Vec<Vec<u8>> = (0..32_000).map(|_| vec![1; 1000]).collect();
        // What is kept lies between what is freed, and at its end.
        let mut number = 0;
        pieces.retain(|_| {
            number += 1;
            number % 1000 == 0
        });
        let freed = anonymous_kib();
        drop(GiveBack);
        let after = anonymous_kib();
        assert!(
            freed > before + 20_000,
            "{before} KiB, then {freed}: glibc has changed, this module is not needed any more"
        );
        assert!(after < before + 5_000, "{before} KiB, then {freed} and {after}");
        assert_eq!(pieces.len(), 32);
    }
}
