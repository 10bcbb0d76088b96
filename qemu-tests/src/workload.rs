//! What people run on a node, made of Debian's packages: images of servers, and the clients that ask them.

use anyhow::{Context, Result};
use build::cache::Key;
use build::command::run_quiet;
use build::project::SOURCE_DATE_EPOCH;
use build::toolbox::{LockPolicy, Set, Toolbox};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::sync::OnceLock;

use crate::bench::bench;
use crate::oci::{Archive, Image, Layer, Packing, digest};

/// Users of the servers, in all images.
const POSTGRES: u64 = 999;
const REDIS: u64 = 998;
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n\
    postgres:x:999:999::/var/lib/postgresql:/bin/sh\nredis:x:998:998::/data:/bin/sh\nwww-data:x:33:33::/:/bin/sh\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\npostgres:x:999:\nredis:x:998:\nwww-data:x:33:\n";

/// Where Debian has PostgreSQL's own programs, also for [`client`].
pub const POSTGRES_PROGRAMS: &str = "/usr/lib/postgresql/17/bin";

/// The first start makes the database, as the images that people use do.
const POSTGRES_ENTRYPOINT: &str = r#"#!/bin/sh
set -e
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    printf %s "$POSTGRES_PASSWORD" > /tmp/password
    initdb --username=postgres --pwfile=/tmp/password --auth=scram-sha-256 --locale=C --encoding=UTF8
    rm /tmp/password
    echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
    # What initdb writes is on the disk when it ends; this is not.
    sync
fi
exec "$@"
"#;

/// Counts visits in Redis.
const VISITS: &str = r#"#!/bin/sh
printf 'Content-Type: text/plain\r\n\r\nvisits\r\n'
printf 'AUTH %s\r\nINCR visits\r\nQUIT\r\n' "$REDIS_PASSWORD" | nc cache 6379
"#;

fn toolbox() -> &'static Toolbox {
    static TOOLBOX: OnceLock<Toolbox> = OnceLock::new();
    TOOLBOX.get_or_init(|| {
        let toolbox = Toolbox::open_set(&bench().project, Set::Workload, LockPolicy::Newest);
        toolbox.unwrap_or_else(|error| panic!("the toolbox of workloads: {error:#}"))
    })
}

/// A program of the packages that the images are made of, on this side.
pub fn client(program: &str) -> Command {
    toolbox().command(program)
}

/// PostgreSQL, which keeps what it has in `/var/lib/postgresql/data`. Its superuser's password is `$POSTGRES_PASSWORD`.
#[track_caller]
pub fn postgres() -> Image {
    let files = ["bin/postgres", "bin/initdb", "bin/pg_isready", "lib/dict_snowball.so", "lib/plpgsql.so"];
    let files = files.map(|name| format!("/usr/lib/postgresql/17/{name}"));
    let archive = users()
        .file("usr/local/bin/entrypoint", 0o755, POSTGRES_ENTRYPOINT)
        .owned_folder("run/postgresql", 0o755, POSTGRES)
        .link("var/run", "/run")
        .owned_folder("var/lib/postgresql", 0o755, POSTGRES)
        .owned_folder("var/lib/postgresql/data", 0o700, POSTGRES);
    packaged("postgres", &files, &["/usr/share/postgresql/17"])
        .layer(Layer::new(&archive.finish(), Packing::Gzip))
        .with("Env", json!([format!("PATH={POSTGRES_PROGRAMS}:/bin"), "PGDATA=/var/lib/postgresql/data"]))
        .with("Entrypoint", json!(["/usr/local/bin/entrypoint"]))
        .with("Cmd", json!(["postgres", "-c", "listen_addresses=*"]))
        .with("User", json!("postgres"))
        .with("StopSignal", json!("SIGINT"))
}

/// Redis, which keeps what it has in `/data`.
#[track_caller]
pub fn redis() -> Image {
    let programs = ["redis-server", "redis-cli"].map(|name| format!("/usr/bin/{name}"));
    packaged("redis", &programs, &[])
        .layer(Layer::new(&users().owned_folder("data", 0o755, REDIS).finish(), Packing::Gzip))
        .with("Env", json!(["PATH=/usr/bin:/bin"]))
        .with("Entrypoint", json!(["redis-server"]))
        .with("WorkingDir", json!("/data"))
        .with("User", json!("redis"))
}

/// nginx with this configuration.
#[track_caller]
pub fn nginx(configuration: &str) -> Image {
    // Where it writes its number, and what it says before it has read where to.
    let folders = ["run", "var/lib/nginx", "var/log/nginx"];
    let archive = folders.into_iter().fold(users(), |archive, name| archive.folder(name, 0o755));
    let archive = archive.file("etc/nginx/nginx.conf", 0o644, configuration);
    packaged(
        "nginx",
        &["/usr/sbin/nginx", "/usr/lib/nginx/modules/ngx_stream_module.so"].map(str::to_owned),
        &[],
    )
    .layer(Layer::new(&archive.finish(), Packing::Gzip))
    .with("Entrypoint", json!(["/usr/sbin/nginx", "-g", "daemon off;"]))
    .with("Cmd", json!([]))
    .with("StopSignal", json!("SIGQUIT"))
}

/// A web server at port 8080 that counts visits, with Redis as `cache` and its password in `$REDIS_PASSWORD`.
#[track_caller]
pub fn visits() -> Image {
    let archive = Archive::new().file("srv/cgi-bin/visits", 0o755, VISITS);
    Image::busybox()
        .layer(Layer::new(&archive.finish(), Packing::Gzip))
        .with("Cmd", json!(["httpd", "-f", "-p", "8080", "-h", "/srv"]))
}

/// Debian's virtual machine for programs in Java. The image names no command.
#[track_caller]
pub fn java() -> Image {
    const HOME: &str = "/usr/lib/jvm/java-21-openjdk-amd64";
    let programs = ["bin/java", "lib/server/libjvm.so", "lib/libnet.so", "lib/libnio.so", "lib/libzip.so"];
    let programs = programs.map(|name| format!("{HOME}/{name}"));
    packaged("java", &programs, &[HOME])
        .with("Env", json!([format!("PATH={HOME}/bin:/bin")]))
        .with("Cmd", Value::Null)
        .with("User", json!("1000:1000"))
}

/// Debian's docker-registry, a program in Go, and nothing beside it (no shell, no passwd): it listens at port 5000 and keeps what it has
/// in `/data`.
#[track_caller]
pub fn registry() -> Image {
    const USER: u64 = 65532;
    let configuration = json!({
        "version": 0.1,
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": "/data"}},
        "http": {"addr": ":5000"},
    });
    let archive = Archive::new()
        .file("etc/registry.json", 0o644, configuration.to_string())
        .owned_folder("data", 0o755, USER);
    let program = layer("registry", &["/usr/bin/docker-registry".to_owned()], &[]);
    let program = program.unwrap_or_else(|error| panic!("the image of a registry: {error:#}"));
    Image::empty()
        .layer(program)
        .layer(Layer::new(&archive.finish(), Packing::Gzip))
        .with("Entrypoint", json!(["/usr/bin/docker-registry"]))
        .with("Cmd", json!(["serve", "/etc/registry.json"]))
        .with("User", json!(USER.to_string()))
}

/// busybox with `getfattr` and `getcap`.
#[track_caller]
pub fn attributes() -> Image {
    packaged("attributes", &["/usr/bin/getfattr", "/usr/sbin/getcap"].map(str::to_owned), &[])
}

fn users() -> Archive {
    Archive::new().file("etc/passwd", 0o644, PASSWD).file("etc/group", 0o644, GROUP)
}

/// busybox, and over it these programs and folders of the packages, with the libraries that the programs need.
#[track_caller]
fn packaged(name: &str, programs: &[String], folders: &[&str]) -> Image {
    let layer = layer(name, programs, folders);
    Image::busybox().layer(layer.unwrap_or_else(|error| panic!("the image {name}: {error:#}")))
}

fn layer(name: &str, programs: &[String], folders: &[&str]) -> Result<Layer> {
    let (project, toolbox) = (&bench().project, toolbox());
    let key = Key::new("workload 2").text(&toolbox.id).text(&programs.join(" ")).text(&folders.join(" "));
    let step = format!("image-{name}");
    let entry = project.cache.step(&step, "a layer of Debian's packages", key, |out| {
        let mut files: BTreeSet<String> = programs.iter().cloned().collect();
        files.extend(folders.iter().map(|folder| (*folder).to_owned()));
        let told = run_quiet(toolbox.command("ldd").args(programs), "asking for libraries")?;
        // `NAME => PATH (ADDRESS)`, or the path of the loader alone.
        let told = String::from_utf8(told)?;
        let paths = told.lines().filter_map(|line| line.rsplit_once(" (")?.0.split_whitespace().last());
        files.extend(paths.filter(|path| path.starts_with('/')).map(str::to_owned));
        let tar = out.join("layer.tar");
        let mut command = toolbox.command("tar");
        // What is a link in Debian's packages is what it leads to: there is one name for each library.
        command.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--dereference"]);
        command.args(["--hard-dereference", "--exclude=usr/share/postgresql/17/man"]);
        // Certificates, which a script of the package would have made.
        command.arg("--exclude=*/lib/security/cacerts");
        command.arg(format!("--mtime=@{SOURCE_DATE_EPOCH}")).arg("-cf").arg(&tar);
        command.args(["-C", "/"]).args(files.iter().map(|file| file.trim_start_matches('/')));
        run_quiet(&mut command, "packing")?;
        fs::write(out.join("diff-id"), digest(&fs::read(&tar)?))?;
        run_quiet(bench().toolbox.command("gzip").arg("-n").arg(&tar), "gzip")?;
        Ok(())
    })?;
    let read =
        |name: &str| fs::read(entry.path.join(name)).with_context(|| format!("no {name} in the cache"));
    Ok(Layer::gzipped(read("layer.tar.gz")?, String::from_utf8(read("diff-id")?)?))
}
