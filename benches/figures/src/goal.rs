//! Goals: what a figure is to reach, as text that people and programs read.
//!
//! A goal is `printed` (nothing to reach) or bounds joined by `and`. A bound is `<=` or `>=` and a number, which may end in
//! KiB, MiB or GiB; before it stands what is bound, `p50`, `p99` or `max` of our own values, or nothing for the ratio to the
//! peer.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{FigureError, Spread};

const PRINTED: &str = "printed";
const SCALES: [(&str, f64); 3] = [("KiB", 1024.0), ("MiB", 1_048_576.0), ("GiB", 1_073_741_824.0)];

/// What a figure is to reach.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Goal {
    text: String,
    bounds: Vec<Bound>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Bound {
    of: Of,
    at_least: bool,
    value: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Of {
    Ratio,
    P50,
    P99,
    Max,
}

impl Goal {
    /// Reads a goal.
    ///
    /// # Errors
    /// [`FigureError::Goal`] naming the part that is no bound.
    pub fn parse(text: &str) -> Result<Self, FigureError> {
        if text == PRINTED {
            return Ok(Self { text: text.to_owned(), bounds: Vec::new() });
        }
        let bound = |part: &str| {
            let wrong = || FigureError::Goal { text: text.to_owned(), part: part.to_owned() };
            Bound::parse(part).ok_or_else(wrong)
        };
        let bounds = text.split(" and ").map(bound).collect::<Result<_, _>>()?;
        Ok(Self { text: text.to_owned(), bounds })
    }

    /// Whether all bounds hold. Without a ratio no bound on it does.
    #[must_use]
    pub fn met(&self, ours: &Spread, ratio: Option<f64>) -> bool {
        self.bounds.iter().all(|bound| bound.holds(ours, ratio))
    }

    /// The first bound on the ratio, for pictures.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        self.bounds.iter().find(|bound| bound.of == Of::Ratio).map(|bound| bound.value)
    }
}

impl Bound {
    fn parse(part: &str) -> Option<Self> {
        let words: Vec<&str> = part.split_whitespace().collect();
        let (of, rest) = match words.split_first()? {
            (&"p50", rest) => (Of::P50, rest),
            (&"p99", rest) => (Of::P99, rest),
            (&"max", rest) => (Of::Max, rest),
            _ => (Of::Ratio, &words[..]),
        };
        let (comparison, number, unit) = match rest {
            [comparison, number] => (*comparison, *number, None),
            [comparison, number, unit] => (*comparison, *number, Some(*unit)),
            _ => return None,
        };
        let at_least = match comparison {
            ">=" => true,
            "<=" => false,
            _ => return None,
        };
        let scale = unit.map_or(Some(1.0), |unit| SCALES.iter().find(|s| s.0 == unit).map(|s| s.1))?;
        let value = number.parse().ok().filter(|value: &f64| value.is_finite())?;
        Some(Self { of, at_least, value: value * scale })
    }

    fn holds(self, ours: &Spread, ratio: Option<f64>) -> bool {
        let value = match self.of {
            Of::Ratio => ratio,
            Of::P50 => Some(ours.p50),
            Of::P99 => ours.p99,
            Of::Max => ours.max,
        };
        value.is_some_and(|value| if self.at_least { value >= self.value } else { value <= self.value })
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl TryFrom<String> for Goal {
    type Error = FigureError;

    fn try_from(text: String) -> Result<Self, FigureError> {
        Self::parse(&text)
    }
}

impl From<Goal> for String {
    fn from(goal: Goal) -> Self {
        goal.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn met(goal: &str, p50: f64, p99: f64, ratio: Option<f64>) -> bool {
        let ours = Spread { p50, p99: Some(p99), max: Some(p99), n: Some(2) };
        Goal::parse(goal).unwrap().met(&ours, ratio)
    }

    #[test]
    fn goals_are_judged_by_what_they_name() {
        assert!(met("p50 <= 3", 2.9, 9.0, None) && !met("p50 <= 3", 3.1, 3.1, None));
        assert!(met("p99 <= 10", 99.0, 9.9, None) && !met("p99 <= 10", 1.0, 10.1, None));
        assert!(met(">= 1.0", 0.0, 0.0, Some(1.0)) && !met(">= 1.0", 9.0, 9.0, Some(0.99)));
        assert!(met("printed", 1e9, 1e9, None));
    }

    #[test]
    fn a_bound_on_the_ratio_needs_a_peer() {
        assert!(!met("<= 0.5", 0.0, 0.0, None));
    }

    #[test]
    fn all_bounds_must_hold() {
        let goal = "<= 0.25 and p50 <= 8 MiB";
        assert!(met(goal, 8_388_608.0, 0.0, Some(0.25)));
        assert!(!met(goal, 8_388_609.0, 0.0, Some(0.1)) && !met(goal, 1.0, 0.0, Some(0.3)));
        assert_eq!(Goal::parse(goal).unwrap().ratio(), Some(0.25));
    }

    #[test]
    fn what_is_no_goal_is_refused_by_name() {
        for bad in ["", "fast", "< 3", "p50 <= x", "p98 <= 3", "<= 3 bananas", "<= NaN", "<= 1 and", "p50 <="]
        {
            let error = Goal::parse(bad).unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }
}
