//! One node after the other is lost, and nodes come back.

use std::time::Duration;

use crate::common::*;
use mycelium_ram_core::settle::Request;
use mycelium_spores::{Spore, StartError};

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_lose_a_then_b_and_c_decides() {
    let lab = Lab::new();
    let nodes = lab.network(&["a", "b", "c"]).await;
    let [a, b, c] = <[Spore; 3]>::try_from(nodes).unwrap();
    let (on_a, on_b, on_c) = (process(&a, 1), process(&b, 2), process(&c, 3));
    applied(&a, swap(on_a, 1, 0, create())).await;
    applied(&a, swap(on_a, 2, 1, list(on_b))).await;
    drop(a);
    let taken = applied(&b, swap(on_b, 1, 2, take_over())).await;
    assert_eq!(taken.active, on_b);
    settled(&b, 1, 2).await;
    applied(&b, swap(on_b, 2, taken.version, list(on_c))).await;
    until("the vote moves to the replica", || async {
        (c.status().await.voters() == [c.node()] && c.status().await.leader == Some(c.node())).then_some(())
    })
    .await;
    drop(b);
    let last = applied(&c, swap(on_c, 1, taken.version + 1, take_over())).await;
    assert_eq!((last.active, last.generation.0), (on_c, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sole_voter_keeps_its_records_over_a_kill() {
    let lab = Lab::new();
    let a = lab.found("a").await;
    let (me, addr, network) = (process(&a, 1), a.addrs()[0], a.network());
    applied(&a, swap(me, 1, 0, create())).await;
    drop(a);
    let a = lab.resume("a", addr).await;
    assert_eq!(a.network(), network);
    assert_eq!(read(&a).await.unwrap().active, me);
    applied(&a, swap(me, 2, 1, list(process(&a, 9)))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_node_follows_a_sole_voter_that_was_restarted() {
    let lab = Lab::new();
    let nodes = lab.network(&["a", "b"]).await;
    let [a, b] = <[Spore; 2]>::try_from(nodes).unwrap();
    let (me, addr) = (process(&b, 1), a.addrs()[0]);
    applied(&b, swap(me, 1, 0, create())).await;
    let old = b.state().nodes[&b.node()].raft_id;
    drop(a);
    let a = lab.resume("a", addr).await;
    settled(&b, 1, 2).await;
    assert_ne!(a.state().nodes[&b.node()].raft_id, old, "b is a new member of the new group");
    assert_eq!(read(&b).await.unwrap().active, me);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_voters_are_lost_an_operator_decides() {
    let lab = Lab::new();
    let nodes = lab.network(&["a", "b", "c"]).await;
    let (me, addr) = (process(&nodes[0], 1), nodes[0].addrs()[0]);
    applied(&nodes[0], swap(me, 1, 0, create())).await;
    for node in nodes {
        node.shutdown().await;
    }
    let mut config = lab.config("a").await;
    config.resume_patience = Duration::ZERO;
    let error = Spore::resume(config).await.unwrap_err();
    assert!(matches!(error, StartError::Undecided(_)), "{error}");
    assert!(error.to_string().contains("mycelium network recover"), "{error}");

    let a = until("the address is free", || async {
        let mut config = lab.config("a").await;
        config.listen = addr;
        Spore::recover(config).await.ok()
    })
    .await;
    assert_eq!(read(&a).await.unwrap().active, me);
    let b = Spore::resume(lab.config("b").await).await.unwrap();
    let c = Spore::resume(lab.config("c").await).await.unwrap();
    settled(&c, 3, 3).await;
    assert_eq!(read(&b).await.unwrap().active, me);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_voters_lost_at_once_give_no_answer_rather_than_a_wrong_one() {
    let lab = Lab::new();
    let mut nodes = lab.network(&["a", "b", "c"]).await;
    applied(&nodes[0], swap(process(&nodes[0], 1), 1, 0, create())).await;
    nodes.truncate(1);
    until("the leader's lease ends", || async { nodes[0].answer(vm(), Request::Read).await.err() }).await;
    let change = swap(process(&nodes[0], 1), 2, 1, list(process(&nodes[0], 2)));
    assert!(nodes[0].answer(vm(), Request::Swap(change)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_leaves_hands_over_and_can_join_again() {
    let lab = Lab::new();
    let nodes = lab.network(&["a", "b"]).await;
    let [a, b] = <[Spore; 2]>::try_from(nodes).unwrap();
    let me = process(&b, 1);
    applied(&b, swap(me, 1, 0, create())).await;
    a.leave().await.unwrap();
    let status = settled(&b, 1, 1).await;
    assert_eq!(status.voters(), [b.node()]);
    assert_eq!(read(&b).await.unwrap().active, me);
    let a = lab.join("a", &b).await;
    assert_eq!(settled(&a, 1, 2).await.members.len(), 2);
    assert!(b.forget(vm()).await.unwrap().is_some());
}
