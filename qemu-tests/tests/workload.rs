//! What people really run: the example of docs/containers.md, with Debian's PostgreSQL, Redis and nginx.

use build::artifacts::copy_sparse;
use qemu_tests::workload::{self, POSTGRES_PROGRAMS, client};
use qemu_tests::{Config, ContainerStatus, Format, Node, Registry, free_port};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Until all of it is healthy. The first time, images are pulled and a database is made.
const PATIENCE: Duration = Duration::from_secs(240);
/// Lines that both writers have to have been told before the power is cut.
const ACKNOWLEDGED: usize = 40;
const PASSWORD: &str = "change-me";

/// A block of the document's section, by its language.
fn example(language: &str) -> &'static str {
    let page = include_str!("../../docs/containers.md");
    let section = page.split("\n## ").find(|section| section.starts_with("All of it at once"));
    let fence = format!("```{language}\n");
    let block = section.and_then(|section| section.split(&fence).nth(1)?.split("```").next());
    block.unwrap_or_else(|| panic!("docs/containers.md has no example in {language}"))
}

/// The ports of this side that lead to the node's.
struct Ports {
    web: u16,
    database: u16,
    cache: u16,
}

impl Ports {
    fn new() -> Self {
        Self { web: free_port(), database: free_port(), cache: free_port() }
    }

    /// A program of PostgreSQL, with whom it asks and as whom.
    fn database(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = client("timeout");
        command.arg("120").arg("stdbuf").arg("-oL").arg(format!("{POSTGRES_PROGRAMS}/{program}"));
        command.args(["-h", "127.0.0.1", "-p", &self.database.to_string(), "-U", "postgres"]);
        command.args(arguments).env("PGPASSWORD", PASSWORD).env("PGDATABASE", "postgres");
        command
    }

    fn cache(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = client("timeout");
        command.args(["120", "stdbuf", "-oL", program, "-h", "127.0.0.1", "-p", &self.cache.to_string()]);
        command.args(arguments).env("REDISCLI_AUTH", PASSWORD);
        command
    }

    #[track_caller]
    fn sql(&self, statement: &str) -> String {
        output(self.database("psql", &["-qtA", "-c", statement])).trim().to_owned()
    }

    #[track_caller]
    fn page(&self) -> String {
        let mut command = client("bash");
        let ask = format!(
            "exec 3<> /dev/tcp/127.0.0.1/{}; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; timeout 20 cat <&3",
            self.web
        );
        output({
            command.args(["-c", &ask]);
            command
        })
    }
}

/// What a program that succeeds says.
#[track_caller]
fn output(mut command: Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("a program of the toolbox");
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}: {}{}", said(&output.stdout), said(&output.stderr));
    said(&output.stdout)
}

/// Somebody who asks without end, and notes what was answered. Ended when it is dropped.
struct Writer {
    processes: Vec<Child>,
    file: PathBuf,
}

impl Writer {
    /// Lines of this format are the input, with numbers from 1 on.
    #[track_caller]
    fn start(format: &str, mut command: Command, file: &Path) -> Self {
        let mut seq = client("seq");
        let mut seq = seq
            .args(["-f", format, "10000000"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("seq");
        let answers = File::create(file).expect("a file");
        command.stdin(seq.stdout.take().expect("its output")).stdout(answers).stderr(Stdio::null());
        let asking = command.spawn().expect("a program of the toolbox");
        Self { processes: vec![seq, asking], file: file.to_owned() }
    }

    /// Numbers that were answered: whole lines.
    fn acknowledged(&self) -> usize {
        let text = fs::read_to_string(&self.file).unwrap_or_default();
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        let count = whole.lines().count();
        assert!(
            whole.lines().eq((1..=count).map(|number| number.to_string())),
            "not what was asked: {whole}"
        );
        count
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

#[track_caller]
fn wait_until_all_are_healthy(node: &Node) {
    let mut last = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    let mut are_up = || {
        let answer =
            node.request_within(Duration::from_secs(20), hyper::Method::GET, "/containers", "").ok()?;
        let all: Vec<ContainerStatus> = serde_json::from_slice(&answer.body).ok()?;
        let are_up = all.len() == 4 && all.iter().all(ContainerStatus::is_up);
        last = all;
        are_up.then_some(())
    };
    while are_up().is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(500));
    }
    let others: Vec<String> = last
        .iter()
        .filter(|container| !container.is_up())
        .map(|container| format!("{container:#?}\n{}", node.logs(&container.name)))
        .collect();
    let are_up = last.len() == 4 && others.is_empty();
    let images = || node.request(hyper::Method::GET, "/images", "").text();
    assert!(
        are_up,
        "not all are healthy within {} s: {}\n{}",
        PATIENCE.as_secs(),
        others.join("\n"),
        images()
    );
}

/// The disk is the strictest there may be: what was not flushed is gone.
#[test]
fn a_power_cut_takes_nothing_that_was_acknowledged() {
    let registry = Registry::start();
    registry.push("team/postgres", "17", &workload::postgres());
    registry.push("team/redis", "8", &workload::redis());
    registry.push("team/visits", "1", &workload::visits());
    registry.push("team/nginx", "1", &workload::nginx(example("nginx")));
    let ports = Ports::new();
    let settings = example("toml").replace("registry.example.com", Registry::ADDRESS);
    let config = Config { cpus: 2, memory_mib: 512, format: Format::Recorded, ..Config::direct() };
    let mut node = Node::new(config.registry(&registry).user_data(settings));
    node.config.ports = vec![(ports.web, 80), (ports.database, 5432), (ports.cache, 6379)];
    let before = node.path("before.img");
    copy_sparse(&node.disk_path(), &before).expect("a copy of the disk");
    let begun = Instant::now();
    let told = |what: &str| eprintln!("{:>6.1} s: {what}", begun.elapsed().as_secs_f64());
    node.start();
    wait_until_all_are_healthy(&node);
    told("all are healthy");

    // From outside, through the ports of the one in front.
    for visit in 1..=2 {
        let page = ports.page();
        assert!(page.contains(" 200 OK") && page.contains(&format!(":{visit}\r\n")), "{page}");
    }
    output(ports.database("pgbench", &["--initialize", "--quiet", "--scale=1"]));
    told("pgbench has made its tables");
    let bench = output(ports.database("pgbench", &["--client=4", "--transactions=25", "--no-vacuum"]));
    assert!(bench.contains("number of transactions actually processed: 100/100"), "{bench}");
    told(bench.lines().find(|line| line.starts_with("tps")).unwrap_or_default());
    let bench = output(
        ports.cache("redis-benchmark", &["-a", PASSWORD, "-t", "set,get", "-n", "1000", "-c", "10", "-q"]),
    );
    assert!(bench.contains("SET: ") && bench.contains("GET: "), "{bench}");
    told(
        &bench
            .replace('\r', "\n")
            .lines()
            .filter(|line| line.contains("p50="))
            .collect::<Vec<_>>()
            .join("; "),
    );

    // The power goes in the middle of three who write.
    ports.sql("CREATE TABLE ledger (number int PRIMARY KEY)");
    let insert = "INSERT INTO ledger VALUES (%.0f) RETURNING number;";
    let rows = Writer::start(insert, ports.database("psql", &["-qtA"]), &node.path("rows"));
    let keys = Writer::start("RPUSH ledger %.0f", ports.cache("redis-cli", &[]), &node.path("keys"));
    let mut busy = ports.database("pgbench", &["--client=2", "--time=100", "--no-vacuum"]);
    let mut busy = busy.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("pgbench");
    node.wait_for("both are told of what they wrote", PATIENCE, |_| {
        (rows.acknowledged() >= ACKNOWLEDGED && keys.acknowledged() >= ACKNOWLEDGED).then_some(())
    });
    node.cut_power_of_cache(&before);
    let (told_rows, told_keys) = (rows.acknowledged(), keys.acknowledged());
    drop((rows, keys));
    let _ = busy.kill();
    let _ = busy.wait();
    told(&format!("the power is cut after {told_rows} rows and {told_keys} entries"));

    // Without anybody's hand, and without the registry.
    drop(registry);
    node.config.format = Format::Raw;
    node.start();
    wait_until_all_are_healthy(&node);
    told("all are healthy again");
    for container in node.containers() {
        assert_eq!(container.restarts, 0, "{container:?}");
    }
    assert_eq!(
        ports.sql(&format!("SELECT count(*) FROM ledger WHERE number <= {told_rows}")),
        told_rows.to_string()
    );
    // What pgbench does is whole, or not there: its three sums are the same.
    let sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(bbalance) FROM pgbench_branches), \
        (SELECT sum(bbalance) FROM pgbench_branches) = (SELECT sum(delta) FROM pgbench_history), \
        (SELECT count(*) >= 100 FROM pgbench_history)";
    assert_eq!(ports.sql(sums), "t|t|t");
    let entries = output(ports.cache("redis-cli", &["LRANGE", "ledger", "0", &(told_keys - 1).to_string()]));
    let expected: Vec<String> = (1..=told_keys).map(|number| number.to_string()).collect();
    assert_eq!(entries.lines().collect::<Vec<_>>(), expected);
    let page = ports.page();
    assert!(page.contains(":3\r\n"), "{page}");
    node.power_off();
    told("the end");
}
