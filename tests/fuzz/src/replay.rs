//! Replaying inputs: every target in a process of its own, since a stack overflow or an abort cannot be caught.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cli::{Choice, named};
use crate::limits::{REPLAY_PATIENCE, WORDS_LINES};
use crate::targets::Target;
use crate::watch::watch;
use crate::{corpus, memory};

/// How the process says which input it begins with.
const BEGINS: &str = "input: ";

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    #[command(flatten)]
    choice: Choice,
    /// Inputs to replay instead; each lies in a folder named after its target.
    files: Vec<PathBuf>,
}

/// Replays; true if no input fails.
pub(crate) fn replay(args: &ReplayArgs) -> Result<bool> {
    let plan: Vec<(&Target, &[PathBuf])> = if args.files.is_empty() {
        args.choice.targets()?.into_iter().map(|target| (target, &[][..])).collect()
    } else {
        args.files
            .iter()
            .map(|file| Ok((of_file(file)?, std::slice::from_ref(file))))
            .collect::<Result<_>>()?
    };
    let (mut inputs, mut failed) = (0, 0);
    for (target, files) in &plan {
        if target.cannot_run() {
            eprintln!("SKIPPED {}: it needs /dev/kvm", target.name);
            continue;
        }
        match replay_apart(target, files)? {
            Ok(count) => inputs += count,
            Err(story) => {
                failed += 1;
                eprintln!("{story}");
            }
        }
    }
    eprintln!("replayed {inputs} inputs of {} targets, {failed} failed", plan.len());
    Ok(failed == 0)
}

/// The target in whose folder a file lies.
fn of_file(file: &Path) -> Result<&'static Target> {
    let folder = fs::canonicalize(file).with_context(|| format!("cannot read {}", file.display()))?;
    let name = folder.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    named(name.context("its folder has no name")?)
}

/// In a process of its own: the number of inputs, or the story of the one that failed.
fn replay_apart(target: &Target, files: &[PathBuf]) -> Result<Result<usize, String>> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["inputs", target.name]).args(files);
    let (mut count, mut last, mut words) = (0, "none".to_owned(), VecDeque::new());
    let ended = watch(&mut command, REPLAY_PATIENCE, |line| match line.strip_prefix(BEGINS) {
        Some(input) => {
            (count, last) = (count + 1, input.to_owned());
            words.clear();
        }
        None => remember(&mut words, line),
    })?;
    if ended.status.success() && !ended.hung {
        return Ok(Ok(count));
    }
    let how = if ended.hung { "hangs on".to_owned() } else { format!("fails ({}) on", ended.status) };
    let words = Vec::from(words).join("\n    ");
    Ok(Err(format!("{}: {how} {last}\n    {words}", target.name)))
}

/// Keeps the first of a process's words: there is the reason, then comes its backtrace.
pub(crate) fn remember(words: &mut VecDeque<String>, line: &str) {
    if words.len() < WORDS_LINES {
        words.push_back(line.to_owned());
    }
}

/// Replays in this process, saying each input before it is tried.
pub(crate) fn inputs(target: &Target, files: &[PathBuf]) -> Result<()> {
    if files.is_empty() {
        for (number, seed) in (target.seeds)().iter().enumerate() {
            try_out(target, &format!("seed {number}"), seed);
        }
    }
    let files = if files.is_empty() { corpus::files(&corpus::committed(target))? } else { files.to_vec() };
    for file in files {
        let Ok(input) = fs::read(&file) else { bail!("cannot read {}", file.display()) };
        try_out(target, &file.display().to_string(), &input);
    }
    Ok(())
}

fn try_out(target: &Target, label: &str, input: &[u8]) {
    eprintln!("{BEGINS}{label}");
    memory::bounded(|| (target.run)(input));
}
