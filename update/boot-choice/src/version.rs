//! The order of versions: UAPI group, Version Format Specification, as systemd's `strverscmp_improved` has it (which puts `123~rc1`
//! before `123`, where the specification's text leaves the order of two steps open).

use std::cmp::Ordering;

/// Which of two versions is the newer.
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        a = skip(a, |byte| !means_something(byte));
        b = skip(b, |byte| !means_something(byte));
        // A pre-release: older than what has none.
        match separator(&mut a, &mut b, b'~') {
            (true, false) => return Ordering::Less,
            (false, true) => return Ordering::Greater,
            _ => {}
        }
        if a.is_empty() || b.is_empty() {
            return a.len().cmp(&b.len());
        }
        for byte in [b'-', b'^', b'.'] {
            match separator(&mut a, &mut b, byte) {
                (true, false) => return Ordering::Less,
                (false, true) => return Ordering::Greater,
                _ => {}
            }
        }
        let digits = first(a).is_ascii_digit() || first(b).is_ascii_digit();
        let run = |text| {
            split(text, |byte| if digits { byte.is_ascii_digit() } else { byte.is_ascii_alphabetic() })
        };
        let ((run_a, rest_a), (run_b, rest_b)) = (run(a), run(b));
        let order = if digits {
            // A number is newer than no number; numbers of any length, so their digits are compared.
            let (number_a, number_b) = (skip(run_a, |byte| byte == b'0'), skip(run_b, |byte| byte == b'0'));
            (!run_a.is_empty())
                .cmp(&!run_b.is_empty())
                .then(number_a.len().cmp(&number_b.len()))
                .then(number_a.cmp(number_b))
        } else {
            run_a.cmp(run_b)
        };
        if order.is_ne() {
            return order;
        }
        (a, b) = (rest_a, rest_b);
    }
}

fn means_something(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'~' | b'-' | b'^' | b'.')
}

/// Which of the two begin with `byte`; taken from both when both do.
fn separator(a: &mut &[u8], b: &mut &[u8], byte: u8) -> (bool, bool) {
    let begin = (first(a) == byte, first(b) == byte);
    if begin == (true, true) {
        (*a, *b) = (a.get(1..).unwrap_or_default(), b.get(1..).unwrap_or_default());
    }
    begin
}

fn first(text: &[u8]) -> u8 {
    text.first().copied().unwrap_or(0)
}

fn split(text: &[u8], keep: impl Fn(u8) -> bool) -> (&[u8], &[u8]) {
    text.split_at(text.iter().position(|byte| !keep(*byte)).unwrap_or(text.len()))
}

fn skip(text: &[u8], drop: impl Fn(u8) -> bool) -> &[u8] {
    split(text, drop).1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From systemd's own tests: the oldest first.
    #[test]
    fn versions_stand_in_the_order_of_systemd() {
        let order = [
            "~1",
            "",
            "ab",
            "abb",
            "abc",
            "0001",
            "002",
            "12",
            "122",
            "122.9",
            "123~rc1",
            "123",
            "123-a",
            "123-a.1",
            "123-a1",
            "123-a1.1",
            "123-3",
            "123-3.1",
            "123^patch1",
            "123^1",
            "123.a-1",
            "123.1-1",
            "123a-1",
            "124",
        ];
        for (at, older) in order.iter().enumerate() {
            assert_eq!(compare_versions(older, older), Ordering::Equal);
            for newer in &order[at + 1..] {
                assert_eq!(compare_versions(older, newer), Ordering::Less, "{older} and {newer}");
                assert_eq!(compare_versions(newer, older), Ordering::Greater, "{newer} and {older}");
            }
        }
        for (older, newer) in [
            ("123.45-67.89", "123.45-67.89a"),
            ("123.45-67.ab", "123.45-67.89"),
            ("123.45-67.9", "123.45-67.89"),
            ("123.42-99.99", "123.45-67.89"),
            ("123~rc1-99.99", "123-45.67.89"),
            ("123^45-67.89", "123.45-67.89"),
            ("123^aa2-67.89", "123aa2-67.89"),
        ] {
            assert_eq!(compare_versions(older, newer), Ordering::Less, "{older} and {newer}");
        }
    }

    /// From the specification's "Examples".
    #[test]
    fn versions_compare_as_the_specification_says() {
        for (a, order, b) in [
            ("11", Ordering::Equal, "11"),
            ("bar-123", Ordering::Less, "foo-123"),
            ("123a", Ordering::Greater, "123"),
            ("123.a", Ordering::Greater, "123"),
            ("123.a", Ordering::Less, "123.b"),
            ("123a", Ordering::Greater, "123.a"),
            ("11α", Ordering::Equal, "11β"),
            ("A", Ordering::Less, "a"),
            ("", Ordering::Less, "0"),
            ("0.", Ordering::Greater, "0"),
            ("0.0", Ordering::Greater, "0"),
            ("1_", Ordering::Equal, "1"),
            ("_1", Ordering::Equal, "1"),
            ("1_", Ordering::Less, "1.2"),
            ("1_2_3", Ordering::Greater, "1.3.3"),
            ("1+2+3", Ordering::Greater, "1.3.3"),
            ("1.2.0", Ordering::Less, "1.10.0"),
            ("99999999999999999999999998", Ordering::Less, "99999999999999999999999999"),
        ] {
            assert_eq!(compare_versions(a, b), order, "{a} and {b}");
        }
    }

    proptest::proptest! {
        #[test]
        fn versions_have_one_order(a in "[0-2ab.~^_-]{0,6}", b in "[0-2ab.~^_-]{0,6}", c in "[0-2ab.~^_-]{0,6}") {
            proptest::prop_assert_eq!(compare_versions(&a, &b), compare_versions(&b, &a).reverse());
            if compare_versions(&a, &b).is_le() && compare_versions(&b, &c).is_le() {
                proptest::prop_assert!(compare_versions(&a, &c).is_le(), "{} {} {}", a, b, c);
            }
        }
    }
}
