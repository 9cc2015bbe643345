//! One run: what takes part, and whose turn it is.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use bench_figures::{Machine, Measured, Report, Style};
use bench_vms::resp::Client;
use bench_vms::wire::{self, ip};
use bench_vms::{
    Begin, Colo, Endophyte, Flavour, Move, Moved, Pair, Programs, Protect, Qemu, Running, Setup, Stop, Twins,
    Vmm, Wire, programs,
};
use indicatif::{ProgressBar, ProgressStyle};
use tempfile::TempDir;

use crate::limits::RAM_MIB;
use crate::measure;
use crate::options::Options;

/// The passive's own: what it does after a takeover is nobody's business here.
const SPARE_TAP: &str = "tap1";

/// A protected guest that is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guarded<'a> {
    pub(crate) ram_mib: u32,
    /// Further words of the active's command line.
    pub(crate) options: &'a [&'a str],
    /// Of both.
    pub(crate) both: &'a [&'a str],
}

impl Guarded<'_> {
    /// As a user has it.
    pub(crate) const PLAIN: Guarded<'static> = Guarded { ram_mib: RAM_MIB, options: &[], both: &[] };
}

/// Everything a figure needs to be measured.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) options: Options,
    pub(crate) stop: Stop,
    programs: Programs,
    guest: PathBuf,
    /// Of the installed QEMU.
    qemu: Option<String>,
    work: TempDir,
    progress: ProgressBar,
}

impl Bench {
    /// Finds what is needed, and moves into a network namespace.
    pub(crate) fn prepare(options: Options) -> Result<Self> {
        options.check()?;
        if !Path::new("/dev/kvm").exists() {
            bail!("no /dev/kvm: replication is measured on a host with KVM");
        }
        let programs =
            Programs { endophyte: options.program("endophyte")?, mycelium: options.program("mycelium")? };
        let guest = options.program("native-guest")?;
        let stop = Stop::on_signals()?;
        let work = tempfile::Builder::new().prefix("replication-bench-").tempdir()?;
        let progress = ProgressBar::new_spinner();
        progress.set_style(ProgressStyle::with_template("{elapsed:>4} {msg}")?);
        wire::enter_namespace()?;
        ip("link set lo up")?;
        Ok(Self { options, stop, programs, guest, qemu: bench_vms::qemu_version(), work, progress })
    }

    /// Measures and publishes. Whether every figure was measured and every goal met.
    pub(crate) fn run(self) -> Result<bool> {
        if self.qemu.is_none() {
            self.note(&format!(
                "no {}: some figures have no peer (apt-get install qemu-system-x86)",
                bench_vms::QEMU_PROGRAM
            ));
        }
        let style = Style { json: self.options.json, plot: self.options.plot.clone() };
        let mut report = Report::begin(style, programs::run_id(), &Machine::examine(), &self.versions())?;
        let mut complete = true;
        for group in
            measure::GROUPS.iter().filter(|group| group.names.iter().any(|name| self.options.wants(name)))
        {
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

    fn publish(&self, report: &mut Report, figures: Vec<Measured>) -> Result<()> {
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

    /// Length of a turn of work.
    pub(crate) fn work_time(&self) -> Duration {
        Duration::from_secs(self.options.work_seconds())
    }

    /// Our VMM without protection.
    pub(crate) fn plain(&self) -> Endophyte {
        Endophyte { program: self.programs.endophyte.clone(), guest: self.guest.clone() }
    }

    /// QEMU, if it is installed.
    pub(crate) fn qemu(&self) -> Option<Qemu> {
        let version = self.qemu.as_ref()?;
        Some(Qemu::new(&self.guest, version, Flavour::VhostOff))
    }

    /// Runs an unprotected guest for `work`, which is given where it serves.
    pub(crate) fn unprotected<T>(
        &self,
        vmm: &dyn Vmm,
        work: impl FnOnce(SocketAddr) -> Result<T>,
    ) -> Result<T> {
        let wire = Wire::lay()?;
        let setup = Setup { ram_mib: RAM_MIB, wire: Some(&wire), ..Setup::default() };
        let mut running = Running::start(vmm, &setup, Begin::Boot, self.work.path())?;
        running.ready(&self.stop)?;
        let server = wire.server()?;
        Client::knock(server, &self.stop)?;
        let done = work(server);
        running.explain(done)
    }

    /// Has QEMU move a guest of so much memory, which `fill` has done something to.
    pub(crate) fn moved_by_qemu(
        &self,
        qemu: &Qemu,
        ram_mib: u32,
        channels: u32,
        fill: impl FnOnce(SocketAddr) -> Result<()>,
    ) -> Result<Moved> {
        let wire = Wire::lay()?;
        let _spare = SpareTap::lay()?;
        let setup = Setup { ram_mib, wire: Some(&wire), ..Setup::default() };
        let how = Move { spare_tap: SPARE_TAP, channels, work: self.work.path() };
        qemu.move_over_tls(&setup, how, &self.stop, fill)
    }

    /// Runs a guest for `work` that QEMU COLO protects, with a checkpoint so long after the last one.
    pub(crate) fn protected_by_colo<T>(
        &self,
        qemu: &Qemu,
        every: Duration,
        work: impl FnOnce(&Twins, SocketAddr) -> Result<T>,
    ) -> Result<T> {
        let wire = Wire::lay()?;
        let _spare = SpareTap::lay()?;
        let setup = Setup { ram_mib: RAM_MIB, wire: Some(&wire), ..Setup::default() };
        let how = Colo { spare_tap: SPARE_TAP, every, work: self.work.path() };
        qemu.protected_by_colo(&setup, how, &self.stop, work)
    }

    /// Runs a protected guest for `work`.
    pub(crate) fn protected<T>(
        &self,
        guarded: &Guarded<'_>,
        work: impl FnOnce(&mut Pair, SocketAddr) -> Result<T>,
    ) -> Result<T> {
        let wire = Wire::lay()?;
        let _spare = SpareTap::lay()?;
        let spec = |tap| self.spec(&wire, tap, guarded.ram_mib);
        let (active_spec, passive_spec) = (spec(wire.tap()), spec(SPARE_TAP));
        let protect = Protect {
            active_spec: &active_spec,
            passive_spec: &passive_spec,
            options: guarded.options,
            both: guarded.both,
        };
        let mut pair = Pair::start(&self.programs, &protect, self.work.path(), &self.stop)?;
        let server = wire.server()?;
        Client::knock(server, &self.stop)?;
        work(&mut pair, server)
    }

    fn spec(&self, wire: &Wire, tap: &str, ram_mib: u32) -> String {
        format!(
            "name = \"bench\"\nvcpus = 1\nram_mib = {ram_mib}\nkernel = {:?}\ncmdline = {:?}\n\n[[net]]\ntap = {tap:?}\nmac = {:?}\n",
            self.guest,
            wire.guest_words(),
            wire.mac()
        )
    }

    fn versions(&self) -> BTreeMap<String, String> {
        let ours = programs::version_of(&self.programs.endophyte);
        let qemu = self.qemu.clone().unwrap_or_else(|| "not installed".to_owned());
        BTreeMap::from([("endophyte".to_owned(), ours), ("qemu".to_owned(), qemu)])
    }
}

#[derive(Debug)]
struct SpareTap;

impl SpareTap {
    fn lay() -> Result<Self> {
        ip(&format!("tuntap add {SPARE_TAP} mode tap"))?;
        let spare = Self;
        ip(&format!("link set {SPARE_TAP} up"))?;
        Ok(spare)
    }
}

impl Drop for SpareTap {
    fn drop(&mut self) {
        let _ = ip(&format!("link del {SPARE_TAP}"));
    }
}
