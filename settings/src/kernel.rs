//! `settings.kernel`: parameters of the running kernel, and how far it is locked down.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;

use crate::keys::join;
use crate::parse::Mistake;
use crate::scalar::{checked_string, shown};

/// The kernel of the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Kernel {
    /// Parameters below `/proc/sys`, as text also where they are numbers. One that is no longer set gets back the value that it
    /// had before. Those that would break the node or weaken what keeps containers apart are refused, with the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!({"net.core.somaxconn": "8192"}), extend("x-default" = "the kernel's"))]
    pub sysctl: Option<BTreeMap<SysctlKey, SysctlValue>>,
    /// How far the kernel protects itself from root. It can be raised at once; lowering it needs a restart of the node, and
    /// that the kernel's command line (`lockdown=`) does not raise it by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"integrity", extend("x-default" = "the kernel's command line"))]
    pub lockdown: Option<Lockdown>,
}

/// Levels of lockdown (`kernel_lockdown(7)`), the weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Lockdown {
    None,
    Integrity,
    Confidentiality,
}

impl Lockdown {
    pub const ALL: [Self; 3] = [Self::None, Self::Integrity, Self::Confidentiality];

    /// As the kernel writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Integrity => "integrity",
            Self::Confidentiality => "confidentiality",
        }
    }
}

checked_string!(
    /// A parameter of the kernel: at most 128 characters, parts of letters, digits, `_` and `-` joined by `.`.
    SysctlKey,
    |text| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        let parts_are_fine = text.split('.').all(|part| !part.is_empty() && part.bytes().all(plain));
        if text.len() <= 128 && text.contains('.') && parts_are_fine {
            return Ok(());
        }
        // One key has one name: net/ipv4/ip_forward would be a second.
        Err(format!("{} is not a parameter of the kernel: write it as net.core.somaxconn, with '.' and not '/' between its parts", shown(text)))
    }
);

checked_string!(
    /// Value of a parameter of the kernel: one line of at most 1024 bytes, not empty.
    SysctlValue,
    |text| {
        if (1..=1024).contains(&text.len()) && !text.trim().is_empty() && !text.chars().any(|c| c.is_control() && c != '\t') {
            return Ok(());
        }
        Err(format!("{} is not a value for a parameter of the kernel: one line of at most 1024 bytes, not empty", shown(text)))
    }
);

/// What is not left to everybody who may set settings.
enum Rule {
    Never,
    /// The smallest number that keeps the protection.
    AtLeast(i64),
    Exactly(&'static str),
}

const RUNS_AS_ROOT: &str =
    "it makes the kernel start or write what it names as root, outside of every container";
const NODE_NEEDS: &str =
    "the node reboots itself after a fault of the kernel, and falls back to its other system, because of it";
const NODE_RUNS: &str = "with less the node could not run its services and containers";
const PROTECTS: &str = "less would weaken what keeps containers away from the node and from each other";
const NOT_STATE: &str = "writing it does something once, which is not a setting and cannot be put back";

/// Parameters that are refused, also with all below them, and why.
const RULES: &[(&str, Rule, &str)] = &[
    ("dev.tty.legacy_tiocsti", Rule::Exactly("0"), PROTECTS),
    ("fs.binfmt_misc", Rule::Never, RUNS_AS_ROOT),
    ("fs.file-max", Rule::AtLeast(65_536), NODE_RUNS),
    ("fs.nr_open", Rule::AtLeast(1_048_576), NODE_RUNS),
    ("fs.protected_fifos", Rule::AtLeast(1), PROTECTS),
    ("fs.protected_hardlinks", Rule::AtLeast(1), PROTECTS),
    ("fs.protected_regular", Rule::AtLeast(1), PROTECTS),
    ("fs.protected_symlinks", Rule::AtLeast(1), PROTECTS),
    ("fs.suid_dumpable", Rule::Exactly("0"), PROTECTS),
    ("kernel.cad_pid", Rule::Never, "it says which process is told of Ctrl-Alt-Del, which is PID 1"),
    ("kernel.core_pattern", Rule::Never, RUNS_AS_ROOT),
    ("kernel.core_pipe_limit", Rule::Never, RUNS_AS_ROOT),
    ("kernel.dmesg_restrict", Rule::AtLeast(1), PROTECTS),
    ("kernel.domainname", Rule::Never, "set settings.network.hostname to a name with its domain"),
    ("kernel.hostname", Rule::Never, "set settings.network.hostname"),
    ("kernel.hotplug", Rule::Never, RUNS_AS_ROOT),
    ("kernel.kptr_restrict", Rule::AtLeast(1), PROTECTS),
    ("kernel.modprobe", Rule::Never, RUNS_AS_ROOT),
    ("kernel.panic", Rule::AtLeast(1), NODE_NEEDS),
    ("kernel.panic_on_oops", Rule::Exactly("1"), NODE_NEEDS),
    ("kernel.perf_event_paranoid", Rule::AtLeast(2), PROTECTS),
    ("kernel.pid_max", Rule::AtLeast(32_768), NODE_RUNS),
    ("kernel.poweroff_cmd", Rule::Never, RUNS_AS_ROOT),
    ("kernel.randomize_va_space", Rule::Exactly("2"), PROTECTS),
    ("kernel.threads-max", Rule::AtLeast(1024), NODE_RUNS),
    ("kernel.unprivileged_bpf_disabled", Rule::AtLeast(1), PROTECTS),
    ("kernel.usermodehelper", Rule::Never, RUNS_AS_ROOT),
    ("kernel.yama.ptrace_scope", Rule::AtLeast(1), PROTECTS),
    ("net.ipv4.route.flush", Rule::Never, NOT_STATE),
    ("net.ipv6.route.flush", Rule::Never, NOT_STATE),
    ("user.max_cgroup_namespaces", Rule::AtLeast(256), NODE_RUNS),
    ("user.max_ipc_namespaces", Rule::AtLeast(256), NODE_RUNS),
    ("user.max_mnt_namespaces", Rule::AtLeast(256), NODE_RUNS),
    ("user.max_pid_namespaces", Rule::AtLeast(256), NODE_RUNS),
    ("user.max_uts_namespaces", Rule::AtLeast(256), NODE_RUNS),
    ("vm.compact_memory", Rule::Never, NOT_STATE),
    ("vm.drop_caches", Rule::Never, NOT_STATE),
    ("vm.mmap_min_addr", Rule::AtLeast(65_536), PROTECTS),
    ("vm.panic_on_oom", Rule::Exactly("0"), "a container that uses up its memory would take the node down"),
];

/// Why a parameter may not have this value.
fn refusal(key: &str, value: &str) -> Option<String> {
    let covers = |rule: &str| key == rule || key.strip_prefix(rule).is_some_and(|rest| rest.starts_with('.'));
    let (_, rule, reason) = RULES.iter().find(|(name, ..)| covers(name))?;
    let value = value.trim();
    match rule {
        Rule::Never => Some(format!("it cannot be set: {reason}")),
        Rule::AtLeast(least) if value.parse::<i64>().is_ok_and(|number| number >= *least) => None,
        Rule::AtLeast(least) => {
            Some(format!("{} is refused, at least {least} is allowed: {reason}", shown(value)))
        }
        Rule::Exactly(only) if value == *only => None,
        Rule::Exactly(only) => Some(format!("{} is refused, only {only} is allowed: {reason}", shown(value))),
    }
}

impl Kernel {
    pub(crate) fn mistakes(&self) -> impl Iterator<Item = Mistake> {
        self.sysctl.iter().flatten().filter_map(|(key, value)| {
            let reason = refusal(key, value)?;
            Some(Mistake::new(&join("settings.kernel.sysctl", key), reason))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::from_json;

    #[test]
    fn keys_lead_nowhere_but_below_proc_sys() {
        for fine in ["net.core.somaxconn", "net.ipv4.conf.all.rp_filter", "vm.swappiness"] {
            assert!(fine.parse::<SysctlKey>().is_ok(), "{fine}");
        }
        let long = format!("a.{}", "b".repeat(127));
        for wrong in [
            "",
            "vm",
            ".vm.x",
            "vm..x",
            "vm.x.",
            "../vm.x",
            "vm/x",
            "/proc/sys/vm.x",
            "vm.x y",
            "vm.x\0",
            "ö.x",
            &long,
        ] {
            assert!(wrong.parse::<SysctlKey>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_breaks_the_node_or_opens_it_is_refused_with_its_reason() {
        for (key, value, expected) in [
            ("kernel.core_pattern", "|/bin/sh", "as root"),
            ("kernel.usermodehelper.bset", "1", "as root"),
            ("kernel.panic", "0", "\"0\" is refused, at least 1"),
            ("kernel.panic", "-1", "at least 1"),
            ("kernel.panic_on_oops", "0", "only 1 is allowed"),
            ("kernel.yama.ptrace_scope", "0", "at least 1"),
            ("kernel.kptr_restrict", "zero", "at least 1"),
            ("kernel.hostname", "a", "settings.network.hostname"),
            ("vm.drop_caches", "3", "cannot be put back"),
            ("vm/swappiness", "3", "is not a parameter"),
            ("vm.swappiness", "", "not empty"),
            ("vm.swappiness", "1\n2", "one line"),
        ] {
            let error = from_json(&json!({"kernel": {"sysctl": {key: value}}})).unwrap_err().to_string();
            assert!(error.starts_with("settings.kernel.sysctl.") && error.contains(expected), "{error}");
        }
        for (key, value) in [
            ("kernel.panic", "30"),
            ("kernel.yama.ptrace_scope", " 2"),
            ("kernel.panic_on_warn", "1"),
            ("net.ipv4.ip_local_port_range", "1024\t65000"),
        ] {
            let error = from_json(&json!({"kernel": {"sysctl": {key: value}}}));
            assert!(error.is_ok(), "{error:?}");
        }
        let number = from_json(&json!({"kernel": {"sysctl": {"vm.swappiness": 1}}})).unwrap_err().to_string();
        assert!(number.contains("settings.kernel.sysctl.\"vm.swappiness\": expected a string"), "{number}");
    }

    #[test]
    fn modules_say_why_there_are_none() {
        let error = from_json(&json!({"kernel": {"modules": {"sctp": {"allowed": true}}}})).unwrap_err();
        assert!(
            error.to_string().starts_with("settings.kernel.modules: this kernel has no modules"),
            "{error}"
        );
    }

    #[test]
    fn a_key_with_dots_is_one_part_of_its_name() {
        let name = "settings.kernel.sysctl.\"vm.swappiness\"";
        let settings =
            from_json(&json!({"kernel": {"sysctl": {"vm.swappiness": "1", "vm.overcommit_ratio": "2"}}}))
                .unwrap();
        assert_eq!(crate::flatten(&settings)[name], "1");
        let tree = json!({"kernel": {"sysctl": {"vm.swappiness": "1"}}});
        assert_eq!(crate::select(&settings, |key| key == name), tree);
        let mut change = crate::Change::default();
        change.remove(&["settings.kernel.sysctl.\"vm.overcommit_ratio\"".to_owned()]);
        assert_eq!(change.over(&settings).to_json(), tree);
        let pair = crate::from_key_values(["kernel.sysctl.\"vm.swappiness\"=1"]).unwrap();
        assert_eq!(pair.to_json(), tree);
        let text = "[settings.kernel.sysctl]\n\"vm.swappiness\" = \"1\"\n\"vm.drop_caches\" = \"1\"\n";
        let error = crate::from_user_data(text).unwrap_err().to_string();
        assert!(error.starts_with("line 3: settings.kernel.sysctl.\"vm.drop_caches\": "), "{error}");
    }
}
