//! What every node is made from: the toolbox, the built image, and how guests can be run here.

use anyhow::{Context, Result, bail};
use build::artifacts::Artifacts;
use build::guest::{self, Rust};
use build::project::Project;
use build::toolbox::{LockPolicy, Toolbox};
use build::vm::config::Accelerator;
use build::vm::kvm;
use std::path::PathBuf;
use std::sync::OnceLock;

pub struct Bench {
    pub project: Project,
    pub toolbox: Toolbox,
    pub artifacts: Artifacts,
    /// The kernel's command line for direct boot.
    pub cmdline: String,
    pub(crate) vhost_device_vsock: PathBuf,
    pub(crate) accelerator: Accelerator,
}

/// Found once for each process.
pub fn bench() -> &'static Bench {
    static BENCH: OnceLock<Bench> = OnceLock::new();
    BENCH.get_or_init(|| match find() {
        Ok(bench) => bench,
        Err(error) => panic!("no virtual machine can be booted: {error:#}"),
    })
}

/// `apiclient` as it is in the image.
pub(crate) fn apiclient() -> PathBuf {
    let Bench { project, toolbox, .. } = bench();
    let package = guest::GUEST_PACKAGES.iter().find(|guest| guest.programs.contains(&"apiclient"));
    let built = package
        .context("no package has apiclient")
        .and_then(|package| guest::build(project, toolbox, &Rust::find(project)?, package));
    built.unwrap_or_else(|error| panic!("apiclient: {error:#}")).path.join("apiclient")
}

fn find() -> Result<Bench> {
    let project = Project::open()?;
    let mut artifacts = Artifacts::of(&project, "default");
    if let Some(folder) = std::env::var_os("CAISSON_ARTIFACTS") {
        artifacts.dir = std::path::absolute(folder)?;
    }
    if !artifacts.exist() {
        bail!(
            "{} does not hold a complete image: build it with `cargo caisson image`, or name a folder that does with CAISSON_ARTIFACTS",
            artifacts.dir.display()
        );
    }
    let toolbox = Toolbox::open(&project, LockPolicy::Newest)?.with_share(&artifacts.dir);
    let vhost = guest::vhost_device_vsock(&project, &toolbox, &Rust::find(&project)?)?;
    let cmdline = std::fs::read_to_string(artifacts.cmdline()).context("cannot read the command line")?;
    Ok(Bench {
        cmdline: cmdline.trim().to_owned(),
        vhost_device_vsock: vhost.path.join("vhost-device-vsock"),
        accelerator: kvm::probe().map_or(Accelerator::Tcg, |()| Accelerator::Kvm),
        project,
        toolbox,
        artifacts,
    })
}
