//! What programs take beside the containers that they run.

use std::fs;

/// Of processes, in KiB. Pages that several have count for each in its part (`pss`), or wholly (`rss`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Resident {
    pub(crate) pss: u64,
    pub(crate) rss: u64,
}

/// A field of `smaps_rollup` or `meminfo`, in KiB.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn of_process(pid: &str) -> Resident {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    Resident { pss: field(&text, "Pss"), rss: field(&text, "Rss") }
}

/// Of all processes that run one of these programs, by the names of their files.
pub(crate) fn of_programs(programs: &[&str]) -> Resident {
    let mut all = Resident::default();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(program) = fs::read_link(entry.path().join("exe")) else { continue };
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        if programs.contains(&&*name) {
            let one = of_process(&entry.file_name().to_string_lossy());
            all = Resident { pss: all.pss + one.pss, rss: all.rss + one.rss };
        }
    }
    all
}

/// What could still be had of the node, in KiB.
pub(crate) fn available() -> u64 {
    field(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemAvailable")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "Pss_Dirty:      3 kB\nPss:           120 kB\nRss: 500 kB\n";
        assert_eq!((field(text, "Pss"), field(text, "Rss"), field(text, "Swap")), (120, 500, 0));
    }
}
