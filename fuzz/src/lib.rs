//! What reads input from outside, and what must hold whatever comes. `cargo caisson test --fuzz` lets libFuzzer look for inputs
//! with which something does not; CONTRIBUTING.md says how, and how to add a target.
//!
//! A target is a function that panics when something does not hold. It gets any bytes at all, and has inputs to begin with, made of
//! the examples in the documents: they are what people write.

mod advertised;
mod dhcp;
mod disk;
mod examples;
mod http;
mod images;
mod keys;
mod net_toml;
mod settings_text;
mod updates;
mod user_data;
mod websocket;

use nix::time::{ClockId, clock_gettime};
use peak_alloc::PeakAlloc;
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Processor time for one input; an ordinary one takes a thousandth. Whoever sends it again and again has no more for each.
const SLOWEST: Duration = Duration::from_secs(1);

/// One way in.
#[derive(Debug)]
pub struct Target {
    pub name: &'static str,
    /// Panics when something does not hold.
    check: fn(&[u8]),
    /// Inputs to begin with.
    seeds: fn() -> Vec<Vec<u8>>,
    /// Bytes of the largest input that is tried.
    pub largest: usize,
    /// Bytes that one input may take of the memory at once.
    memory: usize,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "settings-json",
        check: settings_text::json,
        seeds: settings_text::json_seeds,
        largest: 16 << 10,
        memory: 16 << 20,
    },
    Target {
        name: "settings-toml",
        check: settings_text::toml,
        seeds: settings_text::toml_seeds,
        largest: 16 << 10,
        memory: 16 << 20,
    },
    Target { name: "key-paths", check: keys::check, seeds: keys::seeds, largest: 4 << 10, memory: 4 << 20 },
    Target {
        name: "user-data",
        check: user_data::check,
        seeds: user_data::seeds,
        largest: 16 << 10,
        memory: 16 << 20,
    },
    Target {
        name: "net-toml",
        check: net_toml::check,
        seeds: net_toml::seeds,
        largest: 16 << 10,
        memory: 16 << 20,
    },
    Target {
        name: "manifest",
        check: updates::manifest,
        seeds: updates::manifest_seeds,
        largest: 16 << 10,
        memory: 16 << 20,
    },
    Target {
        name: "patch",
        check: updates::patch,
        seeds: updates::patch_seeds,
        largest: 16 << 10,
        memory: 16 << 20,
    },
    Target {
        name: "chunks",
        check: updates::chunks,
        seeds: updates::chunks_seeds,
        largest: 16 << 10,
        memory: 16 << 20,
    },
    Target {
        name: "boot-names",
        check: updates::boot_names,
        seeds: updates::boot_names_seeds,
        largest: 1 << 10,
        memory: 4 << 20,
    },
    Target {
        name: "partition-table",
        check: disk::partition_table,
        seeds: disk::partition_table_seeds,
        largest: 40 << 10,
        memory: 4 << 20,
    },
    Target {
        name: "signature",
        check: disk::signature,
        seeds: disk::signature_seeds,
        largest: 4 << 10,
        memory: 1 << 20,
    },
    Target {
        name: "layer",
        check: images::layer,
        seeds: images::layer_seeds,
        largest: 64 << 10,
        memory: 16 << 20,
    },
    Target {
        name: "packed-layer",
        check: images::packed_layer,
        seeds: images::packed_layer_seeds,
        largest: 16 << 10,
        memory: 80 << 20,
    },
    Target {
        name: "image-config",
        check: images::image_config,
        seeds: images::image_config_seeds,
        largest: 16 << 10,
        memory: 16 << 20,
    },
    Target {
        name: "image-manifest",
        check: images::image_manifest,
        seeds: images::image_manifest_seeds,
        largest: 16 << 10,
        memory: 16 << 20,
    },
    Target {
        name: "image-reference",
        check: images::image_reference,
        seeds: images::image_reference_seeds,
        largest: 1 << 10,
        // The expression of the client library, once.
        memory: 32 << 20,
    },
    Target {
        name: "health-answer",
        check: images::health_answer,
        seeds: images::health_answer_seeds,
        largest: 16 << 10,
        memory: 16 << 20,
    },
    Target { name: "dhcp", check: dhcp::check, seeds: dhcp::seeds, largest: 1500, memory: 8 << 20 },
    Target {
        name: "advertisements",
        check: advertised::check,
        seeds: advertised::seeds,
        largest: 4 << 10,
        memory: 4 << 20,
    },
    Target { name: "http", check: http::check, seeds: http::seeds, largest: 16 << 10, memory: 16 << 20 },
    Target {
        name: "websocket",
        check: websocket::check,
        seeds: websocket::seeds,
        largest: 80 << 10,
        memory: 16 << 20,
    },
];

/// Does not hold for one input, which nobody finds who does not see how far into it the comparisons come. It shows that the fuzzer
/// sees: with another compiler it may look for nothing, and find nothing.
pub const PROBE: Target = Target {
    name: "probe",
    check: |input| assert!(!input.strip_prefix(b"caisson-").is_some_and(|rest| rest.ends_with(b"magic"))),
    seeds: Vec::new,
    largest: 64,
    memory: 1 << 20,
};

impl Target {
    pub fn named(name: &str) -> Option<&'static Self> {
        TARGETS.iter().chain([&PROBE]).find(|target| target.name == name)
    }

    /// Inputs to begin with.
    pub fn seeds(&self) -> Vec<Vec<u8>> {
        (self.seeds)()
    }

    /// Panics when something does not hold for an input, or when it takes too much time or memory.
    pub fn hold(&self, input: &[u8]) {
        ALLOCATOR.reset_peak_usage();
        let (memory, begun) = (ALLOCATOR.current_usage(), processor_time());
        (self.check)(input);
        let (memory, time) = (ALLOCATOR.peak_usage().saturating_sub(memory), processor_time() - begun);
        assert!(memory <= self.memory, "{} bytes of input took {memory} bytes of memory", input.len());
        assert!(time <= SLOWEST, "{} bytes of input took {time:?}", input.len());
    }
}

/// Of this thread. Unlike the time of day it does not depend on who else is busy.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

/// Where a target may keep files. libFuzzer ends its process at once, so whoever starts it (build/src/fuzz.rs) removes `TMPDIR`.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap_or_else(|error| panic!("cannot make a folder: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test, as the memory is counted of the whole process.
    #[test]
    fn all_holds_for_the_examples_whole_cut_and_damaged() {
        for target in TARGETS {
            let seeds = target.seeds();
            assert!(!seeds.is_empty(), "{} has no examples", target.name);
            for seed in seeds {
                assert!(seed.len() <= target.largest, "{}: {} bytes", target.name, seed.len());
                target.hold(&seed);
                for at in (0..seed.len()).step_by(1 + seed.len() / 4) {
                    target.hold(&seed[..at]);
                    let mut damaged = seed.clone();
                    damaged[at] ^= 0x20;
                    target.hold(&damaged);
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "bytes of memory")]
    fn what_takes_too_much_memory_is_told() {
        let check = |input: &[u8]| drop(std::hint::black_box(vec![1u8; input.len() << 10]));
        Target { name: "large", check, seeds: Vec::new, largest: 1, memory: 1 << 20 }.hold(&[0; 4 << 10]);
    }
}
