//! Whether the lab gives on this machine what tests build on.

use std::time::{Duration, Instant};

use mycelium_lab::{LabError, LabHost, LabNet, Netem, Wire};

const PING_TIMEOUT: Duration = Duration::from_secs(5);
const SHAPE: Netem = Netem { delay_us: 50_000, jitter_us: 0, loss_ppm: 0 };

/// Runs every check on every host; fails after the last one if any did.
pub(crate) fn check(lab_net: &LabNet, hosts: &[LabHost]) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut failed = 0;
    for (index, host) in hosts.iter().enumerate() {
        failed += tell(host, "KVM creates a VM", kvm(host));
        for (other, _) in hosts.iter().enumerate().filter(|(other, _)| *other != index) {
            for wire in lab_net.wires().filter(|wire| *wire != Wire::Client) {
                let what = format!("reaches h{other} by {}", wire.nic_name());
                failed += tell(host, &what, ping(host, lab_net, other, wire));
            }
        }
        failed += tell(host, "netem delays frames", netem(lab_net, hosts, index));
    }
    println!("checked in {:.1} s", begun.elapsed().as_secs_f64());
    anyhow::ensure!(failed == 0, "{failed} check(s) failed");
    Ok(())
}

fn tell(host: &LabHost, what: &str, outcome: Result<String, LabError>) -> usize {
    match &outcome {
        Ok(detail) => println!("ok    {}: {what}: {detail}", host.name()),
        Err(error) => println!("FAIL  {}: {what}: {error}", host.name()),
    }
    usize::from(outcome.is_err())
}

fn kvm(host: &LabHost) -> Result<String, LabError> {
    let report = host.probe_kvm()?;
    Ok(format!("API {}, dirty ring up to {} bytes", report.api_version, report.dirty_ring_bytes))
}

fn ping(host: &LabHost, lab_net: &LabNet, other: usize, wire: Wire) -> Result<String, LabError> {
    let rtt = host.ping(lab_net.host_address(other, wire), PING_TIMEOUT)?;
    Ok(format!("{} us", rtt.as_micros()))
}

/// Shapes the first path, or a lone host's management NIC, and takes it off again.
fn netem(lab_net: &LabNet, hosts: &[LabHost], index: usize) -> Result<String, LabError> {
    let host = &hosts[index];
    let wire = lab_net.wires().last().unwrap_or(Wire::Management);
    host.set_netem(&wire.nic_name(), SHAPE)?;
    let delayed = match hosts.len() {
        1 => Ok("accepted".to_owned()),
        count => ping(host, lab_net, (index + 1) % count, wire),
    };
    host.set_netem(&wire.nic_name(), Netem::default())?;
    delayed.map(|rtt| format!("{rtt} with {} us asked for", SHAPE.delay_us))
}
