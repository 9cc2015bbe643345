//! The arbiter's own protocol, spoken to members.

use mycelium_arbiter::client::{AskError, Client};
use mycelium_identity::NodeFolder;
use mycelium_ram_core::settle::{Reply, Request};
use rhizomorph_link::{Identity, PeerKey, Ticket};

use crate::common::*;

fn ticket(node: &mycelium_spores::Spore) -> Ticket {
    Ticket { key: PeerKey(node.node().0), addrs: node.addrs().to_vec() }
}

/// The key of a running node, as an endophyte on it has it.
fn key(lab: &Lab, name: &str) -> Identity {
    assert!(NodeFolder::open(&lab.path(name)).is_err(), "its daemon runs");
    Identity::load(&lab.path(name).join("node.key")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endophyte_asks_any_member_and_goes_on_when_it_is_lost() {
    let lab = Lab::new();
    let mut nodes = lab.network(&["a", "b", "c"]).await;
    let tickets: Vec<_> = nodes.iter().map(ticket).collect();
    let (me, lost) = (process(&nodes[1], 5), leader(&nodes).await);
    let client = Client::new(&key(&lab, "b"), &tickets, vm()).unwrap();
    let swap = Request::Swap(swap(me, 1, 0, create()));
    assert!(matches!(client.ask(swap.clone()).await, Ok(Reply::Applied { .. })));
    drop(nodes.remove(lost));
    let again = until("another member answers", || async { client.ask(swap.clone()).await.ok() }).await;
    assert!(matches!(again, Reply::Applied { .. }), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_not_served_and_nobody_proposes_for_another() {
    let lab = Lab::new();
    let nodes = lab.network(&["a", "b"]).await;
    let stranger = Client::new(&Identity::generate().unwrap(), &[ticket(&nodes[0])], vm()).unwrap();
    assert!(stranger.ask(Request::Read).await.is_err());
    let forged = Request::Swap(swap(process(&nodes[0], 5), 1, 0, create()));
    let client = Client::new(&key(&lab, "b"), &[ticket(&nodes[0])], vm()).unwrap();
    assert!(matches!(client.ask(forged).await, Err(AskError::Trouble(_))));
    assert_eq!(client.ask(Request::Read).await.unwrap(), Reply::Record(None));
}
