//! Fuzzing: the targets of `fuzz/` with libFuzzer around them.
//!
//! cargo-fuzz wants a nightly compiler for its sanitizers. What guides a fuzzer is no part of them: which branches an input takes and
//! what it compares with what are LLVM's SanitizerCoverage, which stable rustc runs as a pass (`-Cpasses`). Memory is looked after
//! by Rust; arithmetic that overflows panics in the profiles `fuzz` and `dev`.

use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::cache::{Entry, Key, remove_tree};
use crate::command::{run_logged, run_quiet};
use crate::guest::{Rust, TARGET};
use crate::project::{self, Project};

/// Seconds for each target in what CI runs.
pub const SHORT: u32 = 4;
/// Above these libFuzzer ends the process. The targets look closer: at the memory and the processor time of one input.
const MOST_MEMORY_MIB: u32 = 1024;
const LONGEST_INPUT_SECONDS: u32 = 20;
/// The target that shows that the fuzzer sees (`PROBE` of fuzz/src/lib.rs), and the seconds that it has: it needs one.
const PROBE: &str = "probe";
const PROBING: u32 = 60;
/// Above these a corpus is gone through for inputs that add nothing any more: smaller ones have taken their place.
const MOST_INPUTS: usize = 4000;
/// Seconds that are spent on making a finding smaller.
const MINIMISE: u32 = 30;

/// What tells libFuzzer where an input goes (clang's SanitizerCoverage.rst), and what it is compared with (fuzz/src/compare.rs).
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    // Else short comparisons are made in place, and pass by the wrapped memcmp.
    "-Cllvm-args=-max-loads-per-memcmp=0",
    "-Clink-arg=-Wl,--wrap=memcmp,--wrap=bcmp",
];

/// What is compiled from the workspace into the targets.
const FOLDERS: &[&str] = &["fuzz", "host-agent", "apiserver", "settings", "update", "init/control", "docs"];

/// The program with all targets.
struct Fuzzer {
    program: PathBuf,
    targets: Vec<Target>,
    probe: Target,
    /// For the files of targets; in memory, where that can be: to flush a disk takes the most time.
    folder: tempfile::TempDir,
}

struct Target {
    name: String,
    /// Bytes of the largest input that is tried.
    largest: u32,
}

/// Fuzzes each target, or those that are named, for so many seconds. Fails at the first finding, and says how to see it again.
pub fn run(project: &Project, seconds: u32, names: &[String]) -> Result<()> {
    let fuzzer = Fuzzer::build(project, if seconds <= SHORT { Pace::Short } else { Pace::Long })?;
    let chosen: Vec<&Target> = match names {
        [] => fuzzer.targets.iter().collect(),
        names => names.iter().map(|name| fuzzer.target(name)).collect::<Result<_>>()?,
    };
    fuzzer.sees(project)?;
    chosen.into_iter().try_for_each(|target| fuzzer.look(project, target, seconds))
}

/// Runs one target with one input.
pub fn again(project: &Project, name: &str, input: &Path) -> Result<()> {
    let fuzzer = Fuzzer::build(project, Pace::Long)?;
    let target = fuzzer.target(name)?;
    let status = fuzzer.command(target).arg(input).status().context("cannot start the fuzzer")?;
    ensure!(status.success(), "{name}: {} is a finding ({status})", input.display());
    Ok(())
}

/// How the targets are compiled.
#[derive(Clone, Copy)]
enum Pace {
    /// For a few seconds each: what is compiled takes most of the time, and much of it is there from the compiling of tests.
    Short,
    Long,
}

impl Pace {
    fn profile(self) -> &'static str {
        match self {
            Self::Short => "dev",
            Self::Long => "fuzz",
        }
    }

    /// What compiles the targets, and the program that it makes.
    fn cargo(self, project: &Project) -> Result<(Command, PathBuf)> {
        let mut cargo = Command::new("cargo");
        cargo.args(["build", "--locked", "--profile", self.profile(), "--bin", "caisson-fuzz"]);
        cargo.args(["--features", "caisson-fuzz/libfuzzer"]);
        let program = match self {
            // The crates of others are those of the tests, which are not looked into: only our own have the flags.
            Self::Short => {
                let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
                let target = target.unwrap_or_else(|| project.sources.join("target"));
                cargo.env("RUSTC_WORKSPACE_WRAPPER", wrapper(&target)?);
                target.join("debug/caisson-fuzz")
            }
            // Not below `target`: most of this are the crates of others, and a new clone need not compile them again. With a target of their
            // own the flags do not reach build scripts.
            Self::Long => {
                let target = project.cache.scratch("fuzz")?;
                cargo
                    .args(["--package", "caisson-fuzz", "--target", TARGET])
                    .env("CARGO_TARGET_DIR", &target);
                cargo.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
                target.join(TARGET).join("fuzz/caisson-fuzz")
            }
        };
        cargo.env("CARGO_TERM_PROGRESS_WHEN", "never").current_dir(&project.sources);
        Ok((cargo, program))
    }
}

/// A program that cargo starts in rustc's place for crates of the workspace, and that adds the flags. Cargo sees them by its name only.
fn wrapper(folder: &Path) -> Result<PathBuf> {
    let flags = FLAGS.join(" ");
    let script = format!(
        "#!/bin/sh\ncase \" $* \" in *\" --crate-name build_script_build \"*) exec \"$@\" ;; esac\nexec \"$@\" {flags}\n"
    );
    let path = folder.join(format!("rustc-for-fuzzing-{}", &Key::new("wrapper 1").text(&script).hex()[..16]));
    let write = || {
        fs::create_dir_all(folder)?;
        fs::write(&path, &script)?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))
    };
    write().with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

fn key_of(project: &Project, rust: &Rust, profile: &str) -> Result<Key> {
    let mut key = Key::new("fuzz 3").text(rust.version()).text(&FLAGS.join(" ")).text(profile);
    key = key.file(&project.sources.join("Cargo.toml"))?.file(&project.sources.join("Cargo.lock"))?;
    for folder in FOLDERS {
        key = key.tree(&project.sources.join(folder))?;
    }
    Ok(key)
}

fn compile(project: &Project, pace: Pace) -> Result<Entry> {
    let rust = Rust::find(project)?;
    let key = key_of(project, &rust, pace.profile())?;
    let wanted = key.hex();
    project.cache.step("fuzz", "compiling the fuzz targets, some minutes when nothing is there", key, |out| {
        ensure!(
            Command::new("c++").arg("--version").output().is_ok_and(|output| output.status.success()),
            "libFuzzer is C++, and there is no compiler for it (c++): apt install g++"
        );
        let log = project.log("fuzz");
        let _ = fs::remove_file(&log);
        let (mut cargo, program) = pace.cargo(project)?;
        run_logged(&mut cargo, "fuzz: compiling", &log, None)?;
        ensure!(
            key_of(project, &rust, pace.profile())?.hex() == wanted,
            "the sources changed while the fuzz targets were compiled: run it again"
        );
        fs::copy(&program, out.join("caisson-fuzz"))
            .with_context(|| format!("{} was not built", program.display()))?;
        Ok(())
    })
}

impl Fuzzer {
    fn build(project: &Project, pace: Pace) -> Result<Self> {
        let program = compile(project, pace)?.path.join("caisson-fuzz");
        let list = run_quiet(&mut Command::new(&program), "asking the fuzzer for its targets")?;
        let target = |line: &str| {
            let (name, largest) = line.split_once(' ')?;
            Some(Target { name: name.to_owned(), largest: largest.parse().ok()? })
        };
        let targets: Vec<Target> = String::from_utf8_lossy(&list).lines().filter_map(target).collect();
        ensure!(!targets.is_empty(), "the fuzzer has no targets");
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let folder = folder.context("cannot make a folder for the files of fuzz targets")?;
        Ok(Self { program, targets, probe: Target { name: PROBE.to_owned(), largest: 64 }, folder })
    }

    fn target(&self, name: &str) -> Result<&Target> {
        self.targets.iter().chain([&self.probe]).find(|target| target.name == name).with_context(|| {
            let known: Vec<&str> = self.targets.iter().map(|target| target.name.as_str()).collect();
            format!("there is no fuzz target {name:?}: there are {}", known.join(", "))
        })
    }

    /// The fuzzer for one target, with its bounds.
    fn command(&self, target: &Target) -> Command {
        let mut command = Command::new(&self.program);
        command.env("CAISSON_FUZZ_TARGET", &target.name).env("TMPDIR", self.folder.path());
        // The place of a panic is enough; names of frames would be sought for each.
        command.env("RUST_BACKTRACE", "0");
        command.arg(format!("-rss_limit_mb={MOST_MEMORY_MIB}"));
        command.arg(format!("-timeout={LONGEST_INPUT_SECONDS}"));
        command
    }

    /// Fails when the fuzzer does not find what is to be found.
    fn sees(&self, project: &Project) -> Result<()> {
        let found = folder_of_findings(project, PROBE)?;
        let mut probe = self.command(&self.probe);
        probe.arg(format!("-max_total_time={PROBING}")).arg(format!("-artifact_prefix={}/", found.display()));
        let (_, text) = logged(&mut probe, &project.log("fuzz-probe"))?;
        ensure!(
            first_file(&found)?.is_some(),
            "the fuzzer did not find the one input that it has to find: does this rustc instrument code as FLAGS of build/src/fuzz.rs ask?\n{text}"
        );
        remove_tree(&found)
    }

    /// Goes on from the inputs that earlier runs found, and keeps those that it finds.
    fn look(&self, project: &Project, target: &Target, seconds: u32) -> Result<()> {
        let corpus = project.cache.scratch(&format!("corpus/{}", target.name))?;
        self.tidy(target, &corpus)?;
        let seeds = tempfile::tempdir().context("cannot make a folder for the inputs to begin with")?;
        let mut write = self.command(target);
        run_quiet(write.env("CAISSON_FUZZ_SEEDS", seeds.path()), "writing the inputs to begin with")?;
        let found = folder_of_findings(project, &target.name)?;
        let log = project.log(&format!("fuzz-{}", target.name));
        let begun = Instant::now();
        let mut fuzz = self.command(target);
        fuzz.arg(format!("-max_total_time={seconds}"))
            .arg(format!("-max_len={}", target.largest))
            .arg(format!("-artifact_prefix={}/", found.display()))
            .arg("-print_final_stats=1")
            .arg(&corpus)
            .arg(seeds.path());
        let (ended_well, text) = logged(&mut fuzz, &log)?;
        if !ended_well {
            let input = first_file(&found)?.with_context(|| format!("the fuzzer failed:\n{text}"))?;
            let smallest = self.minimise(target, &input, &found.join("smallest"));
            bail!(
                "{}: this does not hold: {}\nThe input, {} bytes: {}\nTo run it again: cargo caisson test --fuzz-input {} {}\nThe whole output: {}",
                target.name,
                reason(&text),
                fs::metadata(&smallest).map_or(0, |file| file.len()),
                fs::read(&smallest)
                    .unwrap_or_default()
                    .escape_ascii()
                    .to_string()
                    .chars()
                    .take(2000)
                    .collect::<String>(),
                smallest.display(),
                target.name,
                log.display()
            );
        }
        let (runs, coverage) = progress(&text);
        let inputs = fs::read_dir(&corpus)?.count();
        eprintln!(
            "   {}: {runs} inputs in {:.0} s, {coverage} branches, {inputs} inputs kept, no finding",
            target.name,
            begun.elapsed().as_secs_f64()
        );
        Ok(())
    }

    /// Takes from a large corpus what adds nothing.
    fn tidy(&self, target: &Target, corpus: &Path) -> Result<()> {
        if fs::read_dir(corpus)?.count() <= MOST_INPUTS {
            return Ok(());
        }
        let tidied = corpus.with_extension("tidied");
        remove_tree(&tidied)?;
        fs::create_dir(&tidied).with_context(|| format!("cannot make {}", tidied.display()))?;
        let mut merge = self.command(target);
        run_quiet(merge.arg("-merge=1").arg(&tidied).arg(corpus), "tidying the corpus")?;
        remove_tree(corpus)?;
        fs::rename(&tidied, corpus).with_context(|| format!("cannot rename {}", tidied.display()))
    }

    /// A smaller input with a finding, if there is one.
    fn minimise(&self, target: &Target, input: &Path, smallest: &Path) -> PathBuf {
        let mut minimise = self.command(target);
        minimise
            .arg("-minimize_crash=1")
            .arg(format!("-max_total_time={MINIMISE}"))
            .arg(format!("-exact_artifact_path={}", smallest.display()))
            .arg(input);
        // What counts is whether a file was written, and that it is a finding.
        let _ = minimise.output();
        let holds = self.command(target).arg(smallest).output().is_ok_and(|output| output.status.success());
        if smallest.is_file() && !holds { smallest.to_owned() } else { input.to_owned() }
    }
}

/// Where the findings of a target go; empty.
fn folder_of_findings(project: &Project, target: &str) -> Result<PathBuf> {
    let folder = project::target_dir(&project.sources).join("fuzz").join(target);
    remove_tree(&folder)?;
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

fn first_file(folder: &Path) -> Result<Option<PathBuf>> {
    Ok(fs::read_dir(folder)?.next().transpose()?.map(|entry| entry.path()))
}

/// Runs the fuzzer, and returns whether it ended well and what it said, which is also in `log`. What services would write to their
/// log (`<6>…`) is left out: it is as many lines as there are inputs.
fn logged(fuzzer: &mut Command, log: &Path) -> Result<(bool, String)> {
    let mut child =
        fuzzer.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().context("cannot start the fuzzer")?;
    if let Some(folder) = log.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut text = String::new();
    for line in BufReader::new(child.stderr.take().context("the fuzzer has no output")?).split(b'\n') {
        let line = line?;
        if !line.starts_with(b"<") {
            writeln!(file, "{}", String::from_utf8_lossy(&line))?;
            text += &String::from_utf8_lossy(&line);
            text.push('\n');
        }
    }
    Ok((child.wait()?.success(), text))
}

/// What the target or libFuzzer said of a finding.
fn reason(log: &str) -> String {
    let lines = || log.lines().filter(|line| !line.is_empty());
    let panic = lines().skip_while(|line| !line.contains("panicked at ")).take(3);
    let panic: Vec<&str> =
        panic.take_while(|line| !line.starts_with("note:") && !line.starts_with("==")).collect();
    match lines().find(|line| line.contains("ERROR: libFuzzer:")) {
        _ if !panic.is_empty() => panic.join(" "),
        Some(line) => line.to_owned(),
        None => "see the output".to_owned(),
    }
}

/// How many inputs were run, and how many branches of the code they took: `#1234 DONE cov: 567 ft: …`.
fn progress(log: &str) -> (u64, u64) {
    let after =
        |line: &str, word: &str| line.split_once(word)?.1.split_whitespace().next()?.parse::<u64>().ok();
    let last =
        log.lines().rev().find(|line| line.starts_with('#') && line.contains("cov: ")).unwrap_or_default();
    (after(last, "#").unwrap_or(0), after(last, "cov: ").unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A change in a crate that is compiled into the targets has to change their key.
    #[test]
    fn the_folders_are_all_that_the_targets_are_made_of() {
        let sources = project::sources().unwrap();
        let read =
            |path: &Path| -> toml::Value { toml::from_str(&fs::read_to_string(path).unwrap()).unwrap() };
        let workspace = read(&sources.join("Cargo.toml"));
        for folder in FOLDERS {
            let manifest = sources.join(folder).join("Cargo.toml");
            // Documents are no crate.
            let manifest = if manifest.is_file() { read(&manifest) } else { continue };
            for (name, _) in
                manifest.get("dependencies").and_then(toml::Value::as_table).into_iter().flatten()
            {
                let path = workspace["workspace"]["dependencies"].get(name).and_then(|it| it.get("path"));
                let Some(path) = path.and_then(toml::Value::as_str) else { continue };
                let covered = FOLDERS.iter().any(|folder| Path::new(path).starts_with(folder));
                assert!(covered, "the targets are made of {path} too");
            }
        }
    }

    #[test]
    fn what_the_fuzzer_writes_is_understood() {
        let log = "#2\tINITED cov: 10 ft: 10 corp: 1/1b\n#4194304\tpulse  cov: 12 ft: 13\n#4200000\tDONE   cov: 12 ft: 13 corp: 3/15b\nDone\n";
        assert_eq!(progress(log), (4_200_000, 12));
        assert_eq!(progress(""), (0, 0));
        let log = "#5\tNEW\nthread 'main' panicked at fuzz/src/keys.rs:5:9:\nassertion failed\nnote: run with\n==1== ERROR: libFuzzer: deadly signal\n";
        assert_eq!(reason(log), "thread 'main' panicked at fuzz/src/keys.rs:5:9: assertion failed");
        assert_eq!(
            reason("==1== ERROR: libFuzzer: timeout after 20 seconds\n"),
            "==1== ERROR: libFuzzer: timeout after 20 seconds"
        );
    }
}
