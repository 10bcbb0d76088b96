//! What acts on which settings: the steps that make a node match them. Data, which the host agent follows, and which the API
//! server tells of.

/// One line for each step: its name in outcomes, the settings that it depends on (with all below them), the files that it makes,
/// and the services of PID 1 that are restarted by it.
macro_rules! steps {
    ($($step:ident: $name:literal, keys $keys:tt, files $files:tt, services $services:tt;)+) => {
        /// In the order in which they are done: containers begin with all that the steps before them have done; the API comes last, as
        /// it restarts the server that waits for the outcome, and that gives it only seconds (`STOPPING` of its server).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Step {
            $($step,)+
        }

        impl Step {
            pub const ALL: &[Self] = &[$(Self::$step,)+];

            const fn declared(self) -> Declared {
                match self {
                    $(Self::$step => Declared { name: $name, keys: &$keys, files: &$files, services: &$services },)+
                }
            }
        }
    };
}

steps! {
    Motd: "motd", keys ["motd"], files ["/run/etc/motd"], services [];
    Hostname: "hostname", keys ["network.hostname"], files ["/run/etc/hostname"], services [];
    Hosts: "hosts", keys ["network.hostname", "network.hosts"], files ["/run/etc/hosts"], services [];
    Dns: "dns", keys ["dns"], files ["/run/etc/resolv.conf"], services [];
    Network: "network", keys ["network.interfaces"], files [], services [];
    Ntp: "ntp", keys ["ntp"], files ["/run/etc/ntp.toml"], services ["ntp"];
    Sysctl: "sysctl", keys ["kernel.sysctl"], files [], services [];
    Lockdown: "lockdown", keys ["kernel.lockdown"], files [], services [];
    Registries: "registries", keys ["network.https-proxy", "network.no-proxy", "container-registry", "pki"], files [], services [];
    OciDefaults: "oci-defaults", keys ["oci-defaults"], files [], services [];
    Updates: "updates", keys ["updates"], files [], services [];
    Metrics: "metrics", keys ["metrics"], files [], services [];
    Bootstrap: "bootstrap", keys ["bootstrap-commands", "bootstrap-containers"], files [], services [];
    Containers: "containers", keys ["containers", "container-networks", "host-containers", "secrets"], files [], services [];
    Api: "api", keys ["api"], files [], services ["apiserver"];
}

struct Declared {
    name: &'static str,
    keys: &'static [&'static str],
    files: &'static [&'static str],
    services: &'static [&'static str],
}

impl Step {
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|step| step.name() == name)
    }

    pub const fn name(self) -> &'static str {
        self.declared().name
    }

    /// Without the outer `settings`.
    pub const fn keys(self) -> &'static [&'static str] {
        self.declared().keys
    }

    /// Absolute paths of the files that it makes.
    pub const fn files(self) -> &'static [&'static str] {
        self.declared().files
    }

    /// Services of PID 1 that it restarts.
    pub const fn services(self) -> &'static [&'static str] {
        self.declared().services
    }

    /// Whether it depends on a value, or on one in a table, by a dotted name (`settings.network.hosts`, `settings.network`).
    pub fn depends_on(self, key: &str) -> bool {
        let is_at_or_below = |inner: &str, outer: &str| {
            inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.keys().iter().any(|own| {
            let own = format!("settings.{own}");
            is_at_or_below(key, &own) || is_at_or_below(&own, key)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn depending_on(key: &str) -> Vec<&'static str> {
        Step::ALL.iter().filter(|step| step.depends_on(key)).map(|step| step.name()).collect()
    }

    #[test]
    fn a_key_concerns_the_steps_that_depend_on_it() {
        for (key, steps) in [
            ("settings.motd", &["motd"][..]),
            ("settings.network.hostname", &["hostname", "hosts"]),
            ("settings.network", &["hostname", "hosts", "network", "registries"]),
            ("settings.kernel.sysctl.\"vm.swappiness\"", &["sysctl"]),
            ("settings.containers.web.env.A", &["containers"]),
            ("settings.motdx", &[]),
            ("settings.network.host", &[]),
        ] {
            assert_eq!(depending_on(key), steps, "{key}");
        }
        assert_eq!(depending_on("settings").len(), Step::ALL.len());
    }

    #[test]
    fn every_step_is_found_by_its_name() {
        for step in Step::ALL {
            assert_eq!(Step::named(step.name()), Some(*step));
        }
        assert_eq!(Step::named("nonesuch"), None);
    }
}
