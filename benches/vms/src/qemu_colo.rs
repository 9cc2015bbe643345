//! QEMU COLO: the same guest runs on two QEMUs of this host, and the second one's is made like the first one's at every checkpoint.
//!
//! Without the filters that compare what both say: output leaves the first one at once, and only time ends an epoch. That is the
//! least COLO can cost. (With them, each difference would end an epoch, too.)

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::limits::PATIENCE;
use crate::qemu::Qemu;
use crate::qemu_move::connect;
use crate::qmp::NO_LIMIT;
use crate::resp::Client;
use crate::{Begin, Prepared, Running, Setup, Stop, Vmm};

/// Where the second one waits.
const PORT: u16 = 7791;
/// What the first one writes on its standard error at the beginning of each checkpoint.
const CHECKPOINT: &str = "checkpoint-request";

/// How it is to be protected.
#[derive(Clone, Copy, Debug)]
pub struct Colo<'a> {
    /// A tap for the second one's card.
    pub spare_tap: &'a str,
    /// From the end of a checkpoint to the next one.
    pub every: Duration,
    /// Below which folders are made.
    pub work: &'a Path,
}

/// A guest that runs on both.
#[derive(Debug)]
pub struct Twins {
    first: Running,
    second: Running,
}

impl Twins {
    /// Checkpoints so far.
    pub fn checkpoints(&self) -> Result<usize> {
        let said = fs::read_to_string(self.first.folder().join("stderr"))?;
        Ok(count_checkpoints(&said))
    }
}

fn count_checkpoints(said: &str) -> usize {
    said.lines().filter(|line| line.contains("colo_send_message") && line.contains(CHECKPOINT)).count()
}

#[derive(Debug)]
struct Side<'a> {
    qemu: &'a Qemu,
    /// The second one's tap.
    spare_tap: Option<&'a str>,
}

impl Vmm for Side<'_> {
    fn name(&self) -> &str {
        self.qemu.name()
    }

    fn ram_memfd(&self) -> &'static str {
        self.qemu.ram_memfd()
    }

    fn prepare(&self, setup: &Setup<'_>, begin: Begin<'_>, folder: &Path) -> Result<Prepared> {
        let mut prepared = self.qemu.prepare_on(setup, begin, folder, self.spare_tap)?;
        match self.spare_tap {
            Some(_) => prepared.command.args(["-incoming", "defer"]),
            None => prepared.command.args(["-trace", "enable=colo_send_message"]),
        };
        Ok(prepared)
    }

    fn save(&self, _: Running, _: &Path, _: &Stop) -> Result<()> {
        bail!("it is protected, not saved")
    }
}

impl Qemu {
    /// Boots a guest, protects it, and gives it to `work`.
    pub fn protected_by_colo<T>(
        &self,
        setup: &Setup<'_>,
        how: Colo<'_>,
        stop: &Stop,
        work: impl FnOnce(&Twins, SocketAddr) -> Result<T>,
    ) -> Result<T> {
        let setup = Setup { saves_to: Some(how.work), ..setup.clone() };
        let mut first = Running::start(&Side { qemu: self, spare_tap: None }, &setup, Begin::Boot, how.work)?;
        first.ready(stop)?;
        let server = setup.wire.context("the guest has no network")?.server()?;
        Client::knock(server, stop)?;
        let side = Side { qemu: self, spare_tap: Some(how.spare_tap) };
        let second = Running::start(&side, &setup, Begin::Boot, how.work)?;
        let twins = Twins { first, second };
        let done = twins.begin(how.every, stop).and_then(|()| work(&twins, server));
        twins.first.explain(twins.second.explain(done))
    }
}

impl Twins {
    fn begin(&self, every: Duration, stop: &Stop) -> Result<()> {
        let [mut first, mut second] = [connect(&self.first, stop)?, connect(&self.second, stop)?];
        for qmp in [&mut first, &mut second] {
            let colo = json!([{ "capability": "x-colo", "state": true }]);
            qmp.order("migrate-set-capabilities", &json!({ "capabilities": colo }))?;
            let every = u64::try_from(every.as_millis())?;
            let parameters = json!({ "x-checkpoint-delay": every, "max-bandwidth": NO_LIMIT });
            qmp.order("migrate-set-parameters", &parameters)?;
        }
        let uri = json!({ "uri": format!("tcp:127.0.0.1:{PORT}") });
        second.order("migrate-incoming", &uri)?;
        first.order("migrate", &uri)?;
        let deadline = Instant::now() + PATIENCE;
        while self.checkpoints()? < 2 {
            match first.order("query-migrate", &json!({}))?["status"].as_str() {
                Some(failed @ ("failed" | "cancelled" | "completed")) => bail!("QEMU COLO has {failed}"),
                _ if Instant::now() > deadline => bail!("no checkpoint within {} s", PATIENCE.as_secs()),
                _ => stop.pause(Duration::from_millis(20))?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_are_told_from_other_messages() {
        let said = "1@1.5:colo_send_message Send 'checkpoint-request' message\n\
                    1@1.6:colo_send_message Send 'vmstate-send' message\n\
                    1@1.7:colo_receive_message Receive 'checkpoint-request' message\n";
        assert_eq!(count_checkpoints(said), 1);
    }
}
