//! What a search says while it runs and in the end.

use std::path::PathBuf;

use serde::Serialize;

/// Figures of a search, as libFuzzer tells them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Figures {
    /// Inputs tried.
    pub(crate) runs: u64,
    /// Of a second, on average.
    pub(crate) runs_per_s: u64,
    /// Edges of the program that some input has reached.
    pub(crate) counters: u64,
    /// The same, with how often and which operands were compared.
    pub(crate) features: u64,
    /// Inputs kept because each adds a feature.
    pub(crate) corpus: u64,
}

impl Figures {
    /// Takes what a line of libFuzzer's says: a step (`#12 NEW cov: 3 ft: 4 corp: 2/11b exec/s: 0 rss: 27Mb`), or one of the
    /// sums at the end (`stat::average_exec_per_sec: 7`).
    pub(crate) fn hear(&mut self, line: &str) {
        if let Some(sum) = line.strip_prefix("stat::") {
            let Some((name, value)) = sum.split_once(':') else { return };
            let Ok(value) = value.trim().parse() else { return };
            match name {
                "number_of_executed_units" => self.runs = value,
                "average_exec_per_sec" => self.runs_per_s = value,
                _ => {}
            }
            return;
        }
        let Some(step) = line.strip_prefix('#') else { return };
        let words: Vec<&str> = step.split_whitespace().collect();
        if let Some(runs) = words.first().and_then(|word| word.parse().ok()) {
            self.runs = runs;
        }
        for pair in words.windows(2) {
            let number = pair[1].split('/').next().and_then(|word| word.parse().ok());
            match (pair[0], number) {
                ("cov:", Some(number)) => self.counters = number,
                ("ft:", Some(number)) => self.features = number,
                ("corp:", Some(number)) => self.corpus = number,
                ("exec/s:", Some(number)) => self.runs_per_s = number,
                _ => {}
            }
        }
    }
}

/// An input that fails.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    /// Where it lies.
    pub(crate) path: PathBuf,
    /// What the target did with it.
    pub(crate) reason: String,
    /// The command that does it again.
    pub(crate) replay: String,
}

/// One target's search.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) target: &'static str,
    /// Why there was no search.
    pub(crate) skipped: Option<&'static str>,
    #[serde(flatten)]
    pub(crate) figures: Figures,
    pub(crate) finding: Option<Finding>,
}

/// Heads the lines of [`Report::line`].
pub(crate) fn heading() -> String {
    format!("{:<14}{:>12}{:>10}{:>10}{:>8}  finding", "target", "runs", "runs/s", "counters", "corpus")
}

impl Report {
    /// For a person.
    pub(crate) fn line(&self) -> String {
        if let Some(reason) = self.skipped {
            return format!("{:<14}skipped: {reason}", self.target);
        }
        let Figures { runs, runs_per_s, counters, corpus, .. } = self.figures;
        let found = match &self.finding {
            None => "none".to_owned(),
            Some(Finding { path, reason, replay }) => {
                format!("{reason}\n  input   {}\n  replay  {replay}", path.display())
            }
        };
        format!("{:<14}{runs:>12}{runs_per_s:>10}{counters:>10}{corpus:>8}  {found}", self.target)
    }

    /// For a program.
    pub(crate) fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_and_sums_are_understood() {
        let mut figures = Figures::default();
        figures.hear(
            "#4653\tREDUCE cov: 40 ft: 41 corp: 4/31b lim: 43 exec/s: 12 rss: 27Mb L: 12/12 MS: 2 ChangeBit-",
        );
        let expected = Figures { runs: 4653, runs_per_s: 12, counters: 40, features: 41, corpus: 4 };
        assert_eq!(figures, expected);
        figures.hear("stat::number_of_executed_units: 5000");
        figures.hear("stat::average_exec_per_sec:     99");
        figures.hear("#nonsense");
        assert_eq!(figures, Figures { runs: 5000, runs_per_s: 99, ..expected });
    }
}
