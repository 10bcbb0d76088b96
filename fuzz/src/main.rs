//! The targets with libFuzzer around them, which brings its own `main`.
//!
//! `CAISSON_FUZZ_TARGET` says which target; without it, they are listed: name, and bytes of the largest input. With
//! `CAISSON_FUZZ_SEEDS` the inputs to begin with are written to that folder, and nothing else is done.

#![no_main]

mod compare;

use fuzz::{TARGETS, Target};
use std::path::Path;
use std::process::exit;
use std::sync::OnceLock;

static CHOSEN: OnceLock<&'static Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(
    init: {
        choose();
    },
    |input: &[u8]| choose().hold(input)
);

fn choose() -> &'static Target {
    CHOSEN.get_or_init(|| {
        let Ok(name) = std::env::var("CAISSON_FUZZ_TARGET") else {
            TARGETS.iter().for_each(|target| println!("{} {}", target.name, target.largest));
            exit(0);
        };
        let Some(target) = Target::named(&name) else {
            eprintln!("there is no target {name:?}");
            exit(2);
        };
        if let Some(folder) = std::env::var_os("CAISSON_FUZZ_SEEDS") {
            let folder = Path::new(&folder);
            let write = |(number, seed)| std::fs::write(folder.join(format!("{number:03}")), seed);
            if let Err(error) = target.seeds().iter().enumerate().try_for_each(write) {
                eprintln!("cannot write to {}: {error}", folder.display());
                exit(1);
            }
            exit(0);
        }
        target
    })
}
