//! QEMU moving a guest to another QEMU of this host, as fast as it can with encryption: several channels (`multifd`), TLS with
//! AES-128-GCM, the destination's memory already there.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::limits::PATIENCE;
use crate::process;
use crate::qemu::{QMP, Qemu};
use crate::qmp::{NO_LIMIT, Qmp};
use crate::resp::Client;
use crate::{Begin, Prepared, Running, Setup, Stop, Vmm};

/// Where the destination waits.
const PORT: u16 = 7790;
/// What QEMU leaves of GnuTLS' defaults; with them it would choose a cipher ten times slower.
const PRIORITY: &str = "NORMAL:-CIPHER-ALL:+AES-128-GCM";
/// A key for nobody else: both ends are on this host, and gone in a minute.
const PSK: &str = "bench:9f1c8e5d2b7a4630a1d4e6f8091b2c3d";

/// How it is to be moved.
#[derive(Clone, Copy, Debug)]
pub struct Move<'a> {
    /// A tap for the destination's card.
    pub spare_tap: &'a str,
    /// Connections at once.
    pub channels: u32,
    /// Below which folders are made.
    pub work: &'a Path,
}

/// What it took.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    /// From the order to its end.
    pub seconds: f64,
    /// Processor time of both processes meanwhile, seconds.
    pub cpu_seconds: f64,
}

/// One end.
#[derive(Debug)]
struct End<'a> {
    qemu: &'a Qemu,
    keys: PathBuf,
    /// The destination's tap.
    spare_tap: Option<&'a str>,
}

impl Vmm for End<'_> {
    fn name(&self) -> &str {
        self.qemu.name()
    }

    fn ram_memfd(&self) -> &'static str {
        self.qemu.ram_memfd()
    }

    fn prepare(&self, setup: &Setup<'_>, begin: Begin<'_>, folder: &Path) -> Result<Prepared> {
        let mut prepared = self.qemu.prepare_on(setup, begin, folder, self.spare_tap)?;
        let side = if self.spare_tap.is_some() { "server" } else { "client,username=bench" };
        let keys = self.keys.display();
        prepared
            .command
            .arg("-object")
            .arg(format!("tls-creds-psk,id=tls,dir={keys},endpoint={side},priority={PRIORITY}"));
        if self.spare_tap.is_some() {
            prepared.command.args(["-incoming", "defer"]);
        }
        Ok(prepared)
    }

    fn save(&self, _: Running, _: &Path, _: &Stop) -> Result<()> {
        bail!("it is moved, not saved")
    }
}

impl Qemu {
    /// Boots a guest, has `fill` do something to its memory, and moves it.
    pub fn move_over_tls(
        &self,
        setup: &Setup<'_>,
        how: Move<'_>,
        stop: &Stop,
        fill: impl FnOnce(SocketAddr) -> Result<()>,
    ) -> Result<Moved> {
        let keys = tempfile::tempdir_in(how.work)?;
        fs::write(keys.path().join("keys.psk"), format!("{PSK}\n"))?;
        let end = |spare_tap| End { qemu: self, keys: keys.path().to_owned(), spare_tap };
        let setup = Setup { saves_to: Some(how.work), ..setup.clone() };
        let mut source = Running::start(&end(None), &setup, Begin::Boot, how.work)?;
        source.ready(stop)?;
        let server = setup.wire.context("the guest has no network")?.server()?;
        Client::knock(server, stop)?;
        fill(server)?;
        let destination = Running::start(&end(Some(how.spare_tap)), &setup, Begin::Boot, how.work)?;
        let moved = Self::carry(&source, &destination, how.channels, stop);
        source.explain(destination.explain(moved))
    }

    fn carry(source: &Running, destination: &Running, channels: u32, stop: &Stop) -> Result<Moved> {
        let [mut from, mut to] = [connect(source, stop)?, connect(destination, stop)?];
        for qmp in [&mut from, &mut to] {
            let multifd = json!([{ "capability": "multifd", "state": true }]);
            qmp.order("migrate-set-capabilities", &json!({ "capabilities": multifd }))?;
            let parameters =
                json!({ "multifd-channels": channels, "tls-creds": "tls", "max-bandwidth": NO_LIMIT });
            qmp.order("migrate-set-parameters", &parameters)?;
        }
        let uri = json!({ "uri": format!("tcp:127.0.0.1:{PORT}") });
        to.order("migrate-incoming", &uri)?;
        let cpu = || {
            let of = |running: &Running| {
                running.processes().into_iter().map(process::cpu_seconds).sum::<Result<f64>>()
            };
            Ok::<_, anyhow::Error>(of(source)? + of(destination)?)
        };
        let (before, begun) = (cpu()?, Instant::now());
        from.order("migrate", &uri)?;
        from.finish_migration(stop, Duration::from_millis(2))?;
        Ok(Moved { seconds: begun.elapsed().as_secs_f64(), cpu_seconds: cpu()? - before })
    }
}

/// As soon as it listens.
pub(crate) fn connect(running: &Running, stop: &Stop) -> Result<Qmp> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Qmp::connect(&running.folder().join(QMP)) {
            Err(_) if Instant::now() < deadline => stop.pause(Duration::from_millis(20))?,
            connected => return connected,
        }
    }
}
