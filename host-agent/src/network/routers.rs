//! What IPv6 routers advertise of names: hears it from the kernel, and asks routers for what they said before anybody listened.

use futures_util::FutureExt;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, setsockopt, socket,
    sockopt,
};
use rtnetlink::MulticastGroup;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};
use tokio::time::sleep_until;

use super::advertised::{Held, read};
use crate::resolver::LeasedDns;

/// Whoever floods the link with advertisements keeps the node no busier than one look at them in so long.
const PAUSE: Duration = Duration::from_millis(200);
const MOST_AT_ONCE: usize = 64;
/// How often a router is asked, and when again (RFC 4861, 10).
const SOLICITATIONS: u32 = 3;
const SOLICITATION_INTERVAL: Duration = Duration::from_secs(4);

/// Of one interface.
#[derive(Default)]
struct Router {
    held: Held,
    asked: u32,
    last_asked: Option<Instant>,
}

pub(super) struct Routers {
    socket: TokioSocket,
    /// By the interfaces' numbers.
    known: BTreeMap<u32, Router>,
    not_before: Instant,
}

impl Routers {
    /// Listens from now on, to what [`Routers::changed`] takes later.
    pub(super) fn listen() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        socket.socket_mut().add_membership(MulticastGroup::NdUseropt as u32)?;
        Ok(Self { socket, known: BTreeMap::new(), not_before: Instant::now() })
    }

    /// When something else holds. It may be dropped at any time.
    pub(super) async fn changed(&mut self) {
        loop {
            sleep_until(self.not_before.into()).await;
            let first = self.socket.recv_from_full().await;
            self.not_before = Instant::now() + PAUSE;
            let mut changed = self.note(first);
            for _ in 1..MOST_AT_ONCE {
                let Some(next) = self.socket.recv_from_full().now_or_never() else { break };
                changed |= self.note(next);
            }
            if changed {
                return;
            }
        }
    }

    /// What was lost on the way, as the error says, comes again: routers advertise all the time.
    fn note(&mut self, received: io::Result<(Vec<u8>, SocketAddr)>) -> bool {
        let Some((messages, _)) = received.ok().filter(|(_, from)| from.port_number() == 0) else {
            return false;
        };
        let mut changed = false;
        for advertised in read(&messages) {
            if let Some(router) = self.known.get_mut(&advertised.index) {
                changed |= router.held.note(advertised.lifetime, advertised.names, Instant::now());
            }
        }
        changed
    }

    /// Takes from these interfaces and no others, and forgets what is over. Asks routers where nothing has been heard: an agent
    /// before this one may have been told.
    pub(super) fn keep(&mut self, interfaces: &BTreeSet<u32>) {
        self.known.retain(|index, _| interfaces.contains(index));
        let now = Instant::now();
        for index in interfaces {
            let router = self.known.entry(*index).or_default();
            router.held.expire(now);
            let is_early = router.last_asked.is_some_and(|last| now < last + SOLICITATION_INTERVAL);
            if !router.held.is_empty() || router.asked >= SOLICITATIONS || is_early {
                continue;
            }
            router.asked += 1;
            router.last_asked = Some(now);
            if let Err(error) = solicit(*index)
                && router.asked == SOLICITATIONS
            {
                eprintln!(
                    "<5>cannot ask the routers of interface {index} for name servers: {error}; what they say by themselves is taken"
                );
            }
        }
    }

    pub(super) fn dns(&self, index: u32, interface: &str) -> Option<LeasedDns> {
        self.known
            .get(&index)
            .filter(|router| !router.held.is_empty())
            .map(|router| router.held.dns(interface))
    }
}

/// Asks all routers of the link to advertise (RFC 4861, 4.1); the answer goes to the kernel. Fails while the interface has no
/// address of its own for the link yet.
fn solicit(index: u32) -> nix::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Inet6, SockType::Raw, flags, SockProtocol::IcmpV6)?;
    // Others have come from afar, and are not heard.
    setsockopt(&socket, sockopt::Ipv6MulticastHops, &255)?;
    let all_routers = SocketAddrV6::new(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2), 0, 0, index);
    // The kernel fills in the checksum.
    sendto(
        socket.as_raw_fd(),
        &[133, 0, 0, 0, 0, 0, 0, 0],
        &SockaddrIn6::from(all_routers),
        MsgFlags::empty(),
    )?;
    Ok(())
}
