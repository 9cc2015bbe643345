//! What must be installed for the lab, in one list.

use std::env;
use std::fmt;

use crate::LabError;

/// One program the lab runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Requirement {
    /// Name of the program, looked up in PATH.
    pub program: &'static str,
    /// Debian package that brings it.
    pub package: &'static str,
    /// What the lab does with it.
    pub reason: &'static str,
    /// Whether the lab works without it.
    pub optional: bool,
}

/// Every program the lab runs beside what any Debian has (apt-get, dpkg-deb).
pub const fn requirements() -> &'static [Requirement] {
    const LIST: &[Requirement] = &[
        Requirement {
            program: "qemu-system-x86_64",
            package: "qemu-system-x86",
            reason: "emulates the lab hosts",
            optional: false,
        },
        Requirement {
            program: "ip",
            package: "iproute2",
            reason: "lays the network between them",
            optional: false,
        },
        Requirement {
            program: "strip",
            package: "binutils",
            reason: "shrinks the programs laid into them",
            optional: false,
        },
        Requirement {
            program: "busybox",
            package: "busybox-static",
            reason: "gives `lab up` commands to run inside a host",
            optional: true,
        },
    ];
    LIST
}

impl Requirement {
    /// Whether the program is in PATH.
    pub fn present(&self) -> bool {
        find_program(self.program).is_some()
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}; package {})", self.program, self.reason, self.package)
    }
}

/// Looks a program up in PATH, and in the system folders that a user's PATH may lack.
pub(crate) fn find_program(name: &str) -> Option<std::path::PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|program| program.is_file())
}

/// Checks that all that is needed is there.
///
/// # Errors
/// [`LabError::Missing`]: one line that names every missing program and the command that installs them.
pub fn check() -> Result<(), LabError> {
    describe_missing(requirements().iter().filter(|wanted| !wanted.optional && !wanted.present()))
        .map_or(Ok(()), |line| Err(LabError::Missing(line)))
}

fn describe_missing<'a>(missing: impl Iterator<Item = &'a Requirement>) -> Option<String> {
    let missing: Vec<_> = missing.collect();
    let programs: Vec<_> =
        missing.iter().map(|wanted| format!("{} ({})", wanted.program, wanted.reason)).collect();
    let packages: Vec<_> = missing.iter().map(|wanted| wanted.package).collect();
    (!missing.is_empty()).then(|| {
        let install = packages.join(" ");
        format!("{}; install with: apt-get install -y --no-install-recommends {install}", programs.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_missing_is_told_in_one_line() {
        let line = describe_missing(requirements().iter()).unwrap();
        assert!(
            requirements()
                .iter()
                .all(|wanted| line.contains(wanted.program) && line.contains(wanted.package))
        );
        assert_eq!(line.lines().count(), 1);
        assert_eq!(describe_missing([].into_iter()), None);
    }
}
