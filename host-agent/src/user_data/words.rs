//! `caisson.NAME=VALUE`: what the VMM says on the kernel's command line and in SMBIOS. Pure.

use super::content::from_base64;

/// COMMAND_LINE_SIZE of x86 (`arch/x86/include/asm/setup.h`), less its zero byte. The kernel cuts off what is longer.
const LONGEST_CMDLINE: usize = 2047;

/// What one source says in words.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Said {
    /// Not unpacked.
    pub user_data: Option<Result<Vec<u8>, String>>,
    pub metadata: Option<Result<(), String>>,
}

pub(super) fn of_cmdline(cmdline: &str) -> Said {
    let cmdline = cmdline.trim_end_matches('\n');
    let cut = cmdline.len() >= LONGEST_CMDLINE;
    let said = of_words(cmdline.split_ascii_whitespace());
    // Only the last word can have lost its end, but all that came after it is gone too.
    if cut && said != Said::default() {
        let message = format!(
            "the command line has {LONGEST_CMDLINE} bytes, which is all that the kernel keeps of it: its end may be lost; compress the user data, or use another source"
        );
        return Said { user_data: Some(Err(message)), metadata: None };
    }
    said
}

/// Whatever is not ASCII is not ours.
pub(super) fn of_strings<'a>(strings: impl Iterator<Item = &'a [u8]> + Clone) -> Said {
    of_words(strings.filter_map(|string| std::str::from_utf8(string).ok()))
}

fn of_words<'a>(words: impl Iterator<Item = &'a str> + Clone) -> Said {
    let user_data = only(words.clone(), "caisson.user-data");
    let metadata = only(words, "caisson.metadata");
    Said {
        user_data: user_data.map(|value| value.and_then(from_base64)),
        metadata: metadata.map(|value| value.and_then(asks_for_ec2)),
    }
}

/// The value of the only word with this name. The kernel takes a parameter in quotes, too.
fn only<'a>(words: impl Iterator<Item = &'a str>, name: &str) -> Option<Result<&'a str, String>> {
    let value = |word: &'a str| word.trim_matches('"').strip_prefix(name)?.strip_prefix('=');
    let mut values = words.filter_map(value).map(|value| value.trim_matches('"'));
    let first = values.next().filter(|value| !value.is_empty())?;
    match values.next() {
        None => Some(Ok(first)),
        Some(_) => Some(Err(format!("{name} is given twice: give it once"))),
    }
}

/// What the switch for the metadata service may hold.
pub(super) fn asks_for_ec2(value: &str) -> Result<(), String> {
    match value.trim() {
        "ec2" => Ok(()),
        _ => Err(format!(
            "the metadata service {:?} is not known: \"ec2\" is, which Firecracker has too",
            value.chars().take(40).collect::<String>()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_of_the_command_line_are_read() {
        let said = of_cmdline("quiet caisson.user-data=aGk= caisson.metadata=ec2 xcaisson.user-data=x\n");
        assert_eq!(said, Said { user_data: Some(Ok(b"hi".to_vec())), metadata: Some(Ok(())) });
        assert_eq!(of_cmdline("\"caisson.user-data=aGk\""), of_cmdline("caisson.user-data=\"aGk\""));
        assert_eq!(
            of_cmdline("quiet caisson.user-data= caisson.user-data caisson.user-datax=1"),
            Said::default()
        );
        for (cmdline, expected) in [
            ("caisson.user-data=aGk= caisson.user-data=aGk=", "given twice"),
            ("caisson.user-data=[settings]", "not base64"),
            (&format!("caisson.user-data={}", "A".repeat(2048)), "all that the kernel keeps"),
        ] {
            let error = of_cmdline(cmdline).user_data.unwrap().unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let error = of_cmdline("caisson.metadata=gce").metadata.unwrap().unwrap_err();
        assert!(error.contains("\"gce\" is not known"), "{error}");
        // A long command line without a word for us is fine.
        assert_eq!(of_cmdline(&"a ".repeat(1100)), Said::default());
    }

    #[test]
    fn a_string_of_smbios_is_one_word() {
        let strings =
            [&b"caisson.user-data=aGk="[..], b"io.systemd.credential:a=caisson.metadata=ec2", b"\xff"];
        assert_eq!(
            of_strings(strings.into_iter()),
            Said { user_data: Some(Ok(b"hi".to_vec())), metadata: None }
        );
    }

    proptest! {
        #[test]
        fn hostile_text_never_panics(text in "(caisson\\.(user-data|metadata)=?|[\" =a-zA-Z0-9+/\n]|\\PC){0,60}") {
            let said = of_cmdline(&text);
            let _ = of_strings(text.as_bytes().split(|byte| *byte == b'a'));
            if let Some(Ok(content)) = said.user_data {
                prop_assert!(content.len() <= text.len());
            }
        }
    }
}
