//! One run: who takes part, in what order they have their turns, and what is made of figures that cannot be measured.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bench_figures::{Machine, Report, Style};
use bench_vms::{Begin, Endophyte, Flavour, Qemu, Running, Setup, Stop, Vmm, programs, wire};
use indicatif::{ProgressBar, ProgressStyle};
use tempfile::TempDir;

use crate::measure;
use crate::options::Options;

/// Everything a figure needs to be measured.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) options: Options,
    pub(crate) stop: Stop,
    guest: PathBuf,
    endophyte: Endophyte,
    /// Of the installed QEMU.
    qemu: Option<String>,
    work: TempDir,
    progress: ProgressBar,
}

impl Bench {
    /// Finds what is needed, and moves into a network namespace where guests with a card will be.
    pub(crate) fn prepare(options: Options) -> Result<Self> {
        options.check()?;
        if !Path::new("/dev/kvm").exists() {
            bail!("no /dev/kvm: VMMs are measured on a host with KVM");
        }
        let (program, guest) = (options.program("endophyte")?, options.program("native-guest")?);
        let stop = Stop::on_signals()?;
        let folder = options.work.clone().unwrap_or_else(std::env::temp_dir);
        let made = tempfile::Builder::new().prefix("vmm-bench-").tempdir_in(&folder);
        let work = made.with_context(|| format!("cannot make a folder in {}", folder.display()))?;
        let endophyte = Endophyte { program, guest: guest.clone() };
        let progress = ProgressBar::new_spinner();
        progress.set_style(ProgressStyle::with_template("{elapsed:>4} {msg}")?);
        wire::enter_namespace()?;
        Ok(Self { options, stop, guest, endophyte, qemu: bench_vms::qemu_version(), work, progress })
    }

    /// Measures and publishes. Whether every figure was measured and every goal met.
    pub(crate) fn run(self) -> Result<bool> {
        if self.qemu.is_none() {
            eprintln!(
                "no {}: figures have no peer (apt-get install qemu-system-x86)",
                bench_vms::QEMU_PROGRAM
            );
        }
        let style = Style { json: self.options.json, plot: self.options.plot.clone() };
        let mut report = Report::begin(style, programs::run_id(), &Machine::examine(), &self.versions())?;
        let mut complete = true;
        for group in measure::GROUPS {
            if !group.names.iter().any(|name| self.options.wants(name)) {
                continue;
            }
            match (group.measure)(&self) {
                Ok(figures) => self.publish(&mut report, figures)?,
                Err(_) if self.stop.wanted() => bail!("interrupted"),
                Err(error) => {
                    complete = false;
                    self.note(&format!("{} cannot be measured: {error:#}", group.names[0]));
                }
            }
        }
        self.progress.finish_and_clear();
        Ok(report.end()? && complete)
    }

    fn publish(&self, report: &mut Report, figures: Vec<bench_figures::Measured>) -> Result<()> {
        for figure in figures.into_iter().filter(|figure| self.options.wants(&figure.name)) {
            self.progress.suspend(|| report.tell(figure))?;
        }
        Ok(())
    }

    /// Says something beside the figures.
    pub(crate) fn note(&self, line: &str) {
        self.progress.suspend(|| eprintln!("{line}"));
    }

    /// Shows what is going on, on a terminal.
    pub(crate) fn show(&self, what: &str) {
        self.progress.set_message(what.to_owned());
        self.progress.tick();
    }

    /// Our VMM and then QEMU in those of the flavours that this host can have.
    pub(crate) fn contenders(&self, flavours: &[Flavour]) -> Vec<Box<dyn Vmm>> {
        let mut vmms: Vec<Box<dyn Vmm>> = vec![Box::new(self.endophyte.clone())];
        if let Some(version) = &self.qemu {
            let possible = flavours.iter().filter(|flavour| flavour.possible());
            let qemu =
                |flavour: &Flavour| Box::new(Qemu::new(&self.guest, version, *flavour)) as Box<dyn Vmm>;
            vmms.extend(possible.map(qemu));
        }
        vmms
    }

    /// Names of the flavours that cannot be measured here.
    pub(crate) fn absent(&self, flavours: &[Flavour]) -> Vec<String> {
        let absent = flavours.iter().filter(|flavour| self.qemu.is_none() || !flavour.possible());
        absent
            .map(|flavour| bench_vms::qemu_name(self.qemu.as_deref().unwrap_or_default(), *flavour))
            .collect()
    }

    /// Gives every VMM its turn, round after round, so that what changes with time hits all of them. Returns what the turns
    /// gave, per VMM.
    pub(crate) fn in_turn<T>(
        &self,
        figure: &str,
        vmms: &[Box<dyn Vmm>],
        mut turn: impl FnMut(&dyn Vmm) -> Result<T>,
    ) -> Result<Vec<Vec<T>>> {
        let rounds = self.options.rounds();
        let mut results: Vec<Vec<T>> = vmms.iter().map(|_| Vec::new()).collect();
        for round in 1..=rounds {
            for (vmm, results) in vmms.iter().zip(&mut results) {
                self.stop.check()?;
                self.show(&format!("{figure}: round {round} of {rounds}, {}", vmm.name()));
                results.push(turn(vmm.as_ref()).with_context(|| vmm.name().to_owned())?);
            }
        }
        Ok(results)
    }

    /// Starts a guest.
    pub(crate) fn start(&self, vmm: &dyn Vmm, setup: &Setup<'_>, begin: Begin<'_>) -> Result<Running> {
        Running::start(vmm, setup, begin, self.work.path())
    }

    /// Where files of this run go.
    pub(crate) fn work(&self) -> &Path {
        self.work.path()
    }

    fn versions(&self) -> BTreeMap<String, String> {
        let ours = programs::version_of(&self.endophyte.program);
        let qemu = self.qemu.clone().unwrap_or_else(|| "not installed".to_owned());
        BTreeMap::from([("endophyte".to_owned(), ours), ("qemu".to_owned(), qemu)])
    }
}
