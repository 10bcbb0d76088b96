//! What comes after what.

use std::collections::BTreeSet;
use std::fmt::Display;

use crate::parse::Mistake;

/// Things each of which is to come after the next, the last of which is the first.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Circle<'a, N>(Vec<&'a N>);

impl<N: Display> Circle<'_, N> {
    /// `group`: the key of the settings where all of them are.
    pub(crate) fn mistake(&self, group: &str) -> Mistake {
        let names: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        let reason = format!("a circle, in which none could be the first: {}", names.join(" after "));
        Mistake::new(&format!("{group}.{}.after", names[0]), reason)
    }
}

/// One of the circles, if there is one. `after`: what comes before a thing.
pub(crate) fn circle<'a, N: Ord>(
    all: impl Iterator<Item = &'a N>,
    after: impl Fn(&N) -> Option<&'a [N]>,
) -> Option<Circle<'a, N>> {
    let after = |name: &N| after(name).unwrap_or_default();
    // What is left when all that can come have come.
    let mut left: BTreeSet<&N> = all.collect();
    while let Some(free) =
        left.iter().copied().find(|name| !after(name).iter().any(|before| left.contains(before)))
    {
        left.remove(free);
    }
    let mut path = vec![*left.first()?];
    loop {
        let next = after(path[path.len() - 1]).iter().find(|name| left.contains(name))?;
        let known = path.iter().position(|name| *name == next);
        path.push(next);
        if let Some(start) = known {
            return Some(Circle(path.split_off(start)));
        }
    }
}
