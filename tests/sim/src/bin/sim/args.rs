//! The command line.

use clap::Parser;
use mycelium_sim::hunt::{Fault, faults_named};
use mycelium_sim::scenario::Class;

/// Runs the failover protocol in a simulated world and judges it from outside.
#[derive(Debug, Parser)]
#[command(name = "sim", version)]
pub(crate) struct Args {
    /// Seeds to run.
    #[arg(long, default_value_t = 2000)]
    pub(crate) seeds: u64,
    /// First seed.
    #[arg(long, default_value_t = 0)]
    pub(crate) from: u64,
    /// Run this seed alone and print the end of its trace.
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// With `--seed`: print the whole trace.
    #[arg(long, requires = "seed")]
    pub(crate) trace: bool,
    /// Only seeds of this class of runs.
    #[arg(long, value_parser = class)]
    pub(crate) class: Option<Class>,
    /// Switch a deliberate fault on, or each in turn (`all`): the run succeeds when every fault is noticed.
    #[arg(long, value_parser = faults)]
    pub(crate) sabotage: Option<Faults>,
    /// One JSON object per line instead of tables.
    #[arg(long)]
    pub(crate) json: bool,
    /// Threads; as many as the machine has cores when not given.
    #[arg(long)]
    pub(crate) threads: Option<usize>,
}

/// Which deliberate faults to switch on, one after the other.
#[derive(Clone, Debug)]
pub(crate) struct Faults(pub(crate) Vec<Fault>);

impl Args {
    pub(crate) fn picked(&self) -> impl Iterator<Item = u64> + Send + use<> {
        let class = self.class;
        (self.from..self.from + self.seeds).filter(move |s| class.is_none_or(|c| Class::of(*s) == c))
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into))
    }
}

fn class(name: &str) -> Result<Class, String> {
    Class::ALL.iter().copied().find(|c| c.name() == name).ok_or_else(|| {
        let known: Vec<_> = Class::ALL.iter().map(|c| c.name()).collect();
        format!("there are {}", known.join(", "))
    })
}

fn faults(name: &str) -> Result<Faults, String> {
    faults_named(name).map(Faults)
}
