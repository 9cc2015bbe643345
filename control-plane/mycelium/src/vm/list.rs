//! What the network's VMs are shown as.

use anyhow::{Result, bail};
use mycelium_api::{ListVmsRequest, Vm};

use super::NameArgs;
use crate::output::{Asking, mib, plain, table};

pub(super) async fn list(asking: &Asking) -> Result<Vec<Vm>> {
    let vms = asking.daemon().await?.list_vms(ListVmsRequest {}).await.map_err(|s| plain(&s))?;
    Ok(vms.into_inner().vms)
}

/// A table of VMs.
pub(crate) fn listed(vms: &[Vm]) -> String {
    let rows: Vec<Vec<String>> = vms
        .iter()
        .map(|vm| {
            let replica = if vm.role == "active" { replica_of(vm) } else { String::new() };
            let generation = if vm.generation == 0 { String::new() } else { vm.generation.to_string() };
            vec![
                vm.name.clone(),
                vm.node_name.clone(),
                vm.role.clone(),
                vm.state.clone(),
                replica,
                generation,
            ]
        })
        .collect();
    if rows.is_empty() {
        "no VMs".to_owned()
    } else {
        table(&["VM", "NODE", "ROLE", "STATE", "REPLICA", "GEN"], &rows)
    }
}

/// Where the replica is, and how much of the disks it has while that is not all.
fn replica_of(vm: &Vm) -> String {
    let node = &vm.replica_node_name;
    let copied = u128::from(vm.disk_bytes.saturating_sub(vm.disk_left_bytes)) * 100;
    match copied.checked_div(u128::from(vm.disk_bytes)) {
        Some(percent) if !vm.protected && !node.is_empty() && vm.disk_left_bytes > 0 => {
            format!("{node} ({percent} % of disks)")
        }
        _ => node.clone(),
    }
}

pub(super) fn describe(vm: &Vm) -> String {
    let mut text = format!("{} on {}: {}", vm.name, vm.node_name, vm.role);
    if vm.state != vm.role {
        text += &format!(", {}", vm.state);
    }
    if !vm.reason.is_empty() {
        text += &format!(" ({})", vm.reason);
    }
    if vm.wanted_protection && vm.role == "active" {
        text += &match (vm.replica_node_name.as_str(), vm.placement.as_str()) {
            ("", "") => "\n  replica: a place is being looked for".to_owned(),
            ("", why) => format!("\n  replica: nowhere yet: {why}"),
            (node, why) => format!("\n  replica: {node}: {why}"),
        };
    }
    if !vm.folder.is_empty() && vm.pid != 0 && vm.role != "ended" {
        text += &format!("\n  {} of memory, process {}, files in {}", mib(vm.ram_bytes), vm.pid, vm.folder);
    }
    if !vm.trouble.is_empty() {
        text += &format!("\n  last trouble: {}", vm.trouble);
    }
    text
}

pub(super) async fn inspect(args: &NameArgs) -> Result<()> {
    let vms: Vec<Vm> = list(&args.asking).await?.into_iter().filter(|vm| vm.name == args.name).collect();
    if vms.is_empty() {
        bail!("there is no VM {} in the network; `mycelium vm list` shows what there is", args.name);
    }
    args.asking.show(&vms, |vms| vms.iter().map(describe).collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_is_being_sent_disks_shows_how_far_it_is() {
        let mut vm = Vm {
            role: "active".to_owned(),
            replica_node_name: "b".to_owned(),
            disk_bytes: 1 << 62,
            disk_left_bytes: 1 << 60,
            ..Vm::default()
        };
        assert!(listed(std::slice::from_ref(&vm)).contains("b (75 % of disks)"));
        vm.disk_left_bytes = 0;
        assert_eq!(replica_of(&vm), "b");
        vm.disk_bytes = 0;
        assert_eq!(replica_of(&vm), "b");
    }
}
