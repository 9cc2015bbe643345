//! The arbiter asked over real QUIC sockets.

use std::sync::mpsc;
use std::time::Duration;

use mycelium_arbiter::client::{AskError, Client};
use mycelium_arbiter::server::Server;
use mycelium_arbiter::store::Store;
use mycelium_ram::ports::Arbiter;
use mycelium_ram_core::record::{Change, LossPolicy, Swap};
use mycelium_ram_core::settle::{Reply, Request};
use mycelium_ram_core::{Incarnation, Member, NodeId, OpId, VmId};
use rhizomorph_link::tls::AllowList;
use rhizomorph_link::{Identity, Ticket};

struct World {
    _dir: tempfile::TempDir,
    ticket: Ticket,
    node: Identity,
}

fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let (arbiter, node) = (Identity::generate().unwrap(), Identity::generate().unwrap());
    let store = Store::open(dir.path()).unwrap();
    let allow = AllowList::only([node.peer_key()]);
    let server = Server::bind(&arbiter, allow, "127.0.0.1:0".parse().unwrap(), store).unwrap();
    let ticket = Ticket { key: arbiter.peer_key(), addrs: vec![server.local_addr().unwrap()] };
    tokio::spawn(async move { server.serve().await });
    World { _dir: dir, ticket, node }
}

fn vm() -> VmId {
    VmId::new("vm").unwrap()
}

fn create(node: &Identity) -> Request {
    let proposer = Member { node: NodeId(node.peer_key().0), incarnation: Incarnation(7) };
    let op = OpId { incarnation: proposer.incarnation, count: 1 };
    let change = Change::Create { policy: LossPolicy::Degrade };
    Request::Swap(Swap { vm: vm(), expected_version: 0, proposer, op, change })
}

#[tokio::test]
async fn a_node_creates_and_reads_its_record() {
    let w = world();
    let client = Client::new(&w.node, std::slice::from_ref(&w.ticket), vm()).unwrap();
    assert_eq!(client.ask(Request::Read).await.unwrap(), Reply::Record(None));
    assert!(matches!(client.ask(create(&w.node)).await.unwrap(), Reply::Applied { .. }));
    let (tell, told) = mpsc::channel();
    let port = client.start(move |reply| drop(tell.send(reply)));
    port.ask(Request::Read);
    let reply = tokio::task::spawn_blocking(move || told.recv_timeout(Duration::from_secs(5))).await.unwrap();
    assert_eq!(reply.unwrap().record().unwrap().version, 1);
}

#[tokio::test]
async fn a_stranger_is_refused_with_a_hint() {
    let w = world();
    let client = Client::new(&Identity::generate().unwrap(), std::slice::from_ref(&w.ticket), vm()).unwrap();
    let error = client.ask(Request::Read).await.unwrap_err();
    assert!(error.to_string().contains("arbiter"), "{error}");
}

#[tokio::test]
async fn a_node_cannot_propose_in_anothers_name() {
    let w = world();
    let client = Client::new(&w.node, std::slice::from_ref(&w.ticket), vm()).unwrap();
    let forged = create(&Identity::generate().unwrap());
    assert!(matches!(client.ask(forged).await, Err(AskError::Trouble(_))));
}

#[tokio::test]
async fn the_next_arbiter_is_asked_when_one_does_not_answer() {
    let w = world();
    // A bound socket that nobody reads from: silence, not refusal.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let nobody = Ticket { key: w.ticket.key, addrs: vec![silent.local_addr().unwrap()] };
    let client = Client::new(&w.node, &[nobody.clone(), w.ticket.clone()], vm()).unwrap();
    assert!(matches!(client.ask(create(&w.node)).await.unwrap(), Reply::Applied { .. }));

    let client = Client::new(&w.node, &[nobody, w.ticket.clone()], vm()).unwrap();
    let (tell, told) = mpsc::channel();
    let port = client.start(move |reply| drop(tell.send(reply)));
    port.ask(Request::Read);
    let reply = tokio::task::spawn_blocking(move || told.recv_timeout(Duration::from_secs(5))).await.unwrap();
    assert_eq!(reply.unwrap().record().unwrap().version, 1);
}

#[tokio::test]
async fn without_an_arbiter_there_is_no_client() {
    let w = world();
    let error = Client::new(&w.node, &[], vm()).unwrap_err();
    assert!(error.to_string().contains("KEY@ADDRESS"), "{error}");
}
