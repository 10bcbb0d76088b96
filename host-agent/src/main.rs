//! The host agent: applies user data once, then what the API's settings say, and keeps the network and containers.

use apiserver::client::{Endpoint, request};
use apiserver::sockets;
use host_agent::agent::Agent;
use host_agent::container::record::Places;
use host_agent::container::{image, netavark};
use host_agent::node::Node;
use host_agent::{bootstrap, init, integrity, memory, network, space, time, update, user_data};
use hyper::Method;
use init_control::Problem;
use settings::{Mistake, Settings};
use std::cell::RefCell;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};

const API: &str = "/run/api.sock";
/// The same, and root's alone: it tells secrets.
const API_WITH_SECRETS: &str = "/run/api-agent.sock";
/// Between two looks at a container that is to take another's place.
const ROLLOUT_LOOK: Duration = Duration::from_millis(500);
/// The boot goes on with the settings that there are when the API cannot take user data for so long.
const USER_DATA_PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether a partition is full.
const SPACE_LOOK: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let passed = sockets::passed();
    memory::be_thrifty();
    match run(passed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("<3>{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(passed: Vec<(String, std::os::fd::OwnedFd)>) -> Result<(), String> {
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| "cannot set up TLS".to_owned())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build();
    let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
    LocalSet::new().block_on(&runtime, async {
        let (_, fd) = passed
            .into_iter()
            .find(|(name, _)| name == "agent")
            .ok_or("no socket named agent was passed: PID 1 starts this program")?;
        let listener = std::os::unix::net::UnixListener::from(fd);
        let listener = listener
            .set_nonblocking(true)
            .and_then(|()| UnixListener::from_std(listener))
            .map_err(|error| format!("cannot use the socket that was passed: {error}"))?;
        let agent = Agent::default();
        agent.node.borrow_mut().time.source = Some(time::set_clock());
        tokio::task::spawn_local(agent.clone().serve(listener));
        tokio::task::spawn_local(network::run(agent.node.clone()));
        tokio::task::spawn_local(time::run(agent.node.clone()));
        tokio::task::spawn_local(watch_space(agent.node.clone()));
        tokio::task::spawn_local(watch_rollouts(agent.node.clone()));
        tokio::task::spawn_local(netavark::keep_names());
        tokio::task::spawn_local(start_node(agent.clone()));
        let mut terminate =
            signal(SignalKind::terminate()).map_err(|error| format!("cannot wait for SIGTERM: {error}"))?;
        sockets::notify_ready()
            .map_err(|error| format!("cannot tell PID 1 that the agent is ready: {error}"))?;
        // Containers run on in their shims.
        terminate.recv().await;
        agent.stop().await;
        time::note_if_right(&agent.node);
        Ok(())
    })
}

/// The boot: user data, then all settings, then what runs before all containers, which begin after it; and watching for the node to be healthy.
async fn start_node(agent: Agent) {
    let (node, applier) = (agent.node.clone(), agent.applier.clone());
    let teller = node.clone();
    let tell = move |problems| teller.borrow_mut().set_problems("user-data", problems);
    let teller = node.clone();
    let begin_network = move |interfaces| drop(teller.borrow().network.set(interfaces));
    let mut user_data = Box::pin(user_data::apply_once(tell, begin_network));
    if timeout(USER_DATA_PATIENCE, &mut user_data).await.is_err() {
        tokio::task::spawn_local(apply_late(user_data));
    }
    node.borrow_mut().phase("user-data");
    let mut delay = Duration::from_millis(100);
    let (settings, refused) = loop {
        match settings_of_api().await {
            Ok(settings) => break settings,
            Err(message) => {
                let hint = "the API server may be starting; the agent asks on".to_owned();
                let problem =
                    Problem { source: "apply".to_owned(), subject: "settings".to_owned(), message, hint };
                node.borrow_mut().set_problems("apply", vec![problem]);
            }
        }
        sleep(delay).await;
        delay = (delay * 2).min(Duration::from_secs(10));
    };
    applier.lock().await.apply(&node, 0, &[], &settings).await;
    {
        let mut node = node.borrow_mut();
        node.set_problems("settings", refused.into_iter().map(left_out).collect());
        node.phase("applied");
    }
    // What was committed meanwhile is newer than what was read above, and is applied now; what bootstrap sets, too.
    agent.start_is_over();
    tokio::task::spawn_local(bootstrap::run(node.clone()));
    // On trial, this is what decides whether this version stays. Nothing gives up a version whose agent never comes here.
    let (updates, applied) = (agent.updates.clone(), applier.clone());
    tokio::task::spawn_local(update::watch(updates, node.clone(), move || {
        applied.try_lock().ok().and_then(|applier| applier.applied().cloned())
    }));
    // Health is noticed also when nobody asks.
    for _ in 0..600 {
        if let Ok(status) = init::status().await
            && node.borrow_mut().status(&status).health == apiserver::agent::Health::Healthy
        {
            break;
        }
        sleep(Duration::from_millis(500)).await;
    }
    integrity::check_root().await;
}

/// A value that was taken once and is of no use to this version. It stays a problem until the agent starts again: whoever sets the
/// key anew is told at once what is wrong with it.
fn left_out(mistake: Mistake) -> Problem {
    Problem {
        source: "apply".to_owned(),
        message: format!("{}; it is left out, the rest is applied", mistake.reason),
        hint: format!("set it again, or apiclient delete {}", mistake.key),
        subject: mistake.key,
    }
}

/// Through the API, which has one apply after the other, each with the newest settings.
async fn apply_late(user_data: impl Future<Output = bool>) {
    if !user_data.await {
        return;
    }
    let patience = Duration::from_secs(120);
    let applied = request(&Endpoint::Unix(API.into()), Method::POST, "/tx/apply", Vec::new(), patience).await;
    match applied {
        Ok(answer) if answer.is_success() => {}
        Ok(answer) => eprintln!("<3>user data is committed, but not applied: {}", answer.text()),
        Err(error) => eprintln!("<3>user data is committed, but not applied: {error}"),
    }
}

/// Containers whose new settings are tried beside them.
async fn watch_rollouts(node: Rc<RefCell<Node>>) {
    loop {
        sleep(ROLLOUT_LOOK).await;
        let taken = node.borrow_mut().containers.look_at_rollouts();
        for name in &taken {
            let old = Places::of(name);
            // Before the old one ends, so that nobody is led to one that has ended.
            if let Ok(Err(error)) = tokio::task::spawn_blocking(move || netavark::hand_over(&old)).await {
                eprintln!("<4>container {name}: it has its ports until it has ended: {error}");
            }
        }
        if !taken.is_empty() {
            node.borrow_mut().containers.reconcile();
        }
    }
}

async fn watch_space(node: Rc<RefCell<Node>>) {
    let mut removal = None::<tokio::task::JoinHandle<()>>;
    loop {
        // What nobody has wanted for long goes, and more if space is needed. That may have to wait for its turn.
        if removal.as_ref().is_none_or(tokio::task::JoinHandle::is_finished) {
            removal = Some(tokio::task::spawn_blocking(image::remove_unused));
        }
        node.borrow_mut().set_problems("space", space::problems());
        sleep(SPACE_LOOK).await;
    }
}

/// What can be used of the settings, and what is wrong with the rest.
async fn settings_of_api() -> Result<(Settings, Vec<Mistake>), String> {
    let endpoint = Endpoint::Unix(API_WITH_SECRETS.into());
    let answer = request(&endpoint, Method::GET, "/settings", Vec::new(), Duration::from_secs(10)).await;
    let answer = answer.map_err(|error| error.to_string())?;
    if !answer.is_success() {
        return Err(answer.text());
    }
    let value = serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?;
    Ok(settings::from_json_in_part(&value))
}
