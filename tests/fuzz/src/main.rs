//! Throws mutated bytes at every decoder. Not guided by coverage: it finds shallow faults quickly, on a stable toolchain. An
//! input that makes a decoder panic is written to `tests/fuzz/corpus/TARGET/`, and every file there is replayed first, so a
//! fixed fault stays fixed.

mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use targets::{ALL, Target};

/// Bytes of the longest input: the smallest snapshot with contents has 24 KiB.
const INPUT_MAX: usize = 32 << 10;

/// Throws mutated bytes at every decoder.
#[derive(Debug, Parser)]
struct Options {
    /// Time for each decoder; 0 only replays the corpus.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Only these decoders.
    #[arg(long)]
    target: Vec<String>,
    /// Makes a run repeatable.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    if let Some(unknown) = options.target.iter().find(|name| ALL.iter().all(|t| t.name != name.as_str())) {
        let known: Vec<_> = ALL.iter().map(|t| t.name).collect();
        bail!("there is no target {unknown}; there are {}", known.join(", "));
    }
    let wanted = |t: &&Target| options.target.is_empty() || options.target.iter().any(|name| name == t.name);
    // A panic is a finding to report, not a message to print a thousand times.
    std::panic::set_hook(Box::new(|_| {}));
    let mut clean = true;
    for target in ALL.iter().filter(wanted) {
        clean &= fuzz(target, Duration::from_secs(options.seconds), options.seed)?;
    }
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn corpus_folder(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}

fn fuzz(target: &Target, time: Duration, seed: u64) -> Result<bool> {
    let mut corpus = (target.seeds)();
    let folder = corpus_folder(target);
    if let Ok(files) = fs::read_dir(&folder) {
        for file in files {
            corpus.push(fs::read(file?.path())?);
        }
    }
    for input in &corpus {
        if !survives(target, input) {
            println!("{:<11} an input of the corpus makes it panic", target.name);
            return Ok(false);
        }
    }
    let (mut rng, begun, mut runs) = (ChaCha8Rng::seed_from_u64(seed), Instant::now(), 0u64);
    while begun.elapsed() < time {
        let input = mutate(&corpus[rng.random_range(0..corpus.len())], &mut rng);
        runs += 1;
        if !survives(target, &input) {
            fs::create_dir_all(&folder)?;
            let file = folder.join(format!("panic-{seed}-{runs}"));
            fs::write(&file, &input).with_context(|| format!("cannot keep {}", file.display()))?;
            println!("{:<11} panics on {}", target.name, file.display());
            return Ok(false);
        }
    }
    println!("{:<11} {runs} inputs, {} of the corpus, no panic", target.name, corpus.len());
    Ok(true)
}

fn survives(target: &Target, input: &[u8]) -> bool {
    catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_ok()
}

fn mutate(input: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..rng.random_range(1..8) {
        let at = rng.random_range(0..=bytes.len());
        match rng.random_range(0..5) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
            1 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][rng.random_range(0..5)],
            2 => bytes.truncate(at),
            3 => bytes.insert(at, rng.random()),
            _ => {
                let copy = bytes[at..].iter().copied().take(rng.random_range(0..64)).collect::<Vec<u8>>();
                bytes.extend(copy);
            }
        }
    }
    bytes.truncate(INPUT_MAX);
    bytes
}
