//! The kernel: Debian's `linux-source-6.12`, our fragments over `allnoconfig`, everything built in.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::{Entry, Key, remove_tree};
use crate::command::{run_logged, run_quiet};
use crate::project::Project;
use crate::toolbox::Toolbox;

/// Lines that a build of the kernel writes, for the progress shown.
const BUILD_LINES: u32 = 2700;

/// Builds `bzImage`, `vmlinux` (stripped; it has the PVH note that direct boot wants), `vmlinux.symbols` (for gdb) and `config`.
pub fn build(project: &Project, toolbox: &Toolbox) -> Result<Entry> {
    let folder = project.sources.join("os/kernel");
    let mut key = Key::new("kernel 2").text(&fragments(&folder)?);
    for package in
        ["linux-source-6.12", "gcc-14-x86-64-linux-gnu", "binutils-x86-64-linux-gnu", "flex", "bison"]
    {
        key = key.text(&toolbox.package(package)?.sha256);
    }
    project.cache.step(
        "kernel",
        "Linux 6.12 with our configuration, about 8 minutes on two cores",
        key,
        |out| compile(project, toolbox, &fragments(&folder)?, out),
    )
}

fn compile(project: &Project, toolbox: &Toolbox, fragments: &str, out: &Path) -> Result<()> {
    let log = project.log("kernel");
    let _ = fs::remove_file(&log);
    let work = out.join("work");
    fs::create_dir(&work)?;
    run_logged(
        toolbox.command("tar").args(["-xJf", "/usr/src/linux-source-6.12.tar.xz", "-C"]).arg(&work),
        "kernel: unpacking",
        &log,
        None,
    )?;
    let tree = work.join("linux-source-6.12");
    fs::write(tree.join("caisson.config"), fragments)?;
    let make = |target: &[&str]| {
        // The tree is bound to one path, so that no path of the builder's gets into what is built.
        let mut command = toolbox.command_with("make", &[(&tree, "/linux")]);
        command.args(["-C", "/linux"]).args(target).env("KCONFIG_ALLCONFIG", "caisson.config");
        command.env("KBUILD_BUILD_TIMESTAMP", "2026-11-01 00:00:00 UTC").env("KBUILD_BUILD_VERSION", "1");
        command.env("KBUILD_BUILD_USER", "caisson").env("KBUILD_BUILD_HOST", "caisson");
        command
    };
    run_logged(&mut make(&["allnoconfig"]), "kernel: configuring", &log, None)?;
    let config = fs::read_to_string(tree.join(".config"))?;
    let lost = lost_options(fragments, &config);
    ensure!(
        lost.is_empty(),
        "the kernel's configuration did not take these lines of os/kernel/*.config (an option it depends on is missing, or it was renamed):\n  {}",
        lost.join("\n  ")
    );
    let jobs = std::thread::available_parallelism().map_or(2, usize::from);
    run_logged(
        &mut make(&[&format!("-j{jobs}"), "bzImage", "vmlinux"]),
        "kernel: compiling",
        &log,
        Some(BUILD_LINES),
    )?;
    fs::copy(tree.join("arch/x86/boot/bzImage"), out.join("bzImage"))?;
    run_quiet(
        toolbox.command("objcopy").arg("--strip-all").arg(tree.join("vmlinux")).arg(out.join("vmlinux")),
        "kernel: stripping vmlinux",
    )?;
    fs::rename(tree.join("vmlinux"), out.join("vmlinux.symbols"))?;
    fs::write(out.join("config"), config)?;
    fs::copy(tree.join("COPYING"), out.join("COPYING"))?;
    fs::copy(tree.join("LICENSES/preferred/GPL-2.0"), out.join("GPL-2.0"))?;
    remove_tree(&work)
}

/// All fragments, in the order of their names.
fn fragments(folder: &Path) -> Result<String> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .with_context(|| format!("cannot read the kernel's configuration in {}", folder.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "config"))
        .collect();
    paths.sort();
    let mut text = String::new();
    for path in paths {
        text.push_str(&fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?);
        text.push('\n');
    }
    Ok(text)
}

/// Lines of the fragments that the finished configuration does not hold: options vanish in silence when something that
/// they depend on is off.
fn lost_options(fragments: &str, config: &str) -> Vec<String> {
    let options = |text: &str| -> BTreeMap<String, String> { text.lines().filter_map(option).collect() };
    let have = options(config);
    options(fragments)
        .into_iter()
        .filter(|(name, value)| have.get(name).map_or("n", String::as_str) != value)
        .map(|(name, value)| {
            format!("{name}={value} (it is {})", have.get(&name).map_or("n", String::as_str))
        })
        .collect()
}

fn option(line: &str) -> Option<(String, String)> {
    if let Some(name) = line.strip_prefix("# ").and_then(|line| line.strip_suffix(" is not set")) {
        return name.starts_with("CONFIG_").then(|| (name.to_owned(), "n".to_owned()));
    }
    let (name, value) = line.trim().split_once('=')?;
    name.starts_with("CONFIG_").then(|| (name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_vanished_is_named() {
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_S=\"x\"\n";
        assert!(
            lost_options(
                "CONFIG_A=y\n# CONFIG_B is not set\n# CONFIG_GONE is not set\nCONFIG_S=\"x\"\n",
                config
            )
            .is_empty()
        );
        assert_eq!(
            lost_options("# why\nCONFIG_B=y\nCONFIG_EROFS_FS=y\n", config),
            ["CONFIG_B=y (it is n)", "CONFIG_EROFS_FS=y (it is n)"]
        );
    }
}
