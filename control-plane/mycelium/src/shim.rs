//! `mycelium shim`: puts the runtime where containerd finds it, and takes it away again.
//!
//! containerd's configuration is the operator's: ours is one block between two marks at its end, and nothing else is
//! touched.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use crate::output::say;

const PROGRAMS: [&str; 2] = ["containerd-shim-endophyte-v2", "endophyte"];
const CONTAINERD: &str = "/etc/containerd/config.toml";
const K3S_DIR: &str = "/var/lib/rancher/k3s/agent/etc/containerd";
const BEGIN: &str = "# >>> endophyte (mycelium shim uninstall removes this)";
const END: &str = "# <<< endophyte";
const V2: &str = include_str!("../../../shim/deploy/containerd-config.toml");
const V3: &str = include_str!("../../../shim/deploy/containerd-config-v3.toml");

/// What can be done with the runtime.
#[derive(Debug, Subcommand)]
pub(crate) enum ShimCommand {
    /// Make pods with `runtimeClassName: endophyte` possible on this node. May be repeated.
    Install(ShimArgs),
    /// Undo that. Pods that run as VMs must have ended.
    Uninstall(ShimArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ShimArgs {
    /// For the containerd that is part of K3s.
    #[arg(long)]
    k3s: bool,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Folder in containerd's PATH for the programs.
    #[arg(long, value_name = "DIR", default_value = "/usr/local/bin")]
    bin_dir: PathBuf,
    /// containerd's configuration file, if it is not where it usually is.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// One thing to do.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Copy { from: PathBuf, to: PathBuf },
    Write { path: PathBuf, text: String },
    Remove { path: PathBuf },
}

pub(crate) fn run(command: &ShimCommand) -> Result<()> {
    let (args, steps) = match command {
        ShimCommand::Install(args) => (args, install(args)?),
        ShimCommand::Uninstall(args) => (args, uninstall(args)?),
    };
    if steps.is_empty() {
        say("nothing to do");
        return Ok(());
    }
    for step in &steps {
        say(&step.describe(args.dry_run));
        if !args.dry_run {
            step.carry_out()?;
        }
    }
    let restart = if args.k3s {
        "systemctl restart k3s (k3s-agent on an agent)"
    } else {
        "systemctl restart containerd"
    };
    say(&format!("then: {restart}; pods go on meanwhile"));
    if matches!(command, ShimCommand::Install(_)) {
        say("once per cluster: kubectl apply -f shim/deploy/runtimeclass.yaml");
        let path = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&path).any(|dir| dir.join("nft").is_file()) {
            say("pods of a group (docs/kubernetes.md) need nft, which is not here: apt install nftables");
        }
    }
    Ok(())
}

fn install(args: &ShimArgs) -> Result<Vec<Step>> {
    let here = std::env::current_exe()?;
    let mut steps = Vec::new();
    for program in PROGRAMS {
        let (from, to) = (here.with_file_name(program), args.bin_dir.join(program));
        if !from.is_file() {
            bail!("{} is not beside this program; `cargo xtask build` puts them together", from.display());
        }
        if !same(&from, &to) {
            steps.push(Step::Copy { from, to });
        }
    }
    let path = config_path(args);
    let before = read(&path)?;
    let text = with_block(before.as_deref(), &path, args.k3s)?;
    if before.as_deref() != Some(&text) {
        steps.push(Step::Write { path, text });
    }
    Ok(steps)
}

fn uninstall(args: &ShimArgs) -> Result<Vec<Step>> {
    let path = config_path(args);
    let mut steps = Vec::new();
    if let Some(before) = read(&path)? {
        let text = without_block(&before);
        if text != before {
            steps.push(Step::Write { path, text });
        }
    }
    let programs = PROGRAMS.iter().map(|program| args.bin_dir.join(program)).filter(|path| path.exists());
    steps.extend(programs.map(|path| Step::Remove { path }));
    Ok(steps)
}

fn config_path(args: &ShimArgs) -> PathBuf {
    match (&args.config, args.k3s) {
        (Some(path), _) => path.clone(),
        (None, false) => CONTAINERD.into(),
        // K3s makes its configuration from a template: the newer name wins unless only the older one is there.
        (None, true) => {
            let older = Path::new(K3S_DIR).join("config.toml.tmpl");
            if older.exists() { older } else { Path::new(K3S_DIR).join("config-v3.toml.tmpl") }
        }
    }
}

fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The configuration with our block at its end, in the words of its version.
fn with_block(before: Option<&str>, path: &Path, k3s: bool) -> Result<String> {
    let is_new_k3s = k3s && path.file_name().is_some_and(|name| name == "config-v3.toml.tmpl");
    let begun = match before {
        Some(text) => without_block(text),
        None if k3s => "{{ template \"base\" . }}\n".to_owned(),
        None => "version = 2\n".to_owned(),
    };
    let block = match version(&begun) {
        Some(3) => V3,
        Some(2) => V2,
        None if is_new_k3s => V3,
        None if k3s => V2,
        other => bail!(
            "{} has version {}, and blocks for 2 and 3 are known; run `containerd config migrate` first",
            path.display(),
            other.map_or_else(|| "1 (none is given)".to_owned(), |v| v.to_string())
        ),
    };
    let settings: Vec<&str> = block.lines().filter(|line| !line.starts_with('#')).collect();
    Ok(format!("{}\n\n{BEGIN}\n{}\n{END}\n", begun.trim_end(), settings.join("\n")))
}

fn without_block(text: &str) -> String {
    let Some((before, rest)) = text.split_once(BEGIN) else { return text.to_owned() };
    let after = rest.split_once(END).map_or("", |(_, after)| after);
    let joined = format!("{}\n{}", before.trim_end(), after.trim_start_matches('\n'));
    if joined.trim().is_empty() { String::new() } else { joined }
}

fn version(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix("version"))?;
    line.trim_start().strip_prefix('=')?.trim().parse().ok()
}

fn same(one: &Path, other: &Path) -> bool {
    fs::read(one).ok().zip(fs::read(other).ok()).is_some_and(|(one, other)| one == other)
}

impl Step {
    fn describe(&self, dry_run: bool) -> String {
        let would = if dry_run { "would " } else { "" };
        match self {
            Self::Copy { from, to } => format!("{would}copy {} to {}", from.display(), to.display()),
            Self::Write { path, text } if dry_run => format!("would write {}:\n{text}", path.display()),
            Self::Write { path, .. } => format!("write {}", path.display()),
            Self::Remove { path } => format!("{would}remove {}", path.display()),
        }
    }

    fn carry_out(&self) -> Result<()> {
        let doing = || format!("cannot {}; run as root", self.describe(false));
        match self {
            Self::Copy { from, to } => {
                // Beside and renamed: a shim that runs keeps its file.
                let fresh = to.with_extension("new");
                fs::copy(from, &fresh).with_context(doing)?;
                fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).with_context(doing)?;
                fs::rename(&fresh, to).with_context(doing)
            }
            Self::Write { path, text } => {
                if let Some(dir) = path.parent() {
                    fs::create_dir_all(dir).with_context(doing)?;
                }
                let fresh = path.with_extension("endophyte-new");
                fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, path)).with_context(doing)
            }
            Self::Remove { path } => fs::remove_file(path).with_context(doing),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_comes_and_goes_and_nothing_else_changes() {
        let mine = "version = 2\n[plugins.x]\n  a = 1\n";
        let with = with_block(Some(mine), Path::new("c.toml"), false).unwrap();
        assert!(with.starts_with(mine) && with.contains("io.containerd.endophyte.v2"));
        assert_eq!(with_block(Some(&with), Path::new("c.toml"), false).unwrap(), with);
        assert_eq!(without_block(&with), mine);
        toml::from_str::<toml::Table>(&with).unwrap();
    }

    #[test]
    fn each_version_gets_its_own_words() {
        let three = with_block(Some("version = 3\n"), Path::new("c.toml"), false).unwrap();
        assert!(three.contains("io.containerd.cri.v1.runtime"));
        toml::from_str::<toml::Table>(&three).unwrap();
        let k3s = with_block(None, Path::new("config-v3.toml.tmpl"), true).unwrap();
        assert!(k3s.starts_with("{{ template \"base\" . }}") && k3s.contains("cri.v1.runtime"));
        let old = with_block(None, Path::new("config.toml.tmpl"), true).unwrap();
        assert!(old.contains("io.containerd.grpc.v1.cri"));
        let refused = with_block(Some("[plugins]\n"), Path::new("c.toml"), false).unwrap_err().to_string();
        assert!(refused.contains("containerd config migrate"), "{refused}");
    }
}
