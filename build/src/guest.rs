//! Programs compiled in the toolbox: those of the guest, the bundled runtime, and tools that Debian does not package.
//!
//! The Rust toolchain of the host is bound into the toolbox, and everything is at the same path on every machine
//! (`/src`, `/cargo`, `/build`), so that the same sources give the same bytes. Crates are fetched outside, where the host's
//! own cargo configuration holds; inside, cargo is offline.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::{Entry, Key, sha256_file};
use crate::command::{run_logged, run_quiet};
use crate::project::Project;
use crate::sbom::Part;
use crate::toolbox::Toolbox;

pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// One package of the workspace, its programs, and the folders whose change changes them.
pub struct GuestPackage {
    pub package: &'static str,
    /// What goes into the image.
    pub programs: &'static [&'static str],
    /// What is built beside it, for benches.
    tools: &'static [&'static str],
    /// Only with these features, and then nothing else of the package is linked.
    features: &'static [&'static str],
    folders: &'static [&'static str],
}

impl GuestPackage {
    pub fn folders(&self) -> &'static [&'static str] {
        self.folders
    }
}

pub const GUEST_PACKAGES: &[GuestPackage] = &[
    GuestPackage {
        package: "caisson-init",
        programs: &["init", "grow-data"],
        tools: &["empty-init"],
        features: &[],
        folders: &["init", "init/control"],
    },
    GuestPackage {
        package: "caisson-apiserver",
        programs: &["apiserver", "apiclient"],
        tools: &[],
        features: &[],
        folders: &["apiserver", "settings", "init/control"],
    },
    GuestPackage {
        package: "caisson-host-agent",
        programs: &["host-agent", "container-shim"],
        tools: &[],
        features: &[],
        folders: &["host-agent", "apiserver", "settings", "update", "init/control"],
    },
];

/// What `cargo caisson bench update` measures: the agent's code in a program of its own.
pub const INSTALL_UPDATE: GuestPackage = GuestPackage {
    package: "caisson-host-agent",
    programs: &["install-update"],
    tools: &[],
    features: &["bench"],
    folders: GUEST_PACKAGES[2].folders,
};

/// What `cargo caisson bench container` runs in a guest, and in containers.
pub const CONTAINER_BENCH: GuestPackage = GuestPackage {
    package: "caisson-container-bench",
    programs: &["container-bench", "say"],
    tools: &[],
    features: &[],
    folders: &["build/container-bench"],
};

/// The Rust toolchain that compiles, from the host.
pub struct Rust {
    sysroot: PathBuf,
    cargo_home: PathBuf,
    version: String,
}

impl Rust {
    pub fn find(project: &Project) -> Result<Self> {
        let ask = |argument: &[&str]| -> Result<String> {
            let output = run_quiet(
                Command::new("rustc").args(argument).current_dir(&project.sources),
                "asking rustc about itself (is a Rust toolchain installed?)",
            )?;
            Ok(String::from_utf8_lossy(&output).trim().to_owned())
        };
        let cargo_home = match std::env::var_os("CARGO_HOME") {
            Some(dir) => PathBuf::from(dir),
            None => PathBuf::from(std::env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?)
                .join(".cargo"),
        };
        Ok(Self {
            sysroot: PathBuf::from(ask(&["--print", "sysroot"])?),
            cargo_home,
            version: ask(&["-Vv"])?,
        })
    }

    /// What rustc says about itself.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The standard library, which every program links.
    pub fn standard_library(&self) -> Result<Part> {
        let folder = self.sysroot.join("lib/rustlib").join(TARGET).join("lib");
        let library = fs::read_dir(&folder)
            .with_context(|| {
                format!("the Rust toolchain has no standard library for {TARGET} in {}", folder.display())
            })?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| {
                path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libstd-"))
                    && path.extension().is_some_and(|e| e == "rlib")
            })
            .with_context(|| format!("{} has no libstd", folder.display()))?;
        let version =
            self.version.lines().find_map(|line| line.strip_prefix("release: ")).unwrap_or("unknown");
        Ok(Part {
            name: "rust-std".to_owned(),
            version: version.to_owned(),
            sha256: Some(sha256_file(&library)?),
            licence: "Apache-2.0 OR MIT".to_owned(),
            url: format!("pkg:generic/rust-std@{version}"),
        })
    }

    /// cargo in the toolbox, offline, with `source` as `/src` and `build` as `/build`.
    fn cargo(&self, toolbox: &Toolbox, source: &Path, build: &Path) -> Command {
        let mut command = toolbox.command_with(
            "env",
            &[(&self.sysroot, "/rust"), (&self.cargo_home, "/cargo"), (source, "/src"), (build, "/build")],
        );
        command.args(["-C", "/src", "/rust/bin/cargo"]);
        command
            .env("PATH", "/rust/bin:/usr/sbin:/usr/bin")
            .env("CARGO_HOME", "/cargo")
            .env("CARGO_TARGET_DIR", "/build");
        command
            .env("CARGO_NET_OFFLINE", "true")
            .env("CARGO_INCREMENTAL", "0")
            .env("CARGO_TERM_PROGRESS_WHEN", "never");
        command
    }
}

/// What goes into the programs of one package.
fn key_of(project: &Project, toolbox: &Toolbox, rust: &Rust, guest: &GuestPackage) -> Result<Key> {
    let mut key = Key::new("guest 2").text(guest.package).text(&toolbox.id).text(&rust.version);
    for feature in guest.features {
        key = key.text(feature);
    }
    key = key.file(&project.sources.join("Cargo.toml"))?.file(&project.sources.join("Cargo.lock"))?;
    for folder in guest.folders {
        let folder = project.sources.join(folder);
        for part in ["src", "Cargo.toml", "build.rs"].map(|name| folder.join(name)) {
            if part.is_dir() {
                key = key.tree(&part)?;
            } else if part.is_file() {
                key = key.file(&part)?;
            }
        }
    }
    Ok(key)
}

/// Builds the programs of one package of the workspace, static.
pub fn build(project: &Project, toolbox: &Toolbox, rust: &Rust, guest: &GuestPackage) -> Result<Entry> {
    let key = key_of(project, toolbox, rust, guest)?;
    let wanted = key.hex();
    let step = match guest.features {
        [] => guest.package.trim_start_matches("caisson-"),
        _ => guest.programs[0],
    };
    project.cache.step(step, &format!("compiling {}", guest.programs.join(", ")), key, |out| {
        let log = project.log(step);
        let _ = fs::remove_file(&log);
        run_quiet(
            Command::new("cargo").args(["fetch", "--quiet", "--locked"]).current_dir(&project.sources),
            "fetching crates",
        )?;
        // cargo itself knows what to compile again; one folder per toolbox and per place of the sources.
        let place = Key::new("place").text(&project.sources.to_string_lossy()).text(&toolbox.id).hex();
        let build = project.cache.scratch(&format!("guest-{}", &place[..16]))?;
        let mut cargo = rust.cargo(toolbox, &project.sources, &build);
        cargo.args([
            "build",
            "--locked",
            "--profile",
            "guest",
            "--target",
            TARGET,
            "--package",
            guest.package,
        ]);
        match guest.features {
            [] => cargo.arg("--bins"),
            features => {
                let programs = guest.programs.iter().flat_map(|program| ["--bin", program]);
                cargo.args(programs).args(["--features", &features.join(",")])
            }
        };
        cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
        run_logged(&mut cargo, &format!("{step}: compiling"), &log, None)?;
        ensure!(
            key_of(project, toolbox, rust, guest)?.hex() == wanted,
            "the sources of {} changed while they were compiled: run it again",
            guest.package
        );
        for program in guest.programs.iter().chain(guest.tools) {
            let built = build.join(TARGET).join("guest").join(program);
            fs::copy(&built, out.join(program))
                .with_context(|| format!("{} was not built", built.display()))?;
        }
        Ok(())
    })
}

/// A program from the crates registry, with the lock file it was published with.
struct Published {
    name: &'static str,
    /// What is built of it.
    program: &'static str,
    version: &'static str,
    environment: &'static [(&'static str, &'static str)],
    /// Further environment: how it is compiled.
    profile: &'static [(&'static str, &'static str)],
    /// Arguments of cargo that select its features.
    features: &'static [&'static str],
    /// Of its sources, what is left out: the file, and the text, which is there once.
    without: &'static [(&'static str, &'static str)],
    what: &'static str,
}

/// A published program of the guest is static and small, as our own are (`profile.guest` in Cargo.toml).
const GUEST_PROFILE: &[(&str, &str)] = &[
    ("RUSTFLAGS", "-C target-feature=+crt-static"),
    ("CARGO_PROFILE_RELEASE_STRIP", "true"),
    ("CARGO_PROFILE_RELEASE_LTO", "true"),
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "z"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
    ("CARGO_PROFILE_RELEASE_PANIC", "abort"),
];

/// A step that built programs, and their names.
pub type Programs = (Entry, Vec<&'static str>);

/// Published programs that are part of the image.
pub fn bundled(
    project: &Project,
    toolbox: &Toolbox,
    network: &Toolbox,
    rust: &Rust,
) -> Result<Vec<Programs>> {
    Ok(vec![
        (youki(project, toolbox, rust)?, vec!["youki"]),
        (ntpd(project, toolbox, rust)?, vec!["ntp-daemon"]),
        (netavark(project, network, rust)?, vec!["netavark"]),
        (aardvark_dns(project, network, rust)?, vec!["aardvark-dns"]),
    ])
}

/// The OCI runtime of the guest. Without the features `seccomp` and `cgroupsv2_devices` it ignores profiles and device rules
/// in silence: both are asked for here, and tests in the guest ask the kernel whether they hold.
///
/// At each start it copies itself into memory and executes the copy, lest a container overwrite the program by `/proc/self/exe`
/// (CVE-2019-5736). Here that is left out: the program is on a file system that cannot be written to, and whose blocks are verified.
fn youki(project: &Project, toolbox: &Toolbox, rust: &Rust) -> Result<Entry> {
    published(
        project,
        toolbox,
        rust,
        &Published {
            name: "youki",
            program: "youki",
            version: "0.7.0",
            features: &["--no-default-features", "--features", "v2,seccomp,cgroupsv2_devices"],
            without: &[(
                "src/main.rs",
                "    pentacle::ensure_sealed().context(\"failed to seal /proc/self/exe\")?;\n",
            )],
            environment: &[
                ("LIBSECCOMP_LINK_TYPE", "static"),
                ("LIBSECCOMP_LIB_PATH", "/usr/lib/x86_64-linux-gnu"),
            ],
            profile: GUEST_PROFILE,
            what: "the OCI runtime, about 4 minutes on two cores",
        },
    )
}

/// The NTP client of the guest, `ntp-daemon`. Without what would be a large library of cryptography: it asks in the clear, as there
/// are no settings for NTS.
fn ntpd(project: &Project, toolbox: &Toolbox, rust: &Rust) -> Result<Entry> {
    published(
        project,
        toolbox,
        rust,
        &Published {
            name: "ntpd",
            program: "ntp-daemon",
            version: "1.9.0",
            features: &["--no-default-features", "--features", "rustcrypto"],
            without: &[],
            environment: &[
                // Its build asks git, of whatever repository is around it.
                ("NTPD_RS_GIT_REV", "-"),
                ("NTPD_RS_GIT_DATE", "-"),
            ],
            profile: GUEST_PROFILE,
            what: "the NTP client, about 4 minutes on two cores",
        },
    )
}

/// What both programs' builds write into them is no time of today.
const EPOCH: (&str, &str) = ("SOURCE_DATE_EPOCH", "0");

/// Bridges, NAT and published ports of containers. Its build makes code from protocol buffers, hence a toolbox with `protoc`.
fn netavark(project: &Project, network: &Toolbox, rust: &Rust) -> Result<Entry> {
    published(
        project,
        network,
        rust,
        &Published {
            name: "netavark",
            program: "netavark",
            version: "2.1.0",
            features: &[],
            without: &[],
            environment: &[EPOCH],
            profile: GUEST_PROFILE,
            what: "networks of containers, about 4 minutes on two cores",
        },
    )
}

/// Names between containers; netavark starts and stops it.
fn aardvark_dns(project: &Project, network: &Toolbox, rust: &Rust) -> Result<Entry> {
    published(
        project,
        network,
        rust,
        &Published {
            name: "aardvark-dns",
            program: "aardvark-dns",
            version: "2.1.0",
            features: &[],
            without: &[],
            environment: &[EPOCH],
            profile: GUEST_PROFILE,
            what: "names between containers, about 3 minutes on two cores",
        },
    )
}

/// The libraries of Debian's `nft`, which Debian does not package as archives to link statically.
const NFT_LIBRARIES: &[&str] = &[
    "ld-linux-x86-64.so.2",
    "libbsd.so.0",
    "libc.so.6",
    "libedit.so.2",
    "libgmp.so.10",
    "libjansson.so.4",
    "libmd.so.0",
    "libmnl.so.0",
    "libnftables.so.1",
    "libnftnl.so.11",
    "libtinfo.so.6",
    "libxtables.so.12",
];

/// Where they are in the image: nothing else there is linked dynamically, so no loader is where programs look for one.
pub const NFT_FOLDER: &str = "usr/lib/caisson/nft";

/// `nft`, which netavark runs: Debian's program, made to look for its loader and libraries in [`NFT_FOLDER`] (`libraries`
/// of what is built) and nowhere else.
pub fn nft(project: &Project, network: &Toolbox) -> Result<Entry> {
    let key = Key::new("nft 1").text(&network.id).text(NFT_FOLDER).text(&NFT_LIBRARIES.join(" "));
    project.cache.step("nft", "the program for nftables, from Debian", key, |out| {
        let libraries = out.join("libraries");
        fs::create_dir(&libraries)?;
        let program = out.join("nft");
        let copy = |from: PathBuf, to: &Path| {
            fs::copy(&from, to).with_context(|| format!("cannot copy {}", from.display()))
        };
        copy(network.root.join("usr/sbin/nft"), &program)?;
        for name in NFT_LIBRARIES {
            copy(network.root.join("usr/lib/x86_64-linux-gnu").join(name), &libraries.join(name))?;
        }
        let folder = format!("/{NFT_FOLDER}");
        let loader = format!("{folder}/ld-linux-x86-64.so.2");
        // DT_RPATH and not DT_RUNPATH: it holds for what the libraries need, too.
        let mut patch = network.command("patchelf");
        patch.args(["--set-interpreter", &loader, "--force-rpath", "--set-rpath", &folder]).arg(&program);
        run_quiet(&mut patch, "nft: naming the folder of its libraries")?;
        // A library that is missing would be seen on a node only, so the loader is asked here, where it would find it elsewhere.
        let binds: [(&Path, &str); 2] = [(&libraries, &folder), (&program, "/usr/bin/nft")];
        let mut list = network.command_with(&loader, &binds);
        let listed =
            run_quiet(list.args(["--list", "/usr/bin/nft"]), "nft: asking which libraries it loads")?;
        let listed = String::from_utf8_lossy(&listed);
        let strange = loaded_elsewhere(&listed, &folder);
        ensure!(
            strange.is_empty(),
            "nft loads what is not in {folder} of the image: {}; add it to NFT_LIBRARIES",
            strange.join(", ")
        );
        Ok(())
    })
}

/// Of the lines `NAME => PATH (ADDRESS)` that a loader lists: those whose path is outside of `folder`, or that were not found.
fn loaded_elsewhere<'a>(listed: &'a str, folder: &str) -> Vec<&'a str> {
    listed
        .lines()
        .map(str::trim)
        .filter(|line| {
            line.split_once(" => ")
                .is_some_and(|(_, path)| !path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/')))
        })
        .collect()
}

/// vsock for guests on hosts whose kernel has no vhost-vsock: a tool of the runner.
pub fn vhost_device_vsock(project: &Project, toolbox: &Toolbox, rust: &Rust) -> Result<Entry> {
    published(
        project,
        toolbox,
        rust,
        &Published {
            name: "vhost-device-vsock",
            program: "vhost-device-vsock",
            version: "0.3.0",
            features: &[],
            without: &[],
            environment: &[],
            // What it does takes far less time than to compile it better does.
            profile: &[("CARGO_PROFILE_RELEASE_STRIP", "true"), ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")],
            what: "vsock for virtual machines, about a minute on two cores",
        },
    )
}

fn published(project: &Project, toolbox: &Toolbox, rust: &Rust, program: &Published) -> Result<Entry> {
    let mut key =
        Key::new("published 2").text(program.name).text(program.version).text(&program.features.join(" "));
    for (name, value) in program.environment.iter().chain(program.profile) {
        key = key.text(name).text(value);
    }
    for (file, text) in program.without {
        key = key.text(file).text(text);
    }
    key = key.text(&toolbox.id).text(&rust.version);
    project.cache.step(program.name, program.what, key, |out| {
        let log = project.log(program.name);
        let _ = fs::remove_file(&log);
        let source = fetch(project, rust, program)?;
        // The registry's folder is shared and must stay as it is, so the build has a copy.
        let copy = out.join("src");
        run_quiet(Command::new("cp").arg("-r").arg(&source).arg(&copy), "copying sources")?;
        for (file, text) in program.without {
            let path = copy.join(file);
            let whole = fs::read_to_string(&path)?;
            ensure!(
                whole.matches(text).count() == 1,
                "{} {} does not have once what is to be left out of its {file}: {text:?}",
                program.name,
                program.version
            );
            fs::write(&path, whole.replacen(text, "", 1))?;
        }
        run_quiet(
            Command::new("cargo").args(["fetch", "--quiet", "--locked"]).current_dir(&copy),
            &format!("fetching what {} depends on", program.name),
        )?;
        let build = out.join("build");
        fs::create_dir(&build)?;
        let mut cargo = rust.cargo(toolbox, &copy, &build);
        cargo
            .args(["build", "--locked", "--release", "--bin", program.program])
            .args(["--target", TARGET])
            .args(program.features);
        cargo.envs(program.environment.iter().chain(program.profile).copied());
        run_logged(&mut cargo, &format!("{}: compiling", program.name), &log, None)?;
        let built = build.join(TARGET).join("release").join(program.program);
        fs::copy(built, out.join(program.program))?;
        let crates = crate::crates::collect(&copy, &[program.name], program.features, &out.join("texts"))?;
        fs::write(out.join("crates.json"), serde_json::to_vec_pretty(&crates)?)?;
        crate::cache::remove_tree(&build)?;
        crate::cache::remove_tree(&copy)
    })
}

/// Downloads a published crate (cargo verifies its hash) and returns where its sources are.
fn fetch(project: &Project, rust: &Rust, program: &Published) -> Result<PathBuf> {
    let dir = project.cache.scratch(&format!("fetch-{}", program.name))?;
    fs::create_dir_all(dir.join("src"))?;
    fs::write(dir.join("src/lib.rs"), "")?;
    fs::write(
        dir.join("Cargo.toml"),
        format!(
            "[package]\nname = \"fetch\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n[dependencies]\n{} = \"={}\"\n",
            program.name, program.version
        ),
    )?;
    run_quiet(
        Command::new("cargo").args(["fetch", "--quiet"]).current_dir(&dir),
        &format!("fetching {} {}", program.name, program.version),
    )?;
    let name = format!("{}-{}", program.name, program.version);
    let found = fs::read_dir(rust.cargo_home.join("registry/src"))?
        .flatten()
        .map(|registry| registry.path().join(&name))
        .find(|path| path.join("Cargo.lock").is_file());
    let found =
        found.with_context(|| format!("cargo fetched {name}, but its sources are not in CARGO_HOME"))?;
    ensure!(found.join("Cargo.toml").is_file(), "{} has no Cargo.toml", found.display());
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_from_elsewhere_is_seen() {
        let cases: &[(&str, &[&str])] = &[
            ("\tlinux-vdso.so.1 (0x7f00)\n\tlibc.so.6 => /own/libc.so.6 (0x7f01)\n", &[]),
            (
                "\tlibgmp.so.10 => /usr/lib/libgmp.so.10 (0x7f02)\n",
                &["libgmp.so.10 => /usr/lib/libgmp.so.10 (0x7f02)"],
            ),
            ("\tlibmd.so.0 => not found\n", &["libmd.so.0 => not found"]),
            ("\tliba.so => /owner/liba.so (0x1)\n", &["liba.so => /owner/liba.so (0x1)"]),
        ];
        for (listed, wanted) in cases {
            assert_eq!(loaded_elsewhere(listed, "/own"), *wanted, "{listed}");
        }
    }

    /// A change in a crate that is compiled into a program has to change the program's key.
    #[test]
    fn the_folders_of_a_program_are_all_that_it_is_made_of() {
        let sources = crate::project::sources().unwrap();
        let read =
            |path: PathBuf| -> toml::Value { toml::from_str(&fs::read_to_string(path).unwrap()).unwrap() };
        let workspace = read(sources.join("Cargo.toml"));
        for guest in GUEST_PACKAGES {
            for folder in guest.folders {
                let manifest = read(sources.join(folder).join("Cargo.toml"));
                let names =
                    manifest.get("dependencies").and_then(toml::Value::as_table).into_iter().flatten();
                for (name, _) in names {
                    let path = workspace["workspace"]["dependencies"][name.as_str()].get("path");
                    let Some(path) = path.and_then(toml::Value::as_str) else { continue };
                    let covered = guest.folders.iter().any(|folder| Path::new(path).starts_with(folder));
                    assert!(covered, "{} is made of {path} too", guest.package);
                }
            }
        }
    }
}
