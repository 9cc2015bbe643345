//! Three and four nodes: they form, decide through any of them, lose their leader, and take a restarted one back.

use std::time::Duration;

use crate::common::*;
use bytes::Bytes;
use mycelium_ram_core::record::Authority;
use mycelium_ram_core::settle::Reply;
use mycelium_spores::{Handler, NodeReport, Spore};

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_form_and_decide_through_any() {
    let lab = Lab::new();
    let nodes = lab.network(&["a", "b", "c"]).await;
    for node in &nodes {
        let status = settled(node, 3, 3).await;
        assert_eq!(status.network, Some(nodes[0].network()));
        assert!(status.leader.is_some() && status.survives.contains("Any one node"), "{status:?}");
    }
    let me = process(&nodes[0], 1);
    let record = applied(&nodes[0], swap(me, 1, 0, create())).await;
    assert_eq!(record.authority, Authority::Primary);
    let replica = process(&nodes[1], 2);
    applied(&nodes[0], swap(me, 2, 1, list(replica))).await;
    for node in &nodes {
        let seen = read(node).await.unwrap();
        assert!(seen.lists(replica), "a read sees what was told through another node");
    }
    let again = decide(&nodes[2], swap(me, 2, 1, list(replica))).await;
    assert!(matches!(again, Reply::Applied { .. }), "the same operation through another node: {again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fourth_node_listens_and_asks() {
    let lab = Lab::new();
    let nodes = lab.network(&["a", "b", "c", "d"]).await;
    let status = settled(&nodes[3], 3, 4).await;
    assert!(!status.voters().contains(&is(&nodes[3])));
    let me = process(&nodes[3], 1);
    applied(&nodes[3], swap(me, 1, 0, create())).await;
    assert_eq!(read(&nodes[3]).await.unwrap().active, me);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_arbiter_answers_again_after_its_leader_is_lost() {
    let lab = Lab::new();
    let mut nodes = lab.network(&["a", "b", "c"]).await;
    let (me, lost) = (process(&nodes[0], 1), leader(&nodes).await);
    applied(&nodes[0], swap(me, 1, 0, create())).await;
    drop(nodes.remove(lost));
    for node in &nodes {
        assert_eq!(read(node).await.unwrap().active, me);
    }
    settled(&nodes[0], 1, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_node_is_a_new_member() {
    let lab = Lab::new();
    let mut nodes = lab.network(&["a", "b", "c"]).await;
    let (c, key) = (nodes.remove(2), nodes[0].node());
    let (id, addr, old) = (c.node(), c.addrs()[0], c.state().nodes[&c.node()].raft_id);
    c.shutdown().await;
    let c = lab.resume("c", addr).await;
    assert_eq!(c.node(), id);
    settled(&c, 3, 3).await;
    let new = nodes[0].state().nodes[&id].raft_id;
    assert!(new.is_some() && new != old, "{old:?} {new:?}");
    assert!(c.nodes().contains_key(&key));
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_and_requests_reach_every_node() {
    let lab = Lab::new();
    let a = lab.found("a").await;
    let mut config = lab.config("b").await;
    config.handler = Handler::new(|from, request: Bytes| async move {
        match request.as_ref() {
            b"who" => Ok(Bytes::from(from.to_string())),
            _ => Err("only who".to_owned()),
        }
    });
    let b = Spore::join(config, &a.invite(Duration::from_secs(60)).unwrap().to_string()).await.unwrap();
    b.report(NodeReport { vcpus: 7, extra: serde_json::json!({"x": 1}), ..NodeReport::default() });
    let heard = until("the report", || async {
        let reports = a.reports().await.ok()?;
        reports.into_iter().find(|(node, r)| *node == b.node() && r.report.vcpus == 7)
    });
    let (_, heard) = heard.await;
    assert_eq!(heard.report.extra["x"], 1);
    assert!(heard.skew_ns.abs() < 5_000_000_000, "one clock: {heard:?}");
    assert_eq!(b.reports().await.unwrap().len(), 2);

    let patience = Duration::from_secs(5);
    let who = a.request(b.node(), &Bytes::from_static(b"who"), patience).await.unwrap();
    assert_eq!(who, a.node().to_string());
    let error = a.request(b.node(), &Bytes::from_static(b"what"), patience).await.unwrap_err();
    assert!(error.to_string().contains("only who"), "{error}");
}
