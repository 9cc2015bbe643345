//! The machine's counters as Prometheus text.

use std::fmt::Write;

use endophyte_vmm::devices::block::BlockMetrics;
use endophyte_vmm::devices::net::NetMetrics;
use endophyte_vmm::machine::{Machine, MachineMetrics, Numbered};

/// All counters of `machine`.
pub(crate) fn prometheus(machine: &Machine) -> String {
    let metrics = machine.metrics();
    let mut page = Page::default();
    page.processors(&metrics);
    page.cards(&metrics);
    page.disks(&metrics);
    page.others(machine, &metrics);
    page.0
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn family(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        values: impl IntoIterator<Item = (String, u64)>,
    ) {
        let mut values = values.into_iter().peekable();
        if values.peek().is_none() {
            return;
        }
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP endophyte_{name} {help}\n# TYPE endophyte_{name} {kind}");
        for (labels, value) in values {
            let _ = writeln!(self.0, "endophyte_{name}{labels} {value}");
        }
    }

    fn processors(&mut self, metrics: &MachineMetrics) {
        let exits = metrics.vcpu_exits.iter().enumerate();
        let exits = exits.map(|(number, exits)| (format!("{{vcpu=\"{number}\"}}"), *exits));
        self.family("vcpu_exits_total", "counter", "Exits from the guest to the VMM.", exits);
        self.family(
            "pauses_total",
            "counter",
            "Times the machine was paused.",
            [(String::new(), metrics.pauses)],
        );
        let us = u64::try_from(metrics.last_pause.total().as_micros()).unwrap_or(u64::MAX);
        self.family(
            "last_pause_microseconds",
            "gauge",
            "How long stopping vCPUs and devices took last.",
            [(String::new(), us)],
        );
    }

    fn cards(&mut self, metrics: &MachineMetrics) {
        let net = &metrics.net;
        for (name, help, of) in [
            (
                "net_transmit_frames_total",
                "Frames from the guest.",
                (|n: &NetMetrics| n.tx_frames) as fn(&NetMetrics) -> u64,
            ),
            ("net_transmit_bytes_total", "Bytes from the guest.", |n| n.tx_bytes),
            (
                "net_transmit_dropped_total",
                "Frames from the guest that are none, or ask for what was not agreed on.",
                |n| n.tx_dropped,
            ),
            ("net_transmit_large_total", "Frames from the guest that were left to be cut to size.", |n| {
                n.tx_large
            }),
            ("net_transmit_lost_total", "Frames from the guest that the tap did not take.", |n| n.tx_lost),
            ("net_transmit_throttled_total", "Times the rate limit made the guest wait.", |n| n.tx_throttled),
            ("net_receive_frames_total", "Frames for the guest.", |n| n.rx_frames),
            ("net_receive_bytes_total", "Bytes for the guest.", |n| n.rx_bytes),
            ("net_receive_dropped_total", "Frames for the guest that had no place.", |n| n.rx_dropped),
            ("net_receive_large_total", "Frames for the guest that were not cut to size.", |n| n.rx_large),
            ("net_receive_throttled_total", "Times the rate limit kept frames waiting.", |n| n.rx_throttled),
            ("net_breakdowns_total", "Times the guest's driver broke the rules.", |n| n.breakdowns),
        ] {
            self.family(name, "counter", help, numbered("card", net, of));
        }
    }

    fn disks(&mut self, metrics: &MachineMetrics) {
        let disks = &metrics.disks;
        for (name, help, of) in [
            ("disk_reads_total", "Reads done.", (|d: &BlockMetrics| d.reads) as fn(&BlockMetrics) -> u64),
            ("disk_read_bytes_total", "Bytes read.", |d| d.read_bytes),
            ("disk_writes_total", "Writes done.", |d| d.writes),
            ("disk_written_bytes_total", "Bytes written.", |d| d.written_bytes),
            ("disk_flushes_total", "Flushes done.", |d| d.flushes),
            ("disk_discards_total", "Discards and requests to write zeroes done.", |d| d.discards),
            ("disk_failed_total", "Requests refused.", |d| d.failed),
            ("disk_throttled_total", "Times the rate limit made the guest wait.", |d| d.throttled),
            ("disk_breakdowns_total", "Times the guest's driver broke the rules.", |d| d.breakdowns),
        ] {
            self.family(name, "counter", help, numbered("disk", disks, of));
        }
    }

    fn others(&mut self, machine: &Machine, metrics: &MachineMetrics) {
        let one = |value: Option<u64>| value.map(|value| (String::new(), value));
        let balloon = machine.balloon();
        let target = one(balloon.as_ref().map(|balloon| balloon.target_pages * 4096));
        self.family("balloon_target_bytes", "gauge", "Memory the guest is asked to give.", target);
        let actual = one(balloon.as_ref().map(|balloon| balloon.actual_pages * 4096));
        self.family("balloon_actual_bytes", "gauge", "Memory the guest has given.", actual);
        let sent = one(metrics.vsock.map(|vsock| vsock.tx_bytes));
        self.family("vsock_transmit_bytes_total", "counter", "Bytes from guest programs.", sent);
        let progress = machine.restore_progress();
        let missing = one(progress.map(|p| (p.total_pages - p.present_pages) * 4096));
        self.family("restore_missing_bytes", "gauge", "Memory that is still in the snapshot.", missing);
    }
}

fn numbered<'a, T>(
    label: &'a str,
    items: &'a [Numbered<T>],
    of: impl Fn(&T) -> u64 + 'a,
) -> impl Iterator<Item = (String, u64)> + 'a {
    items.iter().map(move |item| (format!("{{{label}=\"{}\"}}", item.number), of(&item.of)))
}
