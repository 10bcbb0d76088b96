//! Switches: what turns on the sockets that are not always there. The VMM turns one on for as long as the node runs, settings
//! while it runs; either is enough.

use std::collections::BTreeSet;

use crate::service::Socket;

#[derive(Debug, Clone, Default)]
pub struct Switches {
    by_vmm: BTreeSet<String>,
    by_settings: BTreeSet<String>,
}

impl Switches {
    pub fn new(by_vmm: impl IntoIterator<Item = String>) -> Self {
        Self { by_vmm: by_vmm.into_iter().collect(), by_settings: BTreeSet::new() }
    }

    fn is_on(&self, name: &str) -> bool {
        self.by_vmm.contains(name) || self.by_settings.contains(name)
    }

    /// Turns one on or off as settings say. Whether that changed what holds.
    pub fn set(&mut self, name: &str, on: bool) -> bool {
        let before = self.is_on(name);
        if on {
            self.by_settings.insert(name.to_owned());
        } else {
            self.by_settings.remove(name);
        }
        self.is_on(name) != before
    }

    /// Whether a socket is to be there.
    pub fn want(&self, socket: &Socket) -> bool {
        socket.when.as_deref().is_none_or(|when| self.is_on(when))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(when: Option<&str>) -> Socket {
        Socket {
            name: "api-vsock".to_owned(),
            path: None,
            mode: None,
            group: None,
            vsock_port: Some(1024),
            when: when.map(str::to_owned),
        }
    }

    #[test]
    fn settings_turn_a_switch_on_and_off_and_nothing_changes_twice() {
        let (mut switches, socket) = (Switches::default(), socket(Some("api-vsock")));
        assert!(!switches.want(&socket));
        assert!(!switches.set("api-vsock", false));
        assert!(switches.set("api-vsock", true));
        assert!(switches.want(&socket) && !switches.set("api-vsock", true));
        assert!(switches.set("api-vsock", false) && !switches.want(&socket));
    }

    #[test]
    fn what_the_vmm_turned_on_stays_on() {
        let mut switches = Switches::new(["api-vsock".to_owned()]);
        for on in [true, false] {
            assert!(!switches.set("api-vsock", on), "{on}");
            assert!(switches.want(&socket(Some("api-vsock"))));
        }
        assert!(!switches.want(&socket(Some("another"))) && switches.want(&socket(None)));
    }
}
