//! Calls of a client that sends what it pleases, up to where a machine would be touched.

use std::sync::Weak;

use endophyte_api::vm_server::Vm;
use endophyte_api::{
    AttachDiskRequest, CreateRequest, DetachRequest, HandOverRequest, MigrateRequest, Policy,
    ResizeConsoleRequest, SetAllowedRequest, SetReplicasRequest, SnapshotRequest,
};
use mycelium_ram_core::hand_over::NotHandedOver;
use prost::Message;
use tonic::{Code, Request, Status};

use super::*;
use crate::console::Tape;
use crate::desk::{Allowed, HandOver, Hands, Order, Peering, Protection};
use crate::limits::ALLOWED_KEYS;
use crate::replicas::Replicas;
use crate::signals::Stopper;

/// Reads `data` as a byte that chooses the call and its request, and makes the call at three desks: of a VM that runs alone, of
/// one that is protected, and of a process that waits for its machine.
pub fn fuzz_api(data: &[u8]) {
    let Some((call, request)) = data.split_first() else { return };
    let runtime =
        Builder::new_current_thread().enable_time().build().expect("a runtime without I/O can be had");
    for who in [Who::Alone, Who::Protected, Who::Waiting] {
        runtime.block_on(one_call(who, *call, request));
    }
}

/// Whose desk it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Alone,
    Protected,
    Waiting,
}

async fn one_call(who: Who, call: u8, data: &[u8]) {
    let desk = desk(who);
    let (_ending, end) = watch::channel(false);
    let service = Service::new(Arc::clone(&desk), end);
    let answer = match call % 21 {
        0 => made(data, |r| service.info(r)).await,
        1 => made(data, |r| service.watch(r)).await,
        2 => made(data, |r| service.pause(r)).await,
        3 => made(data, |r| service.resume(r)).await,
        4 => made(data, |r| service.set_replicas(r)).await,
        5 => made(data, |r| service.set_allowed(r)).await,
        6 => made(data, |r| service.snapshot(r)).await,
        7 => made(data, |r| service.migrate(r)).await,
        8 => made(data, |r| service.cancel_migration(r)).await,
        9 => made(data, |r| service.press_power_button(r)).await,
        10 => made(data, |r| service.set_balloon(r)).await,
        11 => made(data, |r| service.resize_console(r)).await,
        12 => made(data, |r| service.metrics(r)).await,
        13 => made(data, |r| service.stop(r)).await,
        14 => made(data, |r| service.create(r)).await,
        15 => made(data, |r| service.boot(r)).await,
        16 => made(data, |r| service.attach_disk(r)).await,
        17 => made(data, |r| service.attach_net(r)).await,
        18 => made(data, |r| service.detach(r)).await,
        20 => made(data, |r| service.set_policy(r)).await,
        _ => made(data, |r| service.hand_over(r)).await,
    };
    if let Some(Err(status)) = answer {
        // Unavailable: orders are dropped here, as by a process that ends.
        let known = [Code::InvalidArgument, Code::FailedPrecondition, Code::NotFound, Code::Unavailable];
        assert!(known.contains(&status.code()) && !status.message().is_empty(), "{status}");
    }
    if let Some(peering) = &desk.peering {
        assert!(peering.allowed.keys().len() <= ALLOWED_KEYS);
        assert!(peering.replicas.views().len() <= mycelium_ram_core::limits::PEERS);
    }
}

/// The answer to a request, if `data` is one.
async fn made<R: Message + Default, A, F>(
    data: &[u8],
    call: impl FnOnce(Request<R>) -> F,
) -> Option<Result<(), Status>>
where
    F: Future<Output = Result<A, Status>>,
{
    let request = R::decode(data).ok()?;
    Some(call(Request::new(request)).await.map(drop))
}

/// A desk whose guest obeys, and whose machine is always just going away; or one where nobody takes a machine's order.
fn desk(who: Who) -> Arc<Desk> {
    let status = crate::rundir::Status::default();
    let board = watch::Sender::new(status);
    let peering = (who == Who::Protected)
        .then(|| Peering { replicas: Replicas::new(board.clone()), allowed: Allowed::default() });
    let (spec, orders) = (spec(), tokio::sync::mpsc::channel(1).0);
    let (spec, orders) = if who == Who::Waiting { (None, Some(orders)) } else { (Some(&spec), None) };
    let desk = Desk::new(spec, orders, board.clone(), Tape::in_memory(), Stopper::unheard(), peering);
    if who == Who::Waiting {
        return desk;
    }
    let hand_over: HandOver = Box::new(|_, tell| (tell.0)(Err(NotHandedOver::NoReplica)));
    let (paced, moded) = (board.clone(), board.clone());
    let set_pace = Box::new(move |pace| paced.send_modify(|status| status.pace = Some(pace)));
    let set_mode = Box::new(move |mode| moded.send_modify(|status| status.mode = Some(mode)));
    let order: Box<dyn Fn(Order) + Send> = Box::new(|order| drop(format!("{order:?}")));
    desk.take(Hands {
        machine: Weak::new(),
        hold: Box::new(move |hold| board.send_modify(|status| status.held = hold)),
        order: (who == Who::Alone).then_some(order),
        protection: (who == Who::Protected).then_some(Protection { hand_over, set_pace, set_mode }),
    });
    desk.listens(rhizomorph_link::PeerKey([1; 32]), &[]);
    desk
}

fn spec() -> endophyte_vmm::spec::VmSpec {
    use endophyte_vmm::spec::{BootSpec, CpuModel, DeviceSpecs, HugePages, Policies, SerialSpec, VmSpec};
    VmSpec {
        name: "fuzzed".to_owned(),
        vcpus: 1,
        cpu: CpuModel::Host,
        ram_bytes: 16 << 20,
        huge_pages: HugePages::None,
        boot: BootSpec::Disk { entry: None },
        cmdline: String::new(),
        net: Vec::new(),
        devices: DeviceSpecs::default(),
        serial: SerialSpec::Null,
        policies: Policies::default(),
    }
}

const SPEC: &str = "name = \"made\"\nvcpus = 1\nram_mib = 64\nkernel = \"kernel\"\n";

/// One request of every kind that carries something.
pub fn seeds_api() -> Vec<Vec<u8>> {
    let key = "ab".repeat(32);
    let ticket = format!("{key}@10.0.0.1:7700,[::1]:9");
    let migrate = MigrateRequest { ticket: ticket.clone(), downtime_ms: 300, ..MigrateRequest::default() };
    let snapshot = SnapshotRequest { path: "/tmp/vm.snapshot".to_owned(), stop: true };
    let with = |call: u8, request: Vec<u8>| [vec![call], request].concat();
    vec![
        with(2, Vec::new()),
        with(4, SetReplicasRequest { tickets: vec![ticket] }.encode_to_vec()),
        with(5, SetAllowedRequest { keys: vec![key] }.encode_to_vec()),
        with(6, snapshot.encode_to_vec()),
        with(7, migrate.encode_to_vec()),
        with(14, CreateRequest { spec: SPEC.to_owned(), folder: "/srv".to_owned() }.encode_to_vec()),
        with(15, Vec::new()),
        with(16, AttachDiskRequest { table: "path = \"/srv/disk\"".to_owned() }.encode_to_vec()),
        with(18, DetachRequest { name: "slot:3".to_owned(), timeout_s: 1 }.encode_to_vec()),
        with(19, HandOverRequest { node: "ab".repeat(32) }.encode_to_vec()),
        with(20, Policy { preset: "consistency".to_owned(), ..Policy::default() }.encode_to_vec()),
        with(20, Policy { epoch_us: 5000, cut_share_percent: 20, ..Policy::default() }.encode_to_vec()),
        with(11, ResizeConsoleRequest { port: 0, columns: 80, rows: 25 }.encode_to_vec()),
    ]
}
