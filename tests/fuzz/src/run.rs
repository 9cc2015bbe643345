//! The search: one libFuzzer process per target, with limits of time and memory for each input.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::ProgressBar;

use crate::cli::Choice;
use crate::corpus::Folders;
use crate::limits::{INPUT_SECONDS, PROCESS_MIB, REPLAY_PATIENCE};
use crate::replay::remember;
use crate::report::{Figures, Finding, Report, heading};
use crate::targets::Target;
use crate::watch::{Ended, watch};

/// Names the target to the process that libFuzzer drives.
pub(crate) const TARGET_VARIABLE: &str = "MYCELIUM_FUZZ_TARGET";

/// The signal of a bad address; without unsafe code, one beyond the stack.
const SIGSEGV: i32 = 11;

/// Names the file where that process leaves the input it tries.
pub(crate) const CURRENT_VARIABLE: &str = "MYCELIUM_FUZZ_CURRENT";

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    choice: Choice,
    /// Time for each decoder.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// One JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
    /// Where to keep what is found from run to run.
    #[arg(long)]
    work: PathBuf,
}

/// Searches; true if nothing fails.
pub(crate) fn run(args: &RunArgs) -> Result<bool> {
    let (mut clean, targets) = (true, args.choice.targets()?);
    if !args.json {
        println!("{}", heading());
    }
    for target in targets {
        let report = search(target, args)?;
        clean &= report.finding.is_none();
        println!("{}", if args.json { report.json() } else { report.line() });
    }
    Ok(clean)
}

fn search(target: &'static Target, args: &RunArgs) -> Result<Report> {
    let mut report =
        Report { target: target.name, skipped: None, figures: Figures::default(), finding: None };
    if target.cannot_run() {
        report.skipped = Some("it needs /dev/kvm");
        return Ok(report);
    }
    let folders = Folders::new(target, &args.work)?;
    let (begun, whole) = (Instant::now(), Duration::from_secs(args.seconds.max(1)));
    loop {
        let left = whole.saturating_sub(begun.elapsed()).max(Duration::from_secs(1));
        let end = session(target, &folders, left, &mut report.figures)?;
        let Some(Words { input: Some(path), reason, late }) = end else { break };
        // The clock runs on while the machine does other things: only what is slow again is slow.
        if late && !is_late(target, &path)? {
            fs::remove_file(&path)?;
            if begun.elapsed() < whole {
                continue;
            }
            break;
        }
        let replay = format!("cargo xtask fuzz --replay {}", path.display());
        report.finding = Some(Finding { path, reason, replay });
        break;
    }
    Ok(report)
}

/// What a process that failed said.
#[derive(Debug, Default)]
struct Words {
    input: Option<PathBuf>,
    reason: String,
    /// It failed by time.
    late: bool,
}

/// One process, until it has searched for `time` or failed; `None` if it did not fail.
fn session(
    target: &Target,
    folders: &Folders,
    time: Duration,
    figures: &mut Figures,
) -> Result<Option<Words>> {
    let mut log =
        File::create(&folders.log).with_context(|| format!("cannot write {}", folders.log.display()))?;
    let bar = ProgressBar::new_spinner().with_prefix(target.name);
    bar.enable_steady_tick(Duration::from_millis(200));
    let mut said = VecDeque::new();
    let mut command = libfuzzer(target)?;
    command.env(CURRENT_VARIABLE, &folders.current).args(search_options(folders, time));
    let patience = time + REPLAY_PATIENCE;
    let ended = watch(&mut command, patience, |line| {
        let _ = writeln!(log, "{line}");
        figures.hear(line);
        if !line.starts_with('#') && !line.starts_with("INFO:") {
            remember(&mut said, line);
        }
        let Figures { runs, counters, .. } = *figures;
        bar.set_message(format!("{}: {runs} runs, {counters} counters", target.name));
    })?;
    bar.finish_and_clear();
    if ended.status.success() && !ended.hung {
        return Ok(None);
    }
    let text = fs::read_to_string(&folders.log).unwrap_or_default();
    let mut words = words(&text);
    if words.input.is_none() {
        let Some(input) = current(folders) else {
            let said = Vec::from(said).join("\n    ");
            bail!("{}: no search ({}); see {}\n    {said}", target.name, ended.status, folders.log.display());
        };
        words = Words { input: Some(keep(folders, &input)?), reason: end_of(ended), late: false };
    }
    Ok(Some(words))
}

/// The input that was tried last.
fn current(folders: &Folders) -> Option<Vec<u8>> {
    let noted = fs::read(&folders.current).ok()?;
    let (length, rest) = noted.split_first_chunk()?;
    rest.get(..usize::try_from(u64::from_le_bytes(*length)).ok()?).map(<[u8]>::to_vec)
}

fn keep(folders: &Folders, input: &[u8]) -> Result<PathBuf> {
    let path = folders.committed.join(format!("death-{:016x}", xxhash_rust::xxh3::xxh3_64(input)));
    fs::write(&path, input).with_context(|| format!("cannot keep {}", path.display()))?;
    Ok(path)
}

/// What a process died of that said nothing itself.
fn end_of(ended: Ended) -> String {
    match ended.status.signal() {
        _ if ended.hung => "it hangs".to_owned(),
        Some(SIGSEGV) => "its stack overflows (signal 11)".to_owned(),
        _ => ended.status.to_string(),
    }
}

/// This program as libFuzzer's on `target`.
pub(crate) fn libfuzzer(target: &Target) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env(TARGET_VARIABLE, target.name);
    let limits = [
        format!("-max_len={}", target.bytes_max),
        format!("-timeout={INPUT_SECONDS}"),
        format!("-rss_limit_mb={PROCESS_MIB}"),
    ];
    // Slow inputs are told by the time limit; what is below it is no finding.
    command.args(limits).args(["-detect_leaks=0", "-report_slow_units=86400"]);
    Ok(command)
}

fn search_options(folders: &Folders, time: Duration) -> Vec<String> {
    let mut options = vec![
        format!("-max_total_time={}", time.as_secs().max(1)),
        format!("-artifact_prefix={}/", folders.committed.display()),
        "-print_final_stats=1".to_owned(),
    ];
    options.extend(folders.dictionary.iter().map(|file| format!("-dict={}", file.display())));
    options.extend(
        [&folders.found, &folders.committed, &folders.seeds].map(|folder| folder.display().to_string()),
    );
    options
}

/// Whether an input alone takes too long as well.
fn is_late(target: &Target, input: &Path) -> Result<bool> {
    let mut command = libfuzzer(target)?;
    Ok(!watch(command.arg(input), REPLAY_PATIENCE, |_| {})?.status.success())
}

/// The input and the reason in what a failed process said.
fn words(text: &str) -> Words {
    let mut words = Words::default();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some((_, path)) = line.split_once("Test unit written to ") {
            words.input = Some(PathBuf::from(path));
        } else if line.contains("panicked at ") {
            let place = line.split("panicked at ").nth(1).unwrap_or("").trim_end_matches(':');
            words.reason = format!("panic at {place}: {}", lines.next().unwrap_or(""));
        } else if line.starts_with("memory allocation of ") {
            words.reason = line.to_owned();
        } else if let Some((_, error)) = line.split_once("ERROR: libFuzzer: ") {
            words.late = error.starts_with("timeout");
            if words.reason.is_empty() {
                words.reason = error.to_owned();
            }
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_panic_is_its_message() {
        let said = "thread '<unnamed>' (1) panicked at src/a.rs:7:1:\nindex out of bounds\nstack backtrace:\n\
            ==1== ERROR: libFuzzer: deadly signal\nartifact_prefix='x/'; Test unit written to x/crash-ab\n";
        let words = words(said);
        assert_eq!(words.input, Some(PathBuf::from("x/crash-ab")));
        assert_eq!(words.reason, "panic at src/a.rs:7:1: index out of bounds");
        assert!(!words.late);
    }

    #[test]
    fn too_much_time_and_memory_are_told_apart() {
        let late =
            words("==1== ERROR: libFuzzer: timeout after 6 seconds\nTest unit written to x/timeout-a\n");
        assert!(late.late && late.input.is_some());
        let large = words("memory allocation of 99 bytes failed\n==1== ERROR: libFuzzer: deadly signal\n");
        assert_eq!((large.late, large.reason.as_str()), (false, "memory allocation of 99 bytes failed"));
    }
}
