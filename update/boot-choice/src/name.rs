//! Boot counters in file names: `caisson_1.2.0+3.efi` has three tries, `caisson_1.2.0+2-1.efi` has had one of them,
//! `caisson_1.2.0.efi` needs none: it was blessed (systemd: "Automatic Boot Assessment").

/// Highest count that the loader takes for one.
const MOST: u32 = i32::MAX as u32;

/// Tries of an entry that has not proven itself yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counter {
    pub left: u32,
    pub done: u32,
}

/// The name of a file in `EFI/Linux` of the ESP that the loader would list: it ends in `.efi`, and begins neither with a dot nor with
/// `auto-`. Nor with a plus, which the loader takes: `+3.efi` blessed would be `.efi`, which is hidden.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileName {
    text: String,
    /// Bytes of `text` before the counter's `+`, or before the suffix where there is none.
    stem: usize,
    counter: Option<Counter>,
}

impl FileName {
    /// None when the loader would not list a file of this name, or not once it is blessed.
    pub fn parse(text: &str) -> Option<Self> {
        let before = text.len().checked_sub(SUFFIX.len())?;
        let (stem, suffix) = (text.get(..before)?, text.get(before..)?);
        let hidden = text.starts_with(['.', '+'])
            || text.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("auto-"));
        if !suffix.eq_ignore_ascii_case(SUFFIX) || hidden {
            return None;
        }
        let counted =
            stem.rsplit_once('+').and_then(|(name, counter)| Some((name, Counter::parse(counter)?)));
        let (stem, counter) = match counted {
            Some((name, counter)) => (name.len(), Some(counter)),
            None => (stem.len(), None),
        };
        Some(Self { text: text.to_owned(), stem, counter })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// None when the entry is blessed: it is not counted any more.
    pub fn counter(&self) -> Option<Counter> {
        self.counter
    }

    /// What the loader renames the file to before it starts it, so that a boot which never ends has used a try. None when the entry
    /// is not counted.
    pub fn tried(&self) -> Option<Self> {
        let Counter { left, done } = self.counter?;
        Some(
            self.with(Some(Counter { left: left.saturating_sub(1), done: done.saturating_add(1).min(MOST) })),
        )
    }

    /// The name once a boot has proven healthy; the same name where nothing is counted.
    pub fn blessed(&self) -> Self {
        self.with(None)
    }

    /// The name that gives an entry `tries`, none of them done. 0: it stays as the last resort.
    pub fn with_tries(&self, tries: u32) -> Self {
        self.with(Some(Counter { left: tries.min(MOST), done: 0 }))
    }

    /// The name once the entry is given up: no tries left, those done as they were.
    pub fn given_up(&self) -> Self {
        self.with(Some(Counter { left: 0, done: self.counter.map_or(0, |counter| counter.done) }))
    }

    fn with(&self, counter: Option<Counter>) -> Self {
        let (stem, suffix) = (self.text.get(..self.stem), self.text.get(self.text.len() - SUFFIX.len()..));
        let (stem, suffix) = (stem.unwrap_or_default(), suffix.unwrap_or(SUFFIX));
        let text = match counter {
            None => format!("{stem}{suffix}"),
            Some(Counter { left, done: 0 }) => format!("{stem}+{left}{suffix}"),
            Some(Counter { left, done }) => format!("{stem}+{left}-{done}{suffix}"),
        };
        Self { text, stem: self.stem, counter }
    }
}

const SUFFIX: &str = ".efi";

impl Counter {
    /// `LEFT` or `LEFT-DONE`.
    fn parse(text: &str) -> Option<Self> {
        let (left, done) = match text.split_once('-') {
            Some((left, done)) => (left, number(done)?),
            None => (text, 0),
        };
        Some(Self { left: number(left)?, done })
    }
}

/// Digits only: no sign, no blank.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok().filter(|number| *number <= MOST) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> FileName {
        FileName::parse(text).unwrap()
    }

    /// The two series that systemd-boot's source gives as examples.
    #[test]
    fn each_try_is_counted_in_the_name() {
        for series in [
            ["foobar+3.efi", "foobar+2-1.efi", "foobar+1-2.efi", "foobar+0-3.efi"].as_slice(),
            &["foobar+4-0.efi", "foobar+3-1.efi", "foobar+2-2.efi", "foobar+1-3.efi", "foobar+0-4.efi"],
        ] {
            for (before, after) in series.iter().zip(&series[1..]) {
                assert_eq!(name(before).tried().unwrap().as_str(), *after);
            }
            for any in series {
                assert_eq!(name(any).blessed().as_str(), "foobar.efi");
            }
        }
    }

    #[test]
    fn a_counter_is_only_what_stands_before_the_suffix() {
        for (text, counter) in [
            ("caisson_1.2.0.efi", None),
            ("caisson_1.2.0+3.efi", Some((3, 0))),
            ("caisson_1.2.0+2-1.EFI", Some((2, 1))),
            ("caisson+0.efi", Some((0, 0))),
            ("a+1+2-3.efi", Some((2, 3))),
            ("a+3-.efi", None),
            ("a+.efi", None),
            ("a+3x.efi", None),
            ("a+3.b.efi", None),
            ("a+-1.efi", None),
            ("a++1.efi", Some((1, 0))),
            ("a+2147483647.efi", Some((2147483647, 0))),
            ("a+2147483648.efi", None),
            ("a+3-99999999999999999999.efi", None),
        ] {
            assert_eq!(name(text).counter(), counter.map(|(left, done)| Counter { left, done }), "{text}");
        }
    }

    #[test]
    fn what_the_loader_does_not_list_is_no_entry() {
        for text in [
            "",
            "efi",
            ".efi",
            ".hidden.efi",
            "auto-x.efi",
            "Auto-x.efi",
            "caisson.conf",
            "caisson.efi.tmp",
            "é.ef",
        ] {
            assert_eq!(FileName::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_name_made_is_a_name_read(text in "[a-z0-9._+-]{1,12}\\.efi", tries in any::<u32>()) {
            let Some(name) = FileName::parse(&text) else { return Ok(()) };
            for made in [Some(name.blessed()), name.tried(), Some(name.with_tries(tries)), Some(name.given_up())].into_iter().flatten() {
                let read = FileName::parse(made.as_str()).unwrap();
                // `a+1+2.efi` blessed is `a+1.efi`, which the loader takes for a counted one: such stems are not ours to make.
                if !name.as_str()[..name.stem].contains('+') {
                    prop_assert_eq!(&read, &made);
                }
            }
        }
    }
}
