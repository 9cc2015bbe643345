//! Debian's archive as this machine's apt knows it: where it is, and which packages an image would get from it now.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::DebianOptions;
use crate::cache::{Sha256Hex, write_atomically};
use crate::tool::{run, run_watched};
use crate::{Cache, ImageError, Observer};

const REMEDY: &str = "look at apt's sources in /etc/apt";
/// What every image has. zstd packs the initramfs, as on any Debian with its recommended packages.
const BASE: [&str; 14] = [
    "systemd",
    "systemd-sysv",
    "udev",
    "dbus",
    "iproute2",
    "iputils-ping",
    "kmod",
    "linux-image-cloud-amd64",
    "initramfs-tools",
    "grub2-common",
    "procps",
    "netbase",
    "e2fsprogs",
    "zstd",
];
/// Debian's keys, where Debian's own package puts them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Settings of this machine's apt that say how to fetch; others would end up in the image.
const FETCH_SETTINGS: [&str; 6] = [
    "Acquire::http::",
    "Acquire::https::",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
    "Acquire::Retries",
    "Acquire::ForceIPv",
];

/// Packages by name, with the version of each.
pub(crate) type Packages = BTreeMap<String, String>;

/// One release, ready to be installed from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Archive {
    /// Lines of a sources.list.
    pub(crate) sources: Vec<String>,
    /// apt settings, one a line.
    pub(crate) settings: Vec<String>,
    /// What an image would hold now.
    pub(crate) packages: Packages,
    /// When the release was published, in seconds since 1970: no file of an image is younger.
    pub(crate) date: u64,
}

impl Archive {
    /// Brings the lists of the release up to date, in a folder of the cache, and asks apt what it would install.
    pub(crate) fn resolve(
        cache: &Cache,
        options: &DebianOptions,
        observer: &dyn Observer,
    ) -> Result<Self, ImageError> {
        let sources = sources(&options.release)?;
        let settings = fetch_settings()?;
        let apt = Apt::lay(cache.subfolder("apt")?.join(&options.release), &sources, &settings)?;
        run_watched(apt.get().args(["update", "-qq"]), observer, |_| {})?;
        let packages = apt.packages(&wanted(options).collect::<Vec<_>>(), observer)?;
        Ok(Self { sources, settings, packages, date: apt.date(&options.release)? })
    }
}

/// Packages asked for by name.
pub(crate) fn wanted(options: &DebianOptions) -> impl Iterator<Item = &str> {
    BASE.into_iter().chain(options.include.iter().map(String::as_str))
}

/// An apt of our own: this machine's packages and settings are none of its business.
struct Apt {
    root: PathBuf,
    config: PathBuf,
}

impl Apt {
    fn lay(root: PathBuf, sources: &[String], settings: &[String]) -> Result<Self, ImageError> {
        for folder in ["lists/partial", "archives/partial", "resolved"] {
            let folder = root.join(folder);
            fs::create_dir_all(&folder).map_err(ImageError::file("create", &folder))?;
        }
        let config = root.join("apt.conf");
        let own = [
            ("Dir::Etc::Parts", "/dev/null".into()),
            ("Dir::Etc::Main", "/dev/null".into()),
            ("Dir::Etc::SourceList", root.join("sources.list")),
            ("Dir::Etc::SourceParts", "/dev/null".into()),
            ("Dir::Etc::Preferences", "/dev/null".into()),
            ("Dir::Etc::PreferencesParts", "/dev/null".into()),
            ("Dir::State::Lists", root.join("lists")),
            ("Dir::State::status", root.join("status")),
            ("Dir::State::extended_states", root.join("extended_states")),
            ("Dir::Cache", root.clone()),
            ("Dir::Cache::srcpkgcache", PathBuf::new()),
            ("APT::Architecture", "amd64".into()),
            ("APT::Architectures", "amd64".into()),
            // As root apt would drop to a user of its own, who cannot write here.
            ("APT::Sandbox::User", "root".into()),
            ("Acquire::Languages", "none".into()),
        ];
        let own = own.iter().map(|(name, value)| format!("{name} \"{}\";", value.display()));
        let lines: Vec<String> = own.chain(settings.iter().cloned()).collect();
        for (name, text) in [
            ("apt.conf", lines.join("\n") + "\n"),
            ("sources.list", sources.join("\n") + "\n"),
            ("status", String::new()),
        ] {
            let path = root.join(name);
            // apt makes its index anew for files that look changed.
            if fs::read_to_string(&path).ok().as_ref() != Some(&text) {
                fs::write(&path, text).map_err(ImageError::file("write", &path))?;
            }
        }
        Ok(Self { root, config })
    }

    fn get(&self) -> Command {
        let mut command = Command::new("apt-get");
        command.env("APT_CONFIG", &self.config).env("LC_ALL", "C");
        command
    }

    /// What apt would install. Its answer is kept for as long as the lists are the same: it thinks for seconds.
    fn packages(&self, wanted: &[&str], observer: &dyn Observer) -> Result<Packages, ImageError> {
        let mut question = wanted.join(" ");
        for list in self.releases()? {
            question += &fs::read_to_string(&list).map_err(ImageError::file("read", &list))?;
        }
        let kept = self.root.join("resolved").join(Sha256Hex::of(question.as_bytes()).0);
        let known = fs::read(&kept).ok().and_then(|raw| serde_json::from_slice(&raw).ok());
        if let Some(packages) = known {
            return Ok(packages);
        }
        let mut simulation = self.get();
        simulation.args(["install", "--simulate", "-qq", "--no-install-recommends"]);
        simulation.args(["?essential", "?priority(required)", "apt"]).args(wanted);
        let said = run_watched(&mut simulation, observer, |_| {})?;
        let packages: Packages = said.stdout.lines().filter_map(installed).collect();
        if packages.is_empty() {
            return Err(ImageError::unusable("apt's answer", "it would install nothing", REMEDY));
        }
        if let Ok(raw) = serde_json::to_vec(&packages) {
            write_atomically(&kept, &raw)?;
        }
        Ok(packages)
    }

    /// The Release files of all suites, in order. They hold the hashes of all other lists.
    fn releases(&self) -> Result<Vec<PathBuf>, ImageError> {
        let lists = self.root.join("lists");
        let entries = fs::read_dir(&lists).map_err(ImageError::file("list", &lists))?;
        let mut found: Vec<_> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.to_string_lossy().ends_with("Release"))
            .collect();
        found.sort();
        Ok(found)
    }

    /// When the main suite was published: the other suites change daily without changing a package of ours.
    fn date(&self, release: &str) -> Result<u64, ImageError> {
        let is_main = |path: &PathBuf| {
            let path = path.to_string_lossy();
            ["InRelease", "Release"].iter().any(|end| path.ends_with(&format!("_{release}_{end}")))
        };
        let found = self.releases()?.into_iter().find(is_main);
        let unusable = |reason: &str| ImageError::unusable(format!("Debian {release}"), reason, REMEDY);
        let text = found
            .and_then(|path| fs::read_to_string(path).ok())
            .ok_or_else(|| unusable("it has no Release file"))?;
        let date = text.lines().find_map(|line| line.strip_prefix("Date: "));
        let date = date.ok_or_else(|| unusable("its Release file has no date"))?;
        let seconds = run(Command::new("date").args(["--utc", "+%s", "--date", date]))?;
        seconds.trim().parse().map_err(|_| unusable("its Release file has an unreadable date"))
    }
}

/// Where this machine gets the release from. A release that it does not use itself is taken from where its own comes from.
fn sources(release: &str) -> Result<Vec<String>, ImageError> {
    let format = "$(TARGET_OF) $(RELEASE) $(CODENAME) $(COMPONENT) $(SITE) $(ORIGIN) $(LABEL)";
    let listed =
        run(Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]))?;
    let keyring = Path::new(KEYRING).is_file().then_some(KEYRING);
    let lines = source_lines(&listed, release, keyring);
    if lines.is_empty() {
        let reason = "this machine's apt has no source of Debian";
        return Err(ImageError::unusable(
            format!("Debian {release}"),
            reason,
            "add one to /etc/apt and run apt-get update",
        ));
    }
    Ok(lines)
}

fn source_lines(listed: &str, release: &str, keyring: Option<&str>) -> Vec<String> {
    let debian: Vec<Vec<&str>> = listed
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| matches!(fields[..], ["deb", _, _, _, _, "Debian", ..]))
        .collect();
    let suite_of = |fields: &[&str]| fields[1].split(['-', '/']).next().unwrap_or_default().to_owned();
    let base = if debian.iter().any(|fields| suite_of(fields) == release) {
        release.to_owned()
    } else {
        debian.first().map(|fields| suite_of(fields)).unwrap_or_default()
    };
    let signed = keyring.map(|path| format!(" [signed-by={path}]")).unwrap_or_default();
    let mut lines = Vec::new();
    for fields in debian.iter().filter(|fields| suite_of(fields) == base) {
        let suite = fields[1].replacen(&base, release, 1);
        let line = format!("deb{signed} {} {suite} {}", fields[4], fields[3]);
        if !lines.contains(&line) && !suite.ends_with("-backports") {
            lines.push(line);
        }
    }
    lines
}

fn fetch_settings() -> Result<Vec<String>, ImageError> {
    let dump = run(Command::new("apt-config").args(["dump", "--no-empty", "Acquire"]))?;
    let wanted = |line: &&str| FETCH_SETTINGS.iter().any(|prefix| line.starts_with(prefix));
    Ok(dump.lines().filter(wanted).map(str::to_owned).collect())
}

/// `Inst libc6 (2.36-9 Debian:12/stable [amd64])`.
fn installed(line: &str) -> Option<(String, String)> {
    let (name, rest) = line.strip_prefix("Inst ")?.split_once(" (")?;
    // A package that is replaced while it is unpacked has its old version in brackets before.
    let name = name.split_whitespace().next()?;
    Some((name.to_owned(), rest.split_whitespace().next()?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = "deb bookworm bookworm main mirror:/debian Debian Debian\n\
        deb bookworm-updates bookworm-updates main mirror:/debian Debian Debian\n\
        deb bookworm-security bookworm-security main mirror:/security Debian Debian-Security\n\
        deb nodistro nodistro main other:/ Other Other\n\
        deb bookworm-backports bookworm-backports main mirror:/debian Debian Debian\n";

    #[test]
    fn only_debians_own_suites_of_the_release_are_used() {
        let lines = source_lines(LISTED, "bookworm", Some("/keys"));
        assert_eq!(
            lines,
            [
                "deb [signed-by=/keys] mirror:/debian bookworm main",
                "deb [signed-by=/keys] mirror:/debian bookworm-updates main",
                "deb [signed-by=/keys] mirror:/security bookworm-security main"
            ]
        );
    }

    #[test]
    fn another_release_comes_from_the_same_place() {
        let lines = source_lines(LISTED, "trixie", None);
        assert_eq!(lines[0], "deb mirror:/debian trixie main");
        assert_eq!(lines[2], "deb mirror:/security trixie-security main");
        assert!(source_lines("deb nodistro nodistro main other:/ Other Other\n", "trixie", None).is_empty());
    }

    #[test]
    fn apts_simulation_is_read() {
        assert_eq!(
            installed("Inst libc6 (2.36-9+deb12u10 Debian:12.15/oldstable [amd64]) []"),
            Some(("libc6".to_owned(), "2.36-9+deb12u10".to_owned()))
        );
        assert_eq!(installed("Conf libc6 (2.36-9 Debian:12 [amd64])"), None);
    }
}
