//! What both roles set up before they part: who we are, whom we ask, what we run.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use endophyte_vmm::spec::{SerialSpec, VmSpec};
use mycelium_arbiter::client::Client;
use mycelium_ram::drill;
use mycelium_ram::events::{Event, EventLog};
use mycelium_ram::ports::Arbiter;
use mycelium_ram_core::detector::DetectorConfig;
use mycelium_ram_core::message::Offer;
use mycelium_ram_core::primary::PrimaryConfig;
use mycelium_ram_core::replica::ReplicaConfig;
use mycelium_ram_core::settle::Reply;
use mycelium_ram_core::{Generation, Incarnation, Member, NodeId, VmId};
use rhizomorph_link::{Identity, LinkOptions, MtuPolicy};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::api::Api;
use crate::cli::{NodeArgs, TimingArgs};
use crate::confine::{self, Needs, Taps};
use crate::console::Tape;
use crate::desk::{Allowed, Desk, Peering};
use crate::exit::{Exit, Failure, OrExit};
use crate::guest::Guest;
use crate::limits::PARTING;
use crate::outlet::say;
use crate::replicas::Replicas;
use crate::rundir::{RunDir, Status};
use crate::signals::Signals;

/// One node's part in protecting one VM.
#[derive(Debug)]
pub(crate) struct Node {
    /// Before everything else to be dropped, so that its last answers still find a runtime.
    _api: Option<Api>,
    pub(crate) args: NodeArgs,
    pub(crate) spec: VmSpec,
    taps: Taps,
    pub(crate) vm: VmId,
    pub(crate) identity: Identity,
    pub(crate) events: EventLog,
    pub(crate) desk: Arc<Desk>,
    pub(crate) replicas: Replicas,
    pub(crate) allowed: Allowed,
    pub(crate) runtime: Runtime,
}

impl Node {
    /// Opens what one process has of this, enters the sandbox, and starts the first threads.
    pub(crate) fn open(args: &NodeArgs, role: &str) -> Result<(Self, Signals), Exit> {
        #[cfg(feature = "sabotage")]
        mycelium_ram_core::sabotage::set_sabotage(args.sabotage);
        let spec = VmSpec::load(&args.spec).or_exit(Failure::Spec)?;
        let vm = VmId::new(spec.name.clone()).or_exit(Failure::Spec)?;
        let identity = Identity::load(&args.key).or_exit(Failure::Spec)?;
        let run_dir = RunDir::open(&args.run_dir).or_exit(Failure::Host)?;
        let journals = role == "passive";
        let needs = Needs { run_dir: Some(&args.run_dir), journals, ..Needs::default() };
        let taps = confine::enter(&spec, &args.process, needs)?.taps;
        let signals = Signals::block()?;
        let status = Status {
            vm: spec.name.clone(),
            role: role.to_owned(),
            state: "starting".to_owned(),
            node: identity.peer_key().to_string(),
            ..Status::default()
        };
        let board = watch::Sender::new(status);
        let events = run_dir.events(board.clone()).or_exit(Failure::Host)?;
        if let Some(phase) = args.drill {
            drill::prepare(phase, args.run_dir.join("drill"), events.clone());
        }
        let tape = Tape::on_log(run_dir.serial_log().or_exit(Failure::Host)?);
        let (replicas, allowed) = (Replicas::new(board.clone()), Allowed::default());
        let peering = Peering { replicas: replicas.clone(), allowed: allowed.clone() };
        let desk = Desk::new(Some(&spec), None, board, tape, signals.stopper(), Some(peering));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("link")
            .on_thread_start(|| {
                mycelium_ram::priority::beat();
                confine::serve();
            })
            .enable_all()
            .build()
            .context("cannot start the network runtime")
            .or_exit(Failure::Host)?;
        let api = args.process.api.as_deref();
        let api = api.map(|path| Api::on_runtime(path, desk.clone(), runtime.handle()));
        let _api = api.transpose().or_exit(Failure::Host)?;
        let args = args.clone();
        let node = Self { _api, args, spec, taps, vm, identity, events, desk, replicas, allowed, runtime };
        Ok((node, signals))
    }

    /// A new incarnation of this node.
    pub(crate) fn incarnate(&self, role: &str) -> Member {
        let me =
            Member { node: NodeId(self.identity.peer_key().0), incarnation: Incarnation(rand::random()) };
        self.events.note(Event::Started {
            role: role.to_owned(),
            vm: self.vm.to_string(),
            node: me.node.to_string(),
            incarnation: format!("{:?}", me.incarnation),
        });
        me
    }

    /// Builds the machine, parked.
    pub(crate) fn build_guest(&self) -> Result<Guest, Exit> {
        let taps = self.taps.again();
        Guest::build(&self.spec, taps, self.desk.tape.clone()).or_exit(Failure::Host)
    }

    /// A client of the arbiter, not yet connected.
    pub(crate) fn arbiter(&self) -> Result<Client, Exit> {
        let _inside = self.runtime.enter();
        Client::new(&self.identity, &self.args.arbiter, self.vm.clone()).or_exit(Failure::Host)
    }

    /// The arbiter as the driver's port; replies go to the inbox.
    pub(crate) fn arbiter_port<I: Send + 'static>(
        &self,
        inbox: Sender<I>,
        wrap: fn(Reply) -> I,
    ) -> Result<Arc<dyn Arbiter>, Exit> {
        let client = self.arbiter()?;
        let _inside = self.runtime.enter();
        Ok(client.start(move |reply| drop(inbox.send(wrap(reply)))))
    }

    /// Whether the console is on standard input and output, as the spec asks.
    pub(crate) fn has_terminal(&self) -> bool {
        self.spec.serial == SerialSpec::Stdio
    }

    /// A line for the operator, where the guest's console is not.
    pub(crate) fn say(&self, line: &str) {
        if self.has_terminal() { eprintln!("{line}") } else { say(line) }
    }

    pub(crate) fn link_options(&self) -> LinkOptions {
        let mtu = if self.args.mtu > 1452 { MtuPolicy::fixed(self.args.mtu) } else { MtuPolicy::default() };
        LinkOptions { mtu, ..LinkOptions::default() }
    }

    /// The offer of this VM, as the active of a generation.
    pub(crate) fn offer(&self, me: Member, generation: Generation, guest: &Guest) -> Result<Offer, Exit> {
        let fingerprint = serde_json::to_vec(&guest.machine.fingerprint()).or_exit(Failure::Unexpected)?;
        Ok(Offer { vm: self.vm.clone(), active: me, generation, fingerprint: Bytes::from(fingerprint) })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.events.flush(PARTING);
    }
}

/// The active's timing.
pub(crate) fn primary_config(timing: TimingArgs) -> PrimaryConfig {
    let standard = PrimaryConfig::default();
    PrimaryConfig {
        heartbeat_every: timing.heartbeat(),
        epoch_max: Duration::from_millis(timing.epoch_ms),
        epoch_min: Duration::from_millis(timing.epoch_min_ms.min(timing.epoch_ms)),
        cut_share_pm: timing.cut_share * 10,
        // Word from a replica must be younger than the silence after which it may suspect us.
        fresh: timing.detect().mul_f64(0.8),
        detector: DetectorConfig {
            floor: standard.detector.floor.max(timing.detect() * 3),
            ceiling: standard.detector.ceiling.max(timing.detect() * 6),
            hung_after: hung_after(timing),
            ..standard.detector
        },
        ..standard
    }
}

/// The passive's timing.
pub(crate) fn replica_config(timing: TimingArgs) -> ReplicaConfig {
    let standard = ReplicaConfig::default();
    let detector = DetectorConfig {
        floor: timing.detect(),
        ceiling: standard.detector.ceiling.max(timing.detect() * 4),
        hung_after: hung_after(timing),
        ..standard.detector
    };
    ReplicaConfig {
        heartbeat_every: timing.heartbeat(),
        detector,
        arbiter_fresh: standard.arbiter_fresh.max(timing.detect() * 2),
        abandoned_after: standard.abandoned_after.max(timing.detect() * 8),
        ..standard
    }
}

/// On slow machines everything is slow, loops included.
fn hung_after(timing: TimingArgs) -> Duration {
    DetectorConfig::default().hung_after.max(timing.detect() * 8)
}
