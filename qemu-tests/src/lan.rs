//! A network of its own for a story: nodes and real servers in a network namespace that has no way out.

use anyhow::{Context, Result, ensure};
use build::command::{run_quiet, tail};
use build::toolbox::Toolbox;
use build::vm::config::Tap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

use crate::bench::bench;
use crate::config::Config;

const START: Duration = Duration::from_secs(20);

/// The namespace, a bridge in it, and its address.
const MAKE: &str = "ip link set lo up && ip link add lan type bridge && ip link set lan up && \
    ip address add 192.0.2.1/24 dev lan && ip address add fd00:2::1/64 dev lan nodad && echo ready && exec sleep infinity";

pub struct Lan {
    /// Its end is the network's.
    holder: Child,
    servers: Vec<Child>,
    web: Option<Child>,
    taps: u32,
    folder: TempDir,
}

impl Lan {
    /// What servers listen on, and nodes see as their router (192.0.2.0/24 is for documents, RFC 5737: it is nobody's).
    pub const ADDRESS: &str = "192.0.2.1";

    #[track_caller]
    pub fn new() -> Self {
        Self::try_new().unwrap_or_else(|error| panic!("no network for the story (it takes root): {error:#}"))
    }

    fn try_new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("caisson-lan-").tempdir_in("/tmp")?;
        let mut command = bench().toolbox.command("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--net", "sh", "-c", MAKE]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(folder.path().join("log"))?);
        let mut holder = command.spawn()?;
        let mut line = String::new();
        BufReader::new(holder.stdout.take().context("no output")?).read_line(&mut line)?;
        let lan = Self { holder, servers: Vec::new(), web: None, taps: 0, folder };
        ensure!(line.trim() == "ready", "{}", tail(&lan.path("log"), 10));
        Ok(lan)
    }

    /// A node that is plugged into this network.
    #[track_caller]
    pub fn attach(&mut self, config: Config) -> Config {
        let interface = self.tap();
        Config { tap: Some(Tap { process: self.holder.id(), interface }), ..config }
    }

    /// The same with more network cards in this network: `eth0`, `eth1` and so on.
    #[track_caller]
    pub fn attach_cards(&mut self, config: Config, cards: usize) -> Config {
        let mut config = self.attach(config);
        for number in 1..cards {
            let network = format!("tap,id=lan{number},ifname={},script=no,downscript=no", self.tap());
            let card = format!("virtio-net-pci,netdev=lan{number}");
            config.extra.extend(["-netdev", &network, "-device", &card].map(str::to_owned));
        }
        config
    }

    #[track_caller]
    fn tap(&mut self) -> String {
        let interface = format!("tap{}", self.taps);
        self.taps += 1;
        for line in [
            format!("tuntap add {interface} mode tap"),
            format!("link set {interface} master lan"),
            format!("link set {interface} up"),
        ] {
            self.run("ip", &line.split(' ').collect::<Vec<_>>());
        }
        interface
    }

    /// Whether there is a web server at a host of this network that answers within two seconds.
    #[track_caller]
    pub fn reaches(&self, host: &str) -> bool {
        let url = format!("http://{host}/hosts");
        let arguments = ["wget", "-q", "-T", "2", "-O", "-", &url];
        run_quiet(self.command("busybox").args(arguments), "wget").is_ok()
    }

    /// dnsmasq, for DHCP from 192.0.2.50 on and for names below `lan.test`, with more options. Its log is [`Lan::dnsmasq_log`].
    #[track_caller]
    pub fn dnsmasq(&mut self, options: &[&str]) {
        let log = File::create(self.path("dnsmasq.log")).expect("a log");
        let leases = format!("--dhcp-leasefile={}", self.path("leases").display());
        let mut command = self.command("dnsmasq");
        command.args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--log-facility=-",
            "--log-dhcp",
            "--user=root",
        ]);
        command.args([
            "--pid-file=",
            "--no-resolv",
            "--no-hosts",
            "--interface=lan",
            "--bind-interfaces",
            &leases,
        ]);
        command.args(["--domain=lan.test", "--local=/lan.test/", "--dhcp-authoritative"]).args(options);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        let mut server = command.spawn().expect("dnsmasq");
        let deadline = Instant::now() + START;
        while !self.dnsmasq_log().contains("started") {
            assert!(matches!(server.try_wait(), Ok(None)), "dnsmasq ended at once: {}", self.dnsmasq_log());
            assert!(Instant::now() < deadline, "dnsmasq does not start: {}", self.dnsmasq_log());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.servers.push(server);
    }

    /// nginx, for the files in a folder below `/tmp`: `http://192.0.2.1:8080/`. Those in its `targets` are there in other manners
    /// too: without ranges below `/whole/`, one mebibyte a second below `/slow/`, and, but for manifests, an error of the server below
    /// `/broken/`, and a redirect to itself below `/loop/`.
    #[track_caller]
    pub fn nginx(&mut self, folder: &Path) {
        let configuration = format!(
            "user root; daemon off; master_process off; pid {0}/nginx.pid; error_log {0}/nginx.log; events {{}}\n\
             http {{ access_log off; client_body_temp_path {0}/body; proxy_temp_path {0}/proxy; fastcgi_temp_path {0}/fastcgi;\n\
             uwsgi_temp_path {0}/uwsgi; scgi_temp_path {0}/scgi;\n\
             server {{ listen {1}:8080; root {2};\n\
             location /whole/ {{ alias {2}/targets/; max_ranges 0; }} location /slow/ {{ alias {2}/targets/; limit_rate 1m; }}\n\
             location ~ ^/(broken|loop)/(.*manifest.json)$ {{ alias {2}/targets/$2; }}\n\
             location /broken/ {{ return 500; }} location /loop/ {{ return 302 $request_uri; }} }} }}\n",
            self.folder.path().display(),
            Self::ADDRESS,
            folder.display()
        );
        fs::write(self.path("nginx.conf"), configuration).expect("nginx's configuration");
        let tests = Toolbox::for_tests(&bench().project);
        let toolbox = tests.unwrap_or_else(|error| panic!("the toolbox of the tests: {error:#}"));
        let log = File::create(self.path("nginx.out")).expect("a log");
        let mut command = self.command_of(toolbox, "nginx");
        command.arg("-c").arg(self.path("nginx.conf")).arg("-e").arg(self.path("nginx.log"));
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        let mut server = command.spawn().expect("nginx");
        let deadline = Instant::now() + START;
        while !self.path("nginx.pid").exists() {
            let said = || tail(&self.path("nginx.out"), 10);
            assert!(matches!(server.try_wait(), Ok(None)), "nginx ended at once: {}", said());
            assert!(Instant::now() < deadline, "nginx does not start: {}", said());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.web = Some(server);
    }

    /// Ends nginx in the middle of what it does, and starts it again.
    #[track_caller]
    pub fn restart_nginx(&mut self, folder: &Path) {
        self.web.take().into_iter().for_each(end);
        fs::remove_file(self.path("nginx.pid")).expect("nginx's file of its id");
        self.nginx(folder);
    }

    /// chrony as an NTP server with the host's time, on [`Lan::ADDRESS`]; it leaves the host's clock alone (`-x`).
    #[track_caller]
    pub fn chrony(&mut self) {
        let log = self.path("chrony.log");
        let file = File::create(&log).expect("a log");
        let mut command = self.command("chronyd");
        command.args(["-x", "-d", "-u", "root", "local stratum 1", "allow", "cmdport 0", "bindcmdaddress /"]);
        command.arg(format!("pidfile {}", self.path("chrony.pid").display()));
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("a log")).stderr(file);
        let mut server = command.spawn().expect("chronyd");
        let deadline = Instant::now() + START;
        let said = || fs::read_to_string(&log).unwrap_or_default();
        while !said().contains("Running with root privileges") {
            assert!(matches!(server.try_wait(), Ok(None)), "chronyd ended at once: {}", said());
            assert!(Instant::now() < deadline, "chronyd does not start: {}", said());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.servers.push(server);
    }

    /// Stops all servers.
    pub fn silence(&mut self) {
        self.servers.drain(..).chain(self.web.take()).for_each(end);
    }

    pub fn dnsmasq_log(&self) -> String {
        fs::read_to_string(self.path("dnsmasq.log")).unwrap_or_default()
    }

    /// A program of the toolbox, run to its end in this network; what it printed.
    #[track_caller]
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = run_quiet(self.command(program).args(arguments), program);
        let output = output.unwrap_or_else(|error| panic!("{program} {}: {error:#}", arguments.join(" ")));
        String::from_utf8_lossy(&output).into_owned()
    }

    /// A program of the toolbox in this network; it ends with us.
    fn command(&self, program: &str) -> Command {
        self.command_of(bench().toolbox.clone(), program)
    }

    fn command_of(&self, toolbox: Toolbox, program: &str) -> Command {
        let mut command = toolbox.with_share(self.folder.path()).command("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.holder.id()));
        command.args(["setpriv", "--pdeathsig", "KILL", program]);
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn end(mut server: Child) {
    let _ = server.kill();
    let _ = server.wait();
}

impl Default for Lan {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        self.silence();
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        if std::thread::panicking() {
            eprintln!("---- dnsmasq\n{}", tail(&self.path("dnsmasq.log"), 30));
        }
    }
}
