//! What this host offers a VM, as a report a person reads and a program can parse.

mod checks;
mod probe;

use std::fmt;

use serde::Serialize;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// VMs run, but something is slower or missing.
    Warn,
    /// VMs do not run.
    Fail,
}

/// One thing looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it; empty if nothing.
    pub remedy: &'static str,
}

/// The whole report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// All checks, in order of importance.
    pub checks: Vec<Check>,
}

impl Report {
    /// Whether a VM can run here.
    pub fn can_run_vms(&self) -> bool {
        self.checks.iter().all(|check| check.verdict != Verdict::Fail)
    }

    /// The report as one JSON object.
    pub fn to_json(&self) -> String {
        // Strings and unit variants only: this cannot fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Check { name, verdict, found, remedy } in &self.checks {
            let verdict = match verdict {
                Verdict::Ok => "OK",
                Verdict::Warn => "WARN",
                Verdict::Fail => "FAIL",
            };
            writeln!(f, "{verdict:4}  {name:22}  {found}")?;
            if !remedy.is_empty() {
                writeln!(f, "      {:22}  -> {remedy}", "")?;
            }
        }
        Ok(())
    }
}

/// Looks at everything. Takes a fraction of a second; changes nothing on the host.
pub fn examine() -> Report {
    Report { checks: checks::all() }
}
