//! What arrives at the destination, and how a guest is made of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use endophyte_migration::batch;
use endophyte_migration::destination::Event;
use endophyte_migration::limits::FAULT_THREADS;
use endophyte_migration::message::{Mode, Pages};
use endophyte_vmm::machine::RestoreOptions;
use mycelium_ram_core::PageIndex;

use super::copy::digest_of;
use super::destination::Arrival;
use super::remote::RemotePages;
use super::words::micros;

impl Arrival {
    /// Pages of a guest that does not run yet.
    pub(super) fn store(&mut self, pages: &Pages) -> Result<(), String> {
        self.messages += 1;
        let ram = self.host.machine.ram().clone();
        let (digest, written) = (&mut self.digest, &mut self.written);
        let read = batch::read(&pages.batch, ram.page_count(), |page, content| {
            digest.set(page, content);
            match content {
                Some(content) => {
                    written.insert(page);
                    ram.write_page(page, content).expect("the batch was checked");
                }
                // What was never written is zero and stays without memory.
                None if written.contains(page) => {
                    ram.write_page(page, &[0; 4096]).expect("the batch was checked");
                }
                None => {}
            }
        });
        read.map_err(|error| error.to_string())
    }

    /// Pages of a guest that runs.
    pub(super) fn supply(&mut self, pages: &Pages) -> Result<(), String> {
        let machine = &self.host.machine;
        let mut failed = None;
        let read = batch::read(&pages.batch, machine.ram().page_count(), |page: PageIndex, content| {
            if let Err(error) = machine.supply(page, content) {
                failed = Some(error.to_string());
            }
        });
        read.map_err(|error| error.to_string())?;
        failed.map_or(Ok(()), Err)
    }

    pub(super) fn restore(&mut self) -> Result<(), String> {
        let (switch, received) = self.switch.take().ok_or("nothing to restore")?;
        let here = if switch.verified { digest_of(self.host.machine.ram()) } else { self.digest.sum() };
        if here != switch.digest {
            return Err(format!("memory arrived damaged: digest {here:016x}, sent {:016x}", switch.digest));
        }
        if switch.mode == Mode::PostCopy {
            self.receive_lazily()?;
        }
        let elapsed = Duration::from_nanos(switch.elapsed_ns) + received.elapsed();
        let restored = self.host.machine.restore_state(&switch.state, RestoreOptions { elapsed });
        restored.map_err(|error| error.to_string())?;
        self.host.desk.tape.begin_at(switch.console_bytes);
        self.host.desk.board.send_modify(|s| s.held = switch.held);
        Ok(())
    }

    fn receive_lazily(&mut self) -> Result<(), String> {
        let userfault = self.userfault.take().ok_or("there is no userfaultfd")?;
        let source = RemotePages {
            missing: self.missing.clone(),
            wants: self.peer.wants.clone(),
            sender: self.peer.sender.clone(),
            runtime: self.peer.runtime.clone(),
        };
        let machine = &self.host.machine;
        let begun = machine.receive_lazily(Arc::new(source), &self.missing, userfault, FAULT_THREADS);
        begun.map_err(|error| error.to_string())
    }

    /// The guest is ours.
    pub(super) fn run(&mut self) -> Event {
        let failed = |error: &dyn std::fmt::Display| Event::Failed(error.to_string());
        let machine = &self.host.machine;
        let begun = Instant::now();
        if let Err(error) = machine.take_disks() {
            return failed(&error);
        }
        self.took.disks_us = micros(begun.elapsed());
        let begun = Instant::now();
        machine.set_rx_enabled(true);
        if !self.host.desk.board.borrow().held
            && let Err(error) = machine.resume()
        {
            return failed(&error);
        }
        self.took.resume_us = micros(begun.elapsed());
        Event::Ran
    }

    pub(super) fn announce(&self) {
        self.host.machine.announce();
        if let Err(error) = self.host.announcer.start() {
            tracing::warn!(%error, "switches learn the guest's new place only from what it sends");
        }
    }
}
