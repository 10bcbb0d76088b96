//! `cargo caisson bench`: how fast and how large the image is. A table for people goes to the standard error, one JSON document
//! to the standard output.

pub mod api;
pub mod boot;
pub mod container;
pub mod size;
pub mod update;

use serde::Serialize;
use std::borrow::Cow;
use std::fmt::Write;

/// Several measurements of one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Summary {
    pub median: u64,
    pub min: u64,
    pub max: u64,
}

impl Summary {
    /// `None` of no values. Of an even number the median is the higher of the two in the middle.
    pub fn of(mut values: Vec<u64>) -> Option<Self> {
        values.sort_unstable();
        let (min, max) = (*values.first()?, *values.last()?);
        Some(Self { median: values[values.len() / 2], min, max })
    }
}

/// A figure and what it may be at most.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Goal {
    pub name: Cow<'static, str>,
    pub value: f64,
    pub limit: f64,
    pub reached: bool,
}

impl Goal {
    pub fn new(name: impl Into<Cow<'static, str>>, value: f64, limit: f64) -> Self {
        Self { name: name.into(), value, limit, reached: value <= limit }
    }
}

fn goals_table(goals: &[Goal]) -> String {
    let mut text = String::new();
    for goal in goals {
        let verdict = if goal.reached { "reached" } else { "MISSED" };
        let _ =
            writeln!(text, "{:<58} {:>7.2}  at most {:>6.2}  {verdict}", goal.name, goal.value, goal.limit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_of_the_sorted_values() {
        assert_eq!(Summary::of(vec![9, 1, 5]), Some(Summary { median: 5, min: 1, max: 9 }));
        assert_eq!(Summary::of(vec![]), None);
    }

    #[test]
    fn a_goal_is_reached_at_its_limit() {
        assert!(Goal::new("a", 2.5, 2.5).reached && !Goal::new("a", 2.6, 2.5).reached);
    }
}
