//! A takeover races the removal of the replica that takes over, each through other nodes, and the leader is killed around
//! that moment. Many seeds: exactly one of the two wins, and every survivor agrees which.
//!
//! The group is openraft's with our log and state machine; the network between its members loses and delays messages by the
//! seed. Time is simulated. Election timeouts are openraft's own random numbers, so a seed repeats the network's behaviour,
//! not every step.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mycelium_identity::NetworkId;
use mycelium_ram_core::record::{Change, LossPolicy, Record, Swap};
use mycelium_ram_core::settle::{Proposal, Reply, Request, Settled};
use mycelium_ram_core::{EpochId, Incarnation, Member, NodeId, OpId, Time, VmId};
use mycelium_spores::Timing;
use mycelium_spores::raft::log::Log;
use mycelium_spores::raft::machine::{Machine, NoKeeper};
use mycelium_spores::raft::{Raft, RaftId, RaftNode, Types};
use mycelium_spores::state::{Command, NetworkState, Outcome};
use openraft::error::{InstallSnapshotError, RPCError, RaftError, RemoteError, Unreachable};
use openraft::network::{RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

const TRIALS: u64 = 200;
const A: u8 = 1;
const B: u8 = 2;

/// The network between the members.
#[derive(Clone)]
struct Router(Arc<Mutex<Wires>>);

struct Wires {
    rng: ChaCha8Rng,
    members: BTreeMap<RaftId, Raft>,
    dead: BTreeSet<RaftId>,
}

enum Fate {
    Lost,
    Delivered { there: Duration, back: Option<Duration> },
}

impl Router {
    fn new(seed: u64) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(seed);
        Self(Arc::new(Mutex::new(Wires { rng, members: BTreeMap::new(), dead: BTreeSet::new() })))
    }

    fn draw<T>(&self, draw: impl FnOnce(&mut ChaCha8Rng) -> T) -> T {
        draw(&mut self.0.lock().unwrap().rng)
    }

    fn fate(&self) -> Fate {
        self.draw(|rng| {
            let there = Duration::from_micros(rng.random_range(50..4_000));
            let back = (!rng.random_bool(0.05)).then(|| Duration::from_micros(rng.random_range(50..4_000)));
            if rng.random_bool(0.05) { Fate::Lost } else { Fate::Delivered { there, back } }
        })
    }

    fn member(&self, id: RaftId) -> Option<Raft> {
        let wires = self.0.lock().unwrap();
        wires.members.get(&id).filter(|_| !wires.dead.contains(&id)).cloned()
    }

    fn living(&self) -> Vec<RaftId> {
        let wires = self.0.lock().unwrap();
        wires.members.keys().copied().filter(|id| !wires.dead.contains(id)).collect()
    }

    async fn kill(&self, id: RaftId) {
        let raft = self.member(id);
        self.0.lock().unwrap().dead.insert(id);
        if let Some(raft) = raft {
            raft.shutdown().await.unwrap();
        }
    }

    /// Calls `to` over the lossy network; none when the request or the answer is lost.
    async fn carry<T, F: Future<Output = T>>(
        &self,
        from: RaftId,
        to: RaftId,
        call: impl FnOnce(Raft) -> F,
    ) -> Option<T> {
        let Fate::Delivered { there, back } = self.fate() else {
            sleep(Duration::from_millis(20)).await;
            return None;
        };
        sleep(there).await;
        self.member(from)?;
        let answer = call(self.member(to)?).await;
        sleep(back.unwrap_or(Duration::from_millis(20))).await;
        self.member(to)?;
        back.map(|_| answer)
    }
}

struct Wire {
    router: Router,
    from: RaftId,
    to: RaftId,
}

struct Factory {
    router: Router,
    from: RaftId,
}

impl RaftNetworkFactory<Types> for Factory {
    type Network = Wire;

    async fn new_client(&mut self, to: RaftId, _: &RaftNode) -> Wire {
        Wire { router: self.router.clone(), from: self.from, to }
    }
}

type Failed<E = openraft::error::Infallible> = RPCError<RaftId, RaftNode, RaftError<RaftId, E>>;

impl Wire {
    #[expect(clippy::result_large_err, reason = "the size of the error is openraft's choice")]
    fn judge<T>(&self, answer: Option<Result<T, RaftError<RaftId>>>) -> Result<T, Failed> {
        match answer {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(error)) => Err(RemoteError::new(self.to, error).into()),
            None => Err(Unreachable::new(&std::io::Error::other("lost")).into()),
        }
    }
}

impl RaftNetwork<Types> for Wire {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<RaftId>, Failed> {
        let call = |raft: Raft| async move { raft.append_entries(rpc).await };
        let answer = self.router.carry(self.from, self.to, call).await;
        self.judge(answer)
    }

    async fn install_snapshot(
        &mut self,
        _: InstallSnapshotRequest<Types>,
        _: RPCOption,
    ) -> Result<InstallSnapshotResponse<RaftId>, Failed<InstallSnapshotError>> {
        Err(Unreachable::new(&std::io::Error::other("no snapshot is needed here")).into())
    }

    async fn vote(&mut self, rpc: VoteRequest<RaftId>, _: RPCOption) -> Result<VoteResponse<RaftId>, Failed> {
        let call = |raft: Raft| async move { raft.vote(rpc).await };
        let answer = self.router.carry(self.from, self.to, call).await;
        self.judge(answer)
    }

    fn backoff(&self) -> openraft::network::Backoff {
        openraft::network::Backoff::new(std::iter::repeat(Duration::from_millis(50)))
    }
}

fn vm() -> VmId {
    VmId::new("vm").unwrap()
}

fn process(n: u8) -> Member {
    Member { node: NodeId([n; 32]), incarnation: Incarnation(n.into()) }
}

fn swap(who: u8, count: u64, expected_version: u64, change: Change) -> Swap {
    let op = OpId { incarnation: process(who).incarnation, count };
    Swap { vm: vm(), expected_version, proposer: process(who), op, change }
}

/// One attempt through one member; any error means that nothing is known.
async fn attempt(raft: &Raft, request: Request) -> Option<Reply> {
    match request {
        Request::Swap(swap) => match raft.client_write(Command::Swap(swap)).await.ok()?.data {
            Outcome::Swapped(reply) => Some(reply),
            other => panic!("{other:?}"),
        },
        Request::Read => unreachable!("a lost reply is settled by asking again here"),
    }
}

/// Asks through random members until the swap is settled, as the replication driver does.
async fn settle(router: &Router, swap: Swap) -> Settled {
    let proposal = Proposal::new(swap, Time(0));
    loop {
        let living = router.living();
        let through = living[router.draw(|rng| rng.random_range(0..living.len()))];
        let lost = router.draw(|rng| rng.random_bool(0.2));
        if let Some(raft) = router.member(through) {
            let reply = timeout(Duration::from_millis(100), attempt(&raft, proposal.request())).await;
            if let Ok(Some(reply)) = reply
                && !lost
                && let settled @ (Settled::Applied(_) | Settled::Failed(_)) = proposal.settle(&reply)
            {
                return settled;
            }
        }
        sleep(Duration::from_millis(5)).await;
    }
}

type Seen = BTreeMap<RaftId, watch::Receiver<Arc<NetworkState>>>;

async fn start(router: &Router) -> Seen {
    let config = Arc::new(Timing::default().config().unwrap());
    let mut seen = Seen::new();
    for id in 1..=3 {
        let (machine, state) = Machine::new(Arc::new(NoKeeper));
        let factory = Factory { router: router.clone(), from: id };
        let raft =
            Raft::new(id, config.clone(), factory, Log::new(Arc::new(NoKeeper)), machine).await.unwrap();
        router.0.lock().unwrap().members.insert(id, raft);
        seen.insert(id, state);
    }
    let all: BTreeMap<_, _> = (1..=3).map(|id| (id, RaftNode::default())).collect();
    router.member(1).unwrap().initialize(all).await.unwrap();
    seen
}

async fn leader(router: &Router) -> RaftId {
    loop {
        for id in router.living() {
            let metrics = router.member(id).unwrap().metrics().borrow().clone();
            if metrics.state.is_leader() && metrics.current_leader == Some(id) {
                return id;
            }
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// The record all survivors come to agree on.
async fn agreed(router: &Router, seen: &Seen) -> Record {
    loop {
        let records: Vec<_> =
            router.living().iter().map(|id| seen[id].borrow().records.get(&vm()).cloned()).collect();
        let behind = router.living().iter().any(|id| {
            let metrics = router.member(*id).unwrap().metrics().borrow().clone();
            metrics.current_leader.is_none()
                || metrics.last_applied.map(|l| l.index) != metrics.last_log_index
        });
        if !behind
            && records.windows(2).all(|pair| pair[0] == pair[1])
            && let Some(Some(record)) = records.first()
        {
            return record.clone();
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// Who won: the takeover, or not.
async fn trial(seed: u64) -> bool {
    let router = Router::new(seed);
    let seen = start(&router).await;
    let formed = NetworkState { network: Some(NetworkId([1; 32])), ..NetworkState::default() };
    let first = router.member(leader(&router).await).unwrap();
    while first.client_write(Command::Form(Box::new(formed.clone()))).await.is_err() {
        sleep(Duration::from_millis(5)).await;
    }
    let policy = LossPolicy::Degrade;
    assert!(matches!(settle(&router, swap(A, 1, 0, Change::Create { policy })).await, Settled::Applied(_)));
    let list = Change::List { member: process(B), since: EpochId(1) };
    assert!(matches!(settle(&router, swap(A, 2, 1, list)).await, Settled::Applied(_)));

    let killed = async {
        sleep(Duration::from_micros(router.draw(|rng| rng.random_range(0..25_000)))).await;
        router.kill(leader(&router).await).await;
    };
    let begins = |router: &Router| Duration::from_micros(router.draw(|rng| rng.random_range(0..10_000)));
    let takeover = async {
        sleep(begins(&router)).await;
        settle(&router, swap(B, 1, 2, Change::TakeOver { epoch: EpochId(3) })).await
    };
    let unlist = async {
        sleep(begins(&router)).await;
        settle(&router, swap(A, 3, 2, Change::Unlist { member: process(B) })).await
    };
    let ((), taken, unlisted) = tokio::join!(killed, takeover, unlist);
    let (taken, unlisted) = match (&taken, &unlisted) {
        (Settled::Applied(_), Settled::Failed(_)) => (true, false),
        (Settled::Failed(_), Settled::Applied(_)) => (false, true),
        other => panic!("seed {seed}: {other:?}"),
    };
    assert!(taken != unlisted);
    let record = agreed(&router, &seen).await;
    assert_eq!(record.version, 3, "seed {seed}");
    assert_eq!(record.active, process(if taken { B } else { A }), "seed {seed}");
    assert!(!record.lists(process(B)), "seed {seed}");
    for id in router.living() {
        router.kill(id).await;
    }
    taken
}

#[test]
fn a_takeover_and_an_unlist_have_one_winner_when_the_leader_is_killed() {
    let mut takeovers = 0;
    for seed in 0..TRIALS {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let won = runtime.block_on(async { timeout(Duration::from_secs(60), trial(seed)).await });
        takeovers += u64::from(won.unwrap_or_else(|_| panic!("seed {seed} never settles")));
    }
    println!("{TRIALS} trials: the takeover won {takeovers}, the unlist {}", TRIALS - takeovers);
    assert!(takeovers > 0 && takeovers < TRIALS, "the race must go both ways");
}
