//! The toolbox: a Debian 13 tree with every tool that the build and the runner need (mkosi calls it a tools tree).
//!
//! apt itself resolves, downloads and verifies, with a configuration of our own, then `dpkg-deb -x` unpacks everything into
//! one tree; no maintainer script is run. Commands run inside it by chroot: as root in a mount namespace, otherwise in a
//! user namespace.

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::{Key, sha256_file};
use crate::command::{run_logged, run_quiet};
use crate::project::Project;

const SUITE: &str = "trixie";
/// Changes with the code that makes the tree.
const RECIPE: &str = "toolbox 3";

/// Which tree. What only tests, benches and signing want, or one program of the image, is in one
/// of its own: a server or a program more builds no kernel anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Set {
    /// The compilers and tools that make an image, and what runs it.
    Build,
    /// Servers for tests, what benches measure beside, and what signs.
    Tests,
    /// What programs of the image for containers' networks are made of.
    Network,
    /// Other container runtimes, and a registry: a system that runs in a guest, beside ours.
    Runtimes,
    /// What images of the tests' containers are made of, and who asks them.
    Workload,
}

impl Set {
    fn packages(self) -> Vec<&'static str> {
        match self {
            Self::Build => BUILD_PACKAGES.to_vec(),
            Self::Tests => [SYSTEM, TESTS_PACKAGES].concat(),
            Self::Network => [SYSTEM, NETWORK_PACKAGES].concat(),
            Self::Runtimes => [SYSTEM, RUNTIMES_PACKAGES].concat(),
            Self::Workload => [SYSTEM, WORKLOAD_PACKAGES].concat(),
        }
    }

    /// Of the cache, which keeps four results of each: those that make an image are not to push each other out.
    fn step(self) -> &'static str {
        match self {
            Self::Build | Self::Tests | Self::Network => "toolbox",
            Self::Runtimes => "toolbox-runtimes",
            Self::Workload => "toolbox-workload",
        }
    }

    /// Where its packages are locked, below the sources.
    fn lock(self) -> &'static str {
        match self {
            Self::Build => "os/toolbox.lock",
            Self::Tests => "os/toolbox-tests.lock",
            Self::Network => "os/toolbox-network.lock",
            Self::Runtimes => "os/toolbox-runtimes.lock",
            Self::Workload => "os/toolbox-workload.lock",
        }
    }
}

/// A system that commands can run in.
const SYSTEM: &[&str] =
    &["base-files", "libc-bin", "bash", "dash", "coreutils", "util-linux", "ca-certificates", "openssl"];

const TESTS_PACKAGES: &[&str] = &[
    // a static file server with ranges
    "nginx-light",
    // Secure Boot: signed programs, and firmware's lists of keys
    "sbsigntool",
    "efitools",
    // what updates are measured beside
    "casync",
    "rauc",
    "squashfs-tools",
    "zstd",
];

const NETWORK_PACKAGES: &[&str] = &[
    // nft, and what names the folder of its libraries in it
    "nftables",
    "patchelf",
    // netavark and aardvark-dns
    "gcc",
    "libc6-dev",
    "binutils",
    "protobuf-compiler",
    "libprotobuf-dev",
];

const RUNTIMES_PACKAGES: &[&str] = &["containerd", "runc", "podman", "crun", "conmon", "docker-registry"];
const WORKLOAD_PACKAGES: &[&str] = &[
    // servers, and with them psql, pgbench, redis-cli and redis-benchmark
    "postgresql-17",
    "redis-server",
    "nginx-light",
    "libnginx-mod-stream",
    // a program in Go, and what runs those in Java
    "docker-registry",
    "openjdk-21-jre-headless",
    // what packs them
    "tar",
    // what shows extended attributes of files
    "attr",
    "libcap2-bin",
];

/// What is installed to build and to run, by purpose.
const BUILD_PACKAGES: &[&str] = &[
    // a system that commands can run in
    "base-files",
    "libc-bin",
    "bash",
    "dash",
    "coreutils",
    "sed",
    "grep",
    "gawk",
    "findutils",
    "diffutils",
    "tar",
    "gzip",
    "xz-utils",
    "bzip2",
    "zstd",
    "util-linux",
    "hostname",
    "perl",
    "python3",
    "rsync",
    "ca-certificates",
    // the kernel and the guest's programs
    "make",
    "gcc",
    "g++",
    "libc6-dev",
    "binutils",
    "bc",
    "flex",
    "bison",
    "libelf-dev",
    "libssl-dev",
    "zlib1g-dev",
    "libzstd-dev",
    "libseccomp-dev",
    "cpio",
    "kmod",
    "pkg-config",
    "linux-source-6.12",
    // file systems and the disk
    "erofs-utils",
    "cryptsetup-bin",
    "mtools",
    "dosfstools",
    "e2fsprogs",
    "fdisk",
    "genisoimage",
    "systemd-boot-efi",
    "systemd-boot",
    // what goes into the image
    "busybox-static",
    // running it
    "qemu-system-x86",
    "qemu-utils",
    "ovmf",
    // real servers for the tests
    "docker-registry",
    "dnsmasq-base",
    "chrony",
    // and a network for them
    "iproute2",
];

/// Unshares the mount namespace, binds `src dst` pairs up to `--`, and runs the rest in the chroot `$1`.
const ENTER: &str = r#"
root=$1; shift
while [ "$1" != -- ]; do
  if [ -d "$1" ]; then mkdir -p "$root$2"; else mkdir -p "$(dirname "$root$2")"; [ -e "$root$2" ] || : > "$root$2"; fi
  mount --rbind "$1" "$root$2" || { echo "toolbox: cannot bind $1 to $root$2" >&2; exit 125; }
  shift 2
done
shift
exec chroot "$root" "$@"
"#;

/// A package of the toolbox, for the lock and the SBOM.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Package {
    pub name: String,
    pub version: String,
    pub sha256: String,
    /// Name of the source package.
    pub source: String,
}

#[derive(Debug, Clone)]
pub struct Toolbox {
    /// The tree.
    pub root: PathBuf,
    /// Hash over every package: what goes into the keys of steps that use it.
    pub id: String,
    pub packages: Vec<Package>,
    shares: Vec<PathBuf>,
}

impl Toolbox {
    /// The toolbox, made if it is missing (about 330 MB to download, 20 s to unpack).
    pub fn open(project: &Project, lock: LockPolicy) -> Result<Self> {
        Self::open_set(project, Set::Build, lock)
    }

    /// The tree with what only tests, benches and signing want.
    pub fn for_tests(project: &Project) -> Result<Self> {
        Self::open_set(project, Set::Tests, LockPolicy::Newest)
    }

    pub fn open_set(project: &Project, set: Set, lock: LockPolicy) -> Result<Self> {
        let lock_file = project.sources.join(set.lock());
        let locked = fs::read_to_string(&lock_file).unwrap_or_default();
        let mut key = Key::new(RECIPE).text(SUITE).text(&set.packages().join(" ")).text(&locked);
        if lock == LockPolicy::Update {
            // What the mirror has now, whatever was taken before.
            key = key.text(&format!("{:?}", std::time::SystemTime::now()));
        }
        let entry = project
            .cache
            .step(set.step(), "Debian 13 packages by apt", key, |out| make(project, set, out))?;
        let packages: Vec<Package> = serde_json::from_slice(
            &fs::read(entry.path.join("packages.json"))
                .context("the toolbox in the cache has no packages.json")?,
        )?;
        compare_with_lock(&packages, &locked, &lock_file, lock)?;
        let id = Key::new(RECIPE).text(&lock_lines(&packages)).hex();
        let mut shares =
            vec![project.cache.root().to_owned(), project.sources.clone(), PathBuf::from("/tmp")];
        let target = std::path::absolute(crate::project::target_dir(&project.sources))?;
        if !target.starts_with(&project.sources) {
            fs::create_dir_all(&target)?;
            shares.push(target);
        }
        Ok(Self { root: entry.path.join("root"), id, packages, shares })
    }

    /// The same toolbox, with one more folder of the host visible inside at the same path.
    #[must_use]
    pub fn with_share(mut self, folder: &Path) -> Self {
        self.shares.push(folder.to_owned());
        self
    }

    /// A program of the toolbox. It sees the sources, the cache, the build's results and `/tmp` at the paths they have
    /// outside; `/` is its working folder.
    pub fn command(&self, program: &str) -> Command {
        self.command_with(program, &[])
    }

    /// As [`Toolbox::command`], with more folders or files of the host bound inside: `(outside, inside)`.
    pub fn command_with(&self, program: &str, binds: &[(&Path, &str)]) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]);
        if !nix::unistd::geteuid().is_root() {
            command.arg("--map-root-user");
        }
        command.args(["/bin/sh", "-c", ENTER, "toolbox"]).arg(&self.root);
        for system in ["/proc", "/dev", "/sys"] {
            command.args([system, system]);
        }
        for name in ["/etc/resolv.conf", "/etc/hosts"] {
            if Path::new(name).exists() {
                command.args([name, name]);
            }
        }
        for share in &self.shares {
            command.arg(share).arg(share);
        }
        for (outside, inside) in binds {
            command.arg(outside).arg(inside);
        }
        command.arg("--").arg(program);
        command.env_clear();
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C.UTF-8").env("HOME", "/tmp");
        command.env("TMPDIR", "/tmp").env("SOURCE_DATE_EPOCH", crate::project::SOURCE_DATE_EPOCH.to_string());
        command
    }

    pub fn package(&self, name: &str) -> Result<&Package> {
        self.packages
            .iter()
            .find(|package| package.name == name)
            .with_context(|| format!("the toolbox has no package {name}"))
    }
}

/// What to do when the mirror no longer has the versions of `os/toolbox.lock`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockPolicy {
    /// Take the newest of the suite, and say so.
    Newest,
    /// `--locked`: stop.
    Strict,
    /// `--update-lock`: write what was taken.
    Update,
}

fn lock_lines(packages: &[Package]) -> String {
    packages.iter().map(|p| format!("{} {} {}\n", p.name, p.version, p.sha256)).collect()
}

fn compare_with_lock(packages: &[Package], locked: &str, lock_file: &Path, policy: LockPolicy) -> Result<()> {
    let taken = lock_lines(packages);
    if policy == LockPolicy::Update {
        if taken != locked {
            fs::write(lock_file, &taken).with_context(|| format!("cannot write {}", lock_file.display()))?;
            eprintln!("  toolbox: wrote {} packages to {}", packages.len(), lock_file.display());
        }
        return Ok(());
    }
    let wanted: BTreeMap<&str, &str> = locked.lines().filter_map(|line| line.split_once(' ')).collect();
    let have: BTreeMap<&str, &str> = taken.lines().filter_map(|line| line.split_once(' ')).collect();
    let changed: Vec<String> = have
        .iter()
        .filter(|(name, version)| wanted.get(*name) != Some(version))
        .map(|(name, version)| {
            let was = wanted.get(name).and_then(|text| text.split(' ').next()).unwrap_or("nothing");
            format!("{name}: locked {was}, the mirror has {}", version.split(' ').next().unwrap_or(version))
        })
        .collect();
    if changed.is_empty() {
        return Ok(());
    }
    let shown = changed.iter().take(5).map(|line| format!("\n    {line}")).collect::<String>();
    let text = format!(
        "{} of {} packages differ from {}:{shown}\n    (mirrors keep the newest point release only; `cargo caisson image --update-lock` accepts them)",
        changed.len(),
        packages.len(),
        lock_file.display()
    );
    if policy == LockPolicy::Strict {
        bail!("--locked: {text}");
    }
    eprintln!("  toolbox: WARNING: {text}");
    Ok(())
}

fn make(project: &Project, set: Set, out: &Path) -> Result<()> {
    let log = project.log(set.step());
    let _ = fs::remove_file(&log);
    let apt = out.join("apt");
    for folder in ["lists/partial", "cache/archives/partial", "log"] {
        fs::create_dir_all(apt.join(folder))?;
    }
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    ensure!(
        Path::new(keyring).exists(),
        "{keyring} is missing: apt cannot verify Debian's packages without it; install the package debian-archive-keyring"
    );
    fs::write(apt.join("sources.list"), format!("deb [signed-by={keyring}] {} {SUITE} main\n", mirror()?))?;
    fs::write(apt.join("status"), "")?;
    let apt_get = || {
        let mut command = Command::new("apt-get");
        for (key, value) in [
            ("Dir::Etc::sourcelist", apt.join("sources.list")),
            ("Dir::Etc::sourceparts", PathBuf::from("/dev/null")),
            ("Dir::State", apt.clone()),
            ("Dir::State::Lists", apt.join("lists")),
            ("Dir::State::status", apt.join("status")),
            ("Dir::Cache", apt.join("cache")),
            ("Dir::Log", apt.join("log")),
        ] {
            command.arg("-o").arg(format!("{key}={}", value.display()));
        }
        for option in [
            "APT::Architecture=amd64",
            "APT::Architectures::=amd64",
            "APT::Install-Recommends=false",
            "APT::Sandbox::User=root",
            "Acquire::Languages=none",
            "Acquire::Retries=3",
            "Debug::NoLocking=true",
        ] {
            command.args(["-o", option]);
        }
        command.env("LC_ALL", "C.UTF-8");
        command
    };
    run_logged(apt_get().args(["-q", "update"]), "toolbox: package lists", &log, None)?;
    run_logged(
        apt_get().args(["-y", "-q", "install", "--download-only"]).args(set.packages()),
        "toolbox: downloading",
        &log,
        Some(240),
    )?;
    let mut archives: Vec<PathBuf> = fs::read_dir(apt.join("cache/archives"))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .collect();
    archives.sort();
    ensure!(!archives.is_empty(), "apt downloaded nothing: see {}", log.display());
    let root = out.join("root");
    fs::create_dir(&root)?;
    let mut packages = Vec::new();
    for archive in &archives {
        run_quiet(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&root), "toolbox: unpacking")?;
        packages.push(describe(archive)?);
    }
    packages.sort();
    finish_tree(&root)?;
    fs::write(out.join("packages.json"), serde_json::to_vec_pretty(&packages)?)?;
    crate::cache::remove_tree(&apt)
}

fn describe(archive: &Path) -> Result<Package> {
    let fields = run_quiet(
        Command::new("dpkg-deb")
            .args(["-W", "--showformat=${Package} ${Version} ${source:Package}"])
            .arg(archive),
        "toolbox: reading a package",
    )?;
    let fields = String::from_utf8_lossy(&fields).into_owned();
    let mut fields = fields.split(' ').map(str::to_owned);
    let mut next =
        || fields.next().with_context(|| format!("{} has no name, version or source", archive.display()));
    Ok(Package { name: next()?, version: next()?, source: next()?, sha256: sha256_file(archive)? })
}

/// What maintainer scripts would have made, as far as the tools here need it.
fn finish_tree(root: &Path) -> Result<()> {
    for (name, to) in [("cc", "gcc"), ("awk", "gawk"), ("mkisofs", "genisoimage")] {
        let link = root.join("usr/bin").join(name);
        if !link.exists() && root.join("usr/bin").join(to).exists() {
            symlink(to, &link)?;
        }
    }
    // Debian's bundle is made by a script from the single certificates.
    let folder = root.join("usr/share/ca-certificates/mozilla");
    let mut names: Vec<PathBuf> = fs::read_dir(&folder)?.flatten().map(|entry| entry.path()).collect();
    names.sort();
    let mut bundle = Vec::new();
    for name in names {
        bundle.extend(fs::read(name)?);
    }
    fs::create_dir_all(root.join("etc/ssl/certs"))?;
    fs::write(root.join("etc/ssl/certs/ca-certificates.crt"), bundle)?;
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    )?;
    fs::write(root.join("etc/group"), "root:x:0:\ntty:x:5:\ndisk:x:6:\nkvm:x:7:\nnogroup:x:65534:\n")?;
    for folder in ["proc", "dev", "sys", "tmp", "root", "run"] {
        fs::create_dir_all(root.join(folder))?;
    }
    Ok(())
}

/// The mirror to take packages from: `CAISSON_DEBIAN_MIRROR`, or the one that the host itself uses.
fn mirror() -> Result<String> {
    if let Ok(mirror) = std::env::var("CAISSON_DEBIAN_MIRROR") {
        return Ok(mirror);
    }
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        let mut parts: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        parts.sort();
        files.extend(parts);
    }
    for file in files {
        let known = file.extension().is_some_and(|extension| extension == "list" || extension == "sources");
        if let (true, Ok(text)) = (known, fs::read_to_string(&file))
            && let Some(mirror) = mirror_of(&text)
        {
            return Ok(mirror);
        }
    }
    bail!(
        "found no Debian mirror in /etc/apt/sources.list and /etc/apt/sources.list.d: set CAISSON_DEBIAN_MIRROR to one, such as http://mirror.example/debian"
    )
}

/// The first archive of an apt sources file (either format) that holds Debian's main releases, not only security updates.
fn mirror_of(text: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            match words.next()? {
                "deb" => words.find(|word| word.contains("://") || word.starts_with("file:")),
                "URIs:" => words.next(),
                _ => None,
            }
        })
        .map(|uri| uri.trim_end_matches('/'))
        .find(|uri| uri.ends_with("/debian"))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_found_in_both_formats_of_apt() {
        let deb822 = "Types: deb\nURIs: http://mirror.example/debian-security\nSuites: x\n\nURIs: http://mirror.example/debian\n";
        assert_eq!(mirror_of(deb822).as_deref(), Some("http://mirror.example/debian"));
        let one_line = "# deb http://old.example/debian x main\ndeb [arch=amd64 signed-by=/k] http://mirror.example/debian/ bookworm main\n";
        assert_eq!(mirror_of(one_line).as_deref(), Some("http://mirror.example/debian"));
        assert_eq!(mirror_of("deb http://packages.example/nodejs x main\n"), None);
    }

    #[test]
    fn a_mirror_that_moved_on_is_an_error_only_when_locked() {
        let package = |version: &str| Package {
            name: "gcc".into(),
            version: version.into(),
            sha256: "0".into(),
            source: "gcc".into(),
        };
        let lock = lock_lines(&[package("1")]);
        let file = Path::new("/nonexistent/lock");
        compare_with_lock(&[package("1")], &lock, file, LockPolicy::Strict).unwrap();
        compare_with_lock(&[package("2")], &lock, file, LockPolicy::Newest).unwrap();
        let error =
            compare_with_lock(&[package("2")], &lock, file, LockPolicy::Strict).unwrap_err().to_string();
        assert!(error.contains("gcc: locked 1, the mirror has 2"), "{error}");
    }
}
