use build::project::Project;
use build::toolbox::{LockPolicy, Toolbox};
fn main() -> anyhow::Result<()> {
    let project = Project::open()?;
    let toolbox = Toolbox::open(&project, if std::env::var_os("UPDATE_LOCK").is_some() { LockPolicy::Update } else { LockPolicy::Newest })?;
    let mut args = std::env::args().skip(1);
    let status = match args.next() {
        Some(program) => toolbox.with_share(std::path::Path::new("/root")).command(&program).args(args).status()?,
        None => return Ok(()),
    };
    std::process::exit(status.code().unwrap_or(1));
}
