//! The desk in the API's words.

use endophyte_api::{Device, Figures, Replica, Role, VmInfo};
use endophyte_vmm::machine::DeviceNow;
use rhizomorph_link::PeerKey;

use super::policy::policy;
use crate::desk::Desk;
use crate::migrate::INCOMING;
use crate::replicas::{Standing, View};
use crate::rundir::Status;

/// How the VM is now.
pub(super) fn vm_info(desk: &Desk) -> VmInfo {
    let status = desk.board.borrow().clone();
    let peering = desk.peering.as_ref();
    let replicas = peering.map(|p| p.replicas.views()).unwrap_or_default();
    let role = role(&status.role);
    // A process that has taken over, or was migrated to, listens no more.
    let listens = role == Role::Passive || role == Role::Run && status.state == INCOMING;
    let reach = desk.reach().filter(|_| listens);
    let (ram_bytes, vcpus) = desk.size().unwrap_or_default();
    let machine = desk.machine();
    let devices = machine.as_ref().map(|machine| machine.devices_now()).unwrap_or_default();
    let allowed = peering.filter(|_| listens).map(|p| p.allowed.keys()).unwrap_or_default();
    VmInfo {
        policy: policy(&status).filter(|_| role == Role::Active),
        role: role.into(),
        replicas: replicas.iter().map(|view| replica(view, &status)).collect(),
        listen: reach.iter().flat_map(|t| &t.addrs).map(ToString::to_string).collect(),
        ticket: reach.map(ToString::to_string).unwrap_or_default(),
        allowed: allowed.iter().map(PeerKey::to_string).collect(),
        pid: std::process::id(),
        console_bytes: desk.tape.span().to,
        ram_bytes,
        vcpus: vcpus.into(),
        figures: (role == Role::Active).then(|| figures(&status)),
        devices: devices.into_iter().map(device).collect(),
        device_tables: machine.map(|machine| machine.spec_now().device_tables()).unwrap_or_default(),
        name: status.vm,
        state: status.state,
        reason: status.reason,
        protected: status.protected,
        generation: status.generation,
        paused: status.held,
        incarnation: status.incarnation,
        node: status.node,
        listed: status.listed,
        staged_epoch: status.staged_epoch,
        last_trouble: status.last_trouble.unwrap_or_default(),
    }
}

fn device(now: DeviceNow) -> Device {
    let kind = if now.is_disk { "disk" } else { "net" };
    Device { kind: kind.to_owned(), name: now.name, slot: now.slot.into(), removable: now.removable }
}

fn role(word: &str) -> Role {
    match word {
        "run" => Role::Run,
        "active" => Role::Active,
        "passive" => Role::Passive,
        _ => Role::Unspecified,
    }
}

fn replica(view: &View, status: &Status) -> Replica {
    let state = match view.standing {
        Standing::Remembered => "remembered",
        Standing::Dialing => "dialing",
        Standing::Refused => "refused",
        Standing::Joined(member) if status.in_sync.contains(&member.to_string()) => "in sync",
        Standing::Joined(_) => "joined",
    };
    Replica {
        ticket: view.ticket.to_string(),
        node: view.ticket.key.to_string(),
        state: state.to_owned(),
        last_trouble: view.trouble.clone(),
    }
}

fn figures(status: &Status) -> Figures {
    let stats = &status.stats;
    Figures {
        epochs_committed: stats.committed,
        pause_us_p50: stats.pause_us.p50,
        pause_us_p99: stats.pause_us.p99,
        output_delay_us_p50: stats.output_delay_us.p50,
        output_delay_us_p99: stats.output_delay_us.p99,
        exposure_us: stats.exposure_us,
        exposure_bytes: stats.exposure_bytes,
        disk_bytes: stats.disk_bytes,
        disk_left_bytes: stats.disk_left_bytes,
    }
}
