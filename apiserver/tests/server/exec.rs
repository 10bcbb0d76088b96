//! A process in a container, by a websocket: the client, the server, and an agent that is only pretended.

use apiserver::agent::{Copy, ErrorKind, Exec, Files, Request, Response};
use apiserver::exec::frames::{FromAgent, Size, ToAgent};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::agent::answer;
use crate::harness::Server;

/// The agent's end of a session.
struct Session {
    exec: Exec,
    stream: UnixStream,
}

impl Session {
    fn send(&mut self, frame: &FromAgent) {
        let mut wire = Vec::new();
        block_on(frame.write(&mut wire)).unwrap();
        self.stream.write_all(&wire).unwrap();
    }

    fn receive(&mut self) -> Option<ToAgent> {
        let mut head = [0; 5];
        self.stream.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let mut frame = head.to_vec();
        frame.resize(5 + length, 0);
        self.stream.read_exact(&mut frame[5..]).ok()?;
        block_on(ToAgent::read(&mut frame.as_slice())).unwrap()
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Runs whatever is asked for, as `running` says, and tells what was asked for.
fn agent(server: &Server, running: impl Fn(&mut Session) + Clone + Send + 'static) -> Receiver<Exec> {
    let listener = UnixListener::bind(server.dir.path().join("agent.sock")).unwrap();
    let (told, asked) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (running, told) = (running.clone(), told.clone());
            std::thread::spawn(move || {
                let mut stream = BufReader::new(stream.unwrap());
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                let Ok(Request::Exec(exec)) = serde_json::from_str(&line) else { panic!("asked for {line}") };
                let mut stream = stream.into_inner();
                let known = ["web", "host-containers.admin"].contains(&exec.name.as_str());
                let response = match known {
                    true => Response::Done,
                    false => Response::Error {
                        kind: ErrorKind::NotFound,
                        message: format!("there is no container: there are {}", "web, ".repeat(50)),
                    },
                };
                stream.write_all(answer(&response).as_bytes()).unwrap();
                let _ = told.send(exec.clone());
                if known {
                    running(&mut Session { exec, stream });
                }
            });
        }
    });
    asked
}

fn run(server: &Server, arguments: &[&str], input: &[u8]) -> Output {
    let mut command = server.client_command(arguments);
    let mut client =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = client.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let output = client.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// As `cat` does.
fn echo(session: &mut Session) {
    while let Some(frame) = session.receive() {
        match frame {
            ToAgent::Input(data) => {
                session.send(&FromAgent::Output(data));
                session.send(&FromAgent::Taken);
            }
            ToAgent::EndOfInput => {
                session.send(&FromAgent::Errors(b"ended\n".to_vec()));
                return session.send(&FromAgent::Exited(7));
            }
            ToAgent::Resized(_) => {}
        }
    }
}

#[test]
fn output_errors_and_exit_code_are_the_commands_and_nothing_is_lost() {
    let server = Server::start();
    let asked = agent(&server, echo);
    let data: Vec<u8> = (0..1_u32 << 20).map(|number| (number / 3) as u8).collect();
    let output = run(&server, &["exec", "web", "cat", "-u", "--", "-t"], &data);
    assert!(output.stdout == data, "{} bytes", output.stdout.len());
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(7), &b"ended\n"[..]));
    let Exec { name, command, terminal, apart, asker } = asked.recv().unwrap();
    assert_eq!((name.as_str(), terminal, apart), ("web", None, true));
    assert_eq!(command, ["cat", "-u", "--", "-t"]);
    assert_eq!(asker, Some(nix::unistd::getuid().as_raw()));
    // With a terminal, whose size nobody knows here.
    let output = run(&server, &["exec", "-it", "host-containers.admin", "sh"], b"x");
    assert_eq!(output.status.code(), Some(7));
    let asked = asked.recv().unwrap();
    assert_eq!((asked.terminal, asked.apart), (Some(Size { rows: 24, cols: 80 }), false));
}

#[test]
fn what_cannot_be_run_is_told_whole_and_is_no_exit_code_of_a_command() {
    let server = Server::start();
    let asked = agent(&server, echo);
    let long = "x".repeat(17 << 10);
    for (arguments, said) in [
        (&["exec", "wbe", "ls"][..], "web, web, web, web"),
        (&["exec", "../web", "ls"], "it is not the name of a container"),
        (&["exec", "host-containers.a.b", "ls"], "it is not the name of a container"),
        (&["exec", "web", ""], "no command is named"),
        (&["exec", "web", "ls", &long], "pass the rest on its standard input"),
    ] {
        let output = run(&server, arguments, b"");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(255) && text.contains(said), "{said}: {text}");
        // More than fits into the closing of a websocket.
        assert!(said != "web, web, web, web" || text.len() > 200, "{text}");
    }
    assert_eq!(asked.recv().unwrap().name, "wbe");
    assert!(asked.try_recv().is_err(), "the agent was asked for what cannot be");
    assert_eq!(run(&server, &["exec", "web"], b"").status.code(), Some(2));
}

#[test]
fn a_session_that_breaks_is_told_and_a_client_that_goes_ends_its_own() {
    let server = Server::start();
    let (told, gone) = channel();
    let _asked = agent(&server, move |session| {
        if session.exec.command == ["break"] {
            return session.send(&FromAgent::Output(b"begun\n".to_vec()));
        }
        session.send(&FromAgent::Output(b"begun\n".to_vec()));
        while session.receive().is_some() {}
        told.send(()).unwrap();
    });
    let output = run(&server, &["exec", "web", "break"], b"");
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(255), &b"begun\n"[..]));
    assert!(text.contains("the host agent ended it"), "{text}");
    let mut client = server
        .client_command(&["exec", "web", "sleep", "600"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut begun = [0; 6];
    client.stdout.as_mut().unwrap().read_exact(&mut begun).unwrap();
    client.kill().unwrap();
    client.wait().unwrap();
    gone.recv_timeout(Duration::from_secs(20)).unwrap();
}

/// A client that is not ours.
struct Raw(UnixStream);

impl Raw {
    fn open(server: &Server, socket: &std::path::Path) -> Result<Self, String> {
        assert!(server.dir.path().exists());
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let head = "GET /exec HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
            sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
        let answer = String::from_utf8(answer).unwrap();
        if !answer.starts_with("HTTP/1.1 101") {
            return Err(answer);
        }
        // RFC 6455, section 1.3.
        assert!(answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{answer}");
        Ok(Self(stream))
    }

    /// As a client has to: masked, here with zeros.
    fn frame(opcode: u8, length: usize, data: &[u8]) -> Vec<u8> {
        let mut frame = vec![opcode, 0x80 | 127];
        frame.extend((length as u64).to_be_bytes());
        frame.extend([0; 4]);
        frame.extend(data);
        frame
    }

    fn send(&mut self, opcode: u8, data: &[u8]) -> std::io::Result<()> {
        self.0.write_all(&Self::frame(opcode, data.len(), data))
    }

    fn initialize(&mut self) {
        let word = serde_json::json!([{"Unix": b"cat"}]);
        let told = serde_json::json!({"Initialize": {"command": word, "target": "web", "tty": null}});
        self.send(0x81, told.to_string().as_bytes()).unwrap();
    }

    /// The next message that is none of the heartbeat's; none at the end of the connection.
    fn receive(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            let mut head = [0; 2];
            self.0.read_exact(&mut head).ok()?;
            let mut length = usize::from(head[1]);
            if length == 126 {
                let mut long = [0; 2];
                self.0.read_exact(&mut long).ok()?;
                length = usize::from(u16::from_be_bytes(long));
            }
            let mut data = vec![0; length];
            self.0.read_exact(&mut data).ok()?;
            if head[0] & 0xf != 9 {
                return Some((head[0] & 0xf, data));
            }
        }
    }

    /// What it is closed with.
    fn closing(&mut self) -> (u16, String) {
        loop {
            let (opcode, data) = self.receive().expect("it was closed without a word");
            if opcode == 8 {
                let text = String::from_utf8(data[2..].to_vec()).unwrap();
                return (u16::from_be_bytes([data[0], data[1]]), text);
            }
        }
    }
}

#[test]
fn a_client_of_bottlerockets_has_both_outputs_in_one() {
    let server = Server::start();
    let asked = agent(&server, |session| {
        session.send(&FromAgent::Output(b"one".to_vec()));
        session.send(&FromAgent::Exited(137));
    });
    let mut client = Raw::open(&server, &server.socket()).unwrap();
    client.initialize();
    let capacity = r#"{"Capacity":{"max_messages_outstanding":16,"messages_written":0}}"#;
    assert_eq!(client.receive(), Some((1, capacity.as_bytes().to_vec())));
    assert_eq!(client.receive(), Some((2, b"one".to_vec())));
    assert_eq!(client.closing(), (1000, "137".to_owned()));
    assert!(!asked.recv().unwrap().apart);
}

#[test]
fn what_a_hostile_client_sends_is_refused_and_takes_no_memory() {
    let server = Server::start();
    // It takes nothing.
    let _asked = agent(&server, |session| while session.receive().is_some() {});
    let before = server.peak_memory_kib();
    let text = |text: &str| Raw::frame(0x81, text.len(), text.as_bytes());
    let word = serde_json::json!([{"Unix": vec![1; 13 << 10]}]);
    let long = serde_json::json!({"Initialize": {"command": word, "target": "web", "tty": null}});
    let long = text(&long.to_string());
    let early = "process data sent before initialization";
    for (begun, sent, code, said) in [
        (false, text("{"), 1007, "invalid JSON"),
        (false, text("\"ContentComplete\""), 1008, early),
        (false, Raw::frame(0x82, 1, b"x"), 1008, early),
        (true, Raw::frame(0x82, 1 << 40, b""), 1009, "are allowed"),
        (true, Raw::frame(0x82, 70_000, &[0; 70_000]), 1009, "are allowed"),
        (false, long, 1011, "12288 are allowed"),
        (true, text(r#"{"Winch": {"rows": 1}}"#), 1007, "invalid JSON"),
        (true, [text("\"ContentComplete\""), Raw::frame(0x82, 1, b"x")].concat(), 1008, "after"),
        (true, Raw::frame(0x82, 1, b"x").repeat(17), 1009, "obey capacity"),
        // Not masked; an opcode that there is not.
        (true, vec![0x82, 1, b'x'], 1002, ""),
        (true, Raw::frame(0x83, 1, b"x"), 1002, ""),
    ] {
        let mut client = Raw::open(&server, &server.socket()).unwrap();
        if begun {
            client.initialize();
        }
        let _ = client.0.write_all(&sent);
        let (closed, reason) = client.closing();
        assert!(closed == code && reason.contains(said), "{closed} {reason}, wanted {code} {said}");
    }
    let grown = server.peak_memory_kib() - before;
    assert!(grown < 8 << 10, "{grown} KiB");
}

#[test]
fn a_client_that_does_not_read_makes_the_process_wait() {
    let server = Server::start();
    let (told, sent) = channel();
    let _asked = agent(&server, move |session| {
        session.stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
        let mut wire = Vec::new();
        block_on(FromAgent::Output(vec![0; 16 << 10]).write(&mut wire)).unwrap();
        // Until it has to wait.
        let count = (0..10_000).take_while(|_| session.stream.write_all(&wire).is_ok()).count();
        told.send(count).unwrap();
    });
    let before = server.peak_memory_kib();
    let mut client = Raw::open(&server, &server.socket()).unwrap();
    client.initialize();
    let count = sent.recv_timeout(Duration::from_secs(60)).unwrap();
    assert!(count < 200, "{count} messages of 16 KiB went to a client that reads none");
    let grown = server.peak_memory_kib() - before;
    assert!(grown < 4 << 10, "{grown} KiB");
}

#[test]
fn only_so_many_run_at_once_and_none_by_the_socket_that_only_reads() {
    let server = Server::start();
    let _asked = agent(&server, |session| while session.receive().is_some() {});
    let refused = Raw::open(&server, &server.read_socket()).err().unwrap();
    assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    let mut clients: Vec<Raw> = (0..16).map(|_| Raw::open(&server, &server.socket()).unwrap()).collect();
    clients.iter_mut().for_each(Raw::initialize);
    let refused = Raw::open(&server, &server.socket()).err().unwrap();
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    clients.pop();
    let deadline = Instant::now() + Duration::from_secs(20);
    while Raw::open(&server, &server.socket()).is_err() {
        assert!(Instant::now() < deadline, "the place of one that has gone stays taken");
        std::thread::sleep(Duration::from_millis(50));
    }
    // Whoever asks by other means than a websocket is told how.
    let plain = server.send(hyper::Method::GET, "/exec", "");
    assert!(plain.status == 426 && plain.text().contains("apiclient exec"), "{}", plain.text());
}

/// What a person sees who runs these commands in a terminal. Of util-linux, which every Debian has.
fn in_terminal(commands: &str) -> String {
    let mut script = std::process::Command::new("script");
    let script = script.args(["-qec", commands, "/dev/null"]).stdin(Stdio::null()).output().unwrap();
    String::from_utf8(script.stdout).unwrap()
}

#[test]
fn a_terminal_is_handed_over_with_its_size_and_is_afterwards_as_it_was() {
    let server = Server::start();
    let asked = agent(&server, |session| {
        session.send(&FromAgent::Output(b"begun\r\n".to_vec()));
        if session.exec.command == ["resize"] {
            while let Some(frame) = session.receive() {
                if let ToAgent::Resized(Size { rows, cols }) = frame {
                    session.send(&FromAgent::Output(format!("resized to {rows}x{cols}\r\n").into()));
                    break;
                }
            }
            return session.send(&FromAgent::Exited(4));
        }
        while session.receive().is_some() {}
    });
    let client = format!("{} --socket {}", env!("CARGO_BIN_EXE_apiclient"), server.socket().display());
    let state = "stty -a </dev/tty | grep -o -e '.\\?icanon' -e '.\\?isig' | tr '\\n' ,";
    let said = in_terminal(&format!(
        "stty rows 31 cols 101; (sleep 1; {state}; stty rows 41 </dev/tty) & {client} exec web resize; echo code $?; {state}"
    ));
    assert_eq!(asked.recv().unwrap().terminal, Some(Size { rows: 31, cols: 101 }));
    assert!(said.contains("resized to 41x101") && said.contains("code 4"), "{said}");
    assert!(said.contains("-isig,-icanon,"), "it was not raw: {said}");
    assert!(said.trim_end().ends_with("isig, icanon,"), "it is still raw: {said}");
    // Also when it is asked to end.
    let said = in_terminal(&format!(
        "{client} exec -t web sh </dev/tty & sleep 1; {state}; kill $!; wait $!; echo code $?; {state}"
    ));
    assert!(said.contains("-isig,-icanon,"), "it was not raw: {said}");
    assert!(said.contains("code 143") && said.trim_end().ends_with("isig, icanon,"), "{said}");
}

/// Answers a copy with this archive, these words and this exit code, once all input has come; what was asked for, and the input.
fn copier(server: &Server, archive: Vec<u8>, words: &'static str, code: u8) -> Receiver<(Copy, Vec<u8>)> {
    let listener = UnixListener::bind(server.dir.path().join("agent.sock")).unwrap();
    let (told, asked) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut line = String::new();
            stream.read_line(&mut line).unwrap();
            let Ok(Request::Copy(copy)) = serde_json::from_str(&line) else { panic!("asked for {line}") };
            let exec =
                Exec { name: String::new(), command: vec![], terminal: None, apart: true, asker: None };
            let mut session = Session { exec, stream: stream.into_inner() };
            session.stream.write_all(answer(&Response::Done).as_bytes()).unwrap();
            let mut input = Vec::new();
            let is_into = matches!(copy.files, Files::Into { .. });
            while is_into && let Some(ToAgent::Input(data)) = session.receive() {
                input.extend(data);
                session.send(&FromAgent::Taken);
            }
            archive.chunks(10_000).for_each(|piece| session.send(&FromAgent::Output(piece.to_vec())));
            session.send(&FromAgent::Errors(words.as_bytes().to_vec()));
            session.send(&FromAgent::Exited(code));
            let _ = told.send((copy, input));
        }
    });
    asked
}

fn archive(names: &[&str]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for name in names {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_mode(0o4755);
        header.set_size(30_000);
        header.set_cksum();
        builder.append(&header, &[7; 30_000][..]).unwrap();
    }
    builder.into_inner().unwrap()
}

fn copy(server: &Server, from: &Path, to: &Path) -> (Option<i32>, String) {
    let [from, to] = [from, to].map(|path| path.to_str().unwrap());
    let output = server.client(&["container", "cp", from, to]);
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

#[test]
fn files_go_both_ways_and_what_comes_stays_in_its_folder() {
    let server = Server::start();
    let asked = copier(&server, archive(&["dir/a", "../out", "dir/b"]), "", 0);
    let here = tempfile::tempdir().unwrap();
    let to = here.path().join("to");
    let (code, said) = copy(&server, Path::new("web:/srv/."), &to);
    assert!(code == Some(1) && said.contains(r#""../out": it leads out of the folder"#), "{said}");
    assert!(to.join("dir/a").exists() && std::fs::read_dir(here.path()).unwrap().count() == 1);
    let (asked_for, _) = asked.recv().unwrap();
    assert_eq!(asked_for.files, Files::From { path: "/srv/.".to_owned() });
    assert_eq!(asked_for.asker, Some(nix::unistd::getuid().as_raw()));
    // In: more than may be on its way at once.
    std::fs::write(to.join("large"), vec![1; 3 << 20]).unwrap();
    let (code, said) = copy(&server, &to, Path::new("web:/srv"));
    assert!(code == Some(0) && said.contains("copied 2 files, 3.0 MiB"), "{said}");
    let (asked_for, input) = asked.recv().unwrap();
    assert_eq!(asked_for.files, Files::Into { path: "/srv".to_owned(), is_contents: false });
    let mut names: Vec<String> = tar::Archive::new(input.as_slice())
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["to", "to/dir", "to/dir/a", "to/large"]);
    let (code, said) = copy(&server, Path::new("a:/b"), Path::new("b:/c"));
    assert!(code == Some(2) && said.contains("one of the two is in a container"), "{said}");
}

#[test]
fn what_the_node_cannot_copy_is_told_in_its_words() {
    let server = Server::start();
    let words = "left out \"a\u{1b}\": it is a pipe\n\"/srv/b\": No space left on device\n";
    let _asked = copier(&server, archive(&["a"]), words, 1);
    let here = tempfile::tempdir().unwrap();
    let (code, said) = copy(&server, Path::new("web:/srv"), here.path());
    assert_eq!(
        (code, said.as_str()),
        (Some(1), "apiclient: left out \"a\": it is a pipe\n\"/srv/b\": No space left on device\n")
    );
    // What it says when it is done is told too.
    let server = Server::start();
    let _asked = copier(&server, archive(&["a"]), "left out \"b\": it is a device\n", 0);
    let (code, said) = copy(&server, Path::new("web:/a"), &here.path().join("new"));
    assert!(code == Some(0) && said.contains("copied 1 file, 29.3 KiB"), "{said}");
    assert!(said.contains("apiclient: left out \"b\": it is a device"), "{said}");
}
