//! A seccomp profile as the OCI runtime specification has it, made a program of the kernel's. Pure.
//!
//! youki puts a container's first process under its profile, and a further one (`youki exec`) under none. So what runs by `exec` is put
//! under it by [`inside`](crate::container::inside), just before it begins.

use seccompiler::{BpfProgram, TargetArch, compile_from_json};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// What an action of the profile does, by the names of seccompiler.
fn action(name: &str, errno: Option<u64>) -> Result<Value, String> {
    match name {
        "SCMP_ACT_ALLOW" => Ok(json!("allow")),
        "SCMP_ACT_ERRNO" => Ok(json!({"errno": errno.unwrap_or(1)})),
        _ => Err(format!("the action {name:?} is not known")),
    }
}

/// One condition on an argument. As in the profile, all 64 bits are compared.
fn condition(argument: &Value) -> Result<Value, String> {
    let operator = match argument["op"].as_str().unwrap_or_default() {
        "SCMP_CMP_EQ" => "eq",
        "SCMP_CMP_GE" => "ge",
        "SCMP_CMP_GT" => "gt",
        "SCMP_CMP_LE" => "le",
        "SCMP_CMP_LT" => "lt",
        "SCMP_CMP_NE" => "ne",
        other => return Err(format!("the comparison {other:?} is not known")),
    };
    Ok(json!({"index": argument["index"], "type": "qword", "op": operator, "val": argument["value"]}))
}

/// The system calls of an entry, each with its conditions.
fn rules(entry: &Value) -> Result<Vec<Value>, String> {
    let arguments = entry["args"].as_array().map(Vec::as_slice).unwrap_or_default();
    let conditions = arguments.iter().map(condition).collect::<Result<Vec<_>, _>>()?;
    let names = entry["names"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let rule = |name: &str| match conditions.is_empty() {
        true => json!({"syscall": name}),
        false => json!({"syscall": name, "args": conditions}),
    };
    Ok(names.map(rule).collect())
}

/// System calls of Linux 6.13, which seccompiler does not know yet. They are denied: with EPERM, and not with ENOSYS.
const UNKNOWN: [&str; 4] = ["getxattrat", "listxattrat", "removexattrat", "setxattrat"];

fn compile(rules: &[Value], matched: &Value, otherwise: &Value) -> Result<BpfProgram, String> {
    // A call that is named without conditions needs none of those that it has elsewhere; seccompiler would keep these.
    let name = |rule: &Value| rule["syscall"].as_str().map(str::to_owned);
    let always: BTreeSet<String> =
        rules.iter().filter(|rule| rule.get("args").is_none()).filter_map(name).collect();
    let is_needed =
        |rule: &&Value| rule.get("args").is_none() || name(rule).is_none_or(|name| !always.contains(&name));
    let rules: Vec<&Value> = rules.iter().filter(is_needed).collect();
    let filter = json!({"all": {"mismatch_action": otherwise, "match_action": matched, "filter": rules}});
    let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| error.to_string())?;
    let programs = compile_from_json(filter.to_string().as_bytes(), architecture);
    let program = programs.map_err(|error| error.to_string())?.remove("all");
    program.ok_or_else(|| "there is no program".to_owned())
}

/// The programs that together are the profile, in the order in which a process is to take them on. Of actions, the kernel does the
/// strictest, and of equal ones that of the program that came last.
pub fn programs(profile: &Value) -> Result<Vec<BpfProgram>, String> {
    let failed = |error| format!("the seccomp profile cannot be used: {error}");
    compile_all(profile).map_err(failed)
}

fn compile_all(profile: &Value) -> Result<Vec<BpfProgram>, String> {
    let otherwise =
        action(profile["defaultAction"].as_str().unwrap_or_default(), profile["defaultErrnoRet"].as_u64())?;
    let allow = json!("allow");
    let (mut allowed, mut others) = (Vec::new(), Vec::new());
    for entry in profile["syscalls"].as_array().into_iter().flatten() {
        let does = action(entry["action"].as_str().unwrap_or_default(), entry["errnoRet"].as_u64())?;
        let mut rules = rules(entry)?;
        if does == allow {
            allowed.extend(rules);
            continue;
        }
        rules.retain(|rule| rule["syscall"].as_str().is_none_or(|name| !UNKNOWN.contains(&name)));
        // The program that answers the call in its own way comes first, and the last one must let it pass.
        allowed.extend(rules.iter().cloned());
        others.push(compile(&rules, &does, &allow)?);
    }
    let last = compile(&allowed, &allow, &otherwise)?;
    Ok(others.into_iter().chain([last]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn default() -> Value {
        let text = concat!(env!("CARGO_MANIFEST_DIR"), "/../os/seccomp/default.json");
        serde_json::from_slice(&std::fs::read(text).unwrap()).unwrap()
    }

    /// What the kernel would do with a system call: its classic BPF, as far as seccompiler writes it.
    fn run(program: &BpfProgram, number: u32, argument: u64) -> u32 {
        let [low, high] = [argument as u32, (argument >> 32) as u32];
        let data = |offset| match offset {
            0 => number,
            // AUDIT_ARCH_X86_64
            4 => 0xc000_003e,
            16 => low,
            20 => high,
            _ => 0,
        };
        let (mut at, mut accumulator) = (0_usize, 0_u32);
        loop {
            let step = &program[at];
            at += 1;
            let mut jump = |is_true: bool| at += usize::from(if is_true { step.jt } else { step.jf });
            match step.code {
                0x20 => accumulator = data(step.k),
                0x54 => accumulator &= step.k,
                0x05 => at += step.k as usize,
                0x15 => jump(accumulator == step.k),
                0x25 => jump(accumulator > step.k),
                0x35 => jump(accumulator >= step.k),
                0x06 => return step.k,
                code => panic!("{code:#x}"),
            }
        }
    }

    fn verdict(programs: &[BpfProgram], number: i64, argument: u64) -> u32 {
        const ALLOW: u32 = 0x7fff_0000;
        let all = programs.iter().rev().map(|program| run(program, u32::try_from(number).unwrap(), argument));
        // All are errors or permission here: an error is stricter.
        all.fold(ALLOW, |verdict, next| if verdict == ALLOW { next } else { verdict })
    }

    #[test]
    fn a_further_process_may_do_what_the_container_may() {
        const ALLOW: u32 = 0x7fff_0000;
        let errno = |number: u32| 0x0005_0000 | number;
        let programs = programs(&default()).unwrap();
        for (call, argument, expected) in [
            (nix::libc::SYS_read, 0, ALLOW),
            (nix::libc::SYS_execve, 0, ALLOW),
            (nix::libc::SYS_mount, 0, errno(1)),
            (nix::libc::SYS_bpf, 0, errno(1)),
            (nix::libc::SYS_keyctl, 0, errno(1)),
            (nix::libc::SYS_add_key, 0, errno(1)),
            (nix::libc::SYS_request_key, 0, errno(1)),
            (nix::libc::SYS_setns, 0, errno(1)),
            (nix::libc::SYS_pivot_root, 0, errno(1)),
            (nix::libc::SYS_open_by_handle_at, 0, errno(1)),
            (nix::libc::SYS_userfaultfd, 0, errno(1)),
            (nix::libc::SYS_perf_event_open, 0, errno(1)),
            (nix::libc::SYS_unshare, 0, errno(1)),
            (nix::libc::SYS_clone3, 0, errno(38)),
            (nix::libc::SYS_io_uring_setup, 0, errno(38)),
            // A thread, and a user namespace.
            (nix::libc::SYS_clone, 0x3d_0f00, ALLOW),
            (nix::libc::SYS_clone, 0x1000_0000, errno(1)),
            (nix::libc::SYS_socket, 1, ALLOW),
            (nix::libc::SYS_socket, 40, errno(1)),
            (nix::libc::SYS_socket, 1 << 32 | 40, errno(1)),
            (nix::libc::SYS_personality, 0xffff_ffff, ALLOW),
            (nix::libc::SYS_personality, 1, errno(1)),
            // No such call.
            (100_000, 0, errno(1)),
        ] {
            assert_eq!(verdict(&programs, call, argument), expected, "{call} {argument:#x}");
        }
    }

    #[test]
    fn a_call_that_is_allowed_once_without_conditions_is_allowed() {
        let mut profile = default();
        let more = json!({"action": "SCMP_ACT_ALLOW", "names": ["clone", "mount"]});
        profile["syscalls"].as_array_mut().unwrap().push(more);
        let programs = programs(&profile).unwrap();
        for call in [nix::libc::SYS_clone, nix::libc::SYS_mount] {
            assert_eq!(verdict(&programs, call, 0x1000_0000), 0x7fff_0000, "{call}");
        }
    }

    #[test]
    fn what_is_not_known_is_refused_and_not_passed_over() {
        for (profile, expected) in [
            (json!({"defaultAction": "SCMP_ACT_LOG"}), "SCMP_ACT_LOG"),
            (json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"action": "SCMP_ACT_TRAP"}]}), "TRAP"),
            (
                json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"action": "SCMP_ACT_ALLOW", "names": ["nonesuch"]}]}),
                "nonesuch",
            ),
            (
                json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"action": "SCMP_ACT_ALLOW", "names": ["read"], "args": [{"index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": 1}]}]}),
                "MASKED_EQ",
            ),
        ] {
            let error = programs(&profile).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
