//! Pods of a group are one protected VM: three nodes, each with a daemon and a containerd, and a Service's client.

use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, kill_process};
use serde_json::Value;
use slice_tests::cluster::{Cluster, GroupPod, is_ready, server};
use slice_tests::network::{alive, voters};
use slice_tests::reconnecting::Reconnecting;
use slice_tests::world::eventually;

const VM: &str = "default.store";

#[tokio::test]
async fn a_group_of_pods_outlives_two_nodes_in_turn() -> Result<()> {
    let Some(mut cluster) = Cluster::make(3).await? else { return Ok(()) };
    // As a Deployment of two replicas starts: both at once. One of them wins the arbiter.
    let start = async |node: &str, name: &str| {
        let kubelet = cluster.kubelet(node);
        kubelet.run(&kubelet.spec(name, "store", &[])).await
    };
    let (on_a, on_b) = tokio::join!(start("a", "store-0"), start("b", "store-1"));
    let (on_a, on_b) = (on_a.context("the pod on a")?, on_b.context("the pod on b")?);
    let (first, second) = cluster.network.protected("a").await?;
    println!("active on {first}, replica on {second}");
    ensure!(first != second && [&first, &second].iter().all(|n| ["a", "b"].contains(&n.as_str())));
    let (active, passive) = if first == "a" { (on_a, on_b) } else { (on_b, on_a) };
    eventually("the active pod to be ready", || is_ready(&active)).await?;
    ensure!(cluster.kubelet(&second).is_running(&passive).await?, "the passive pod runs");
    ensure!(!is_ready(&passive), "and is not ready");

    let client = Reconnecting::start(vec![server(&active.address)?, server(&passive.address)?]);
    counts(&client, 300).await?;
    cluster.lose(&first);
    eventually("the passive pod to turn ready", || is_ready(&passive)).await?;
    let name = if second == "a" { "store-0" } else { "store-1" };
    let said = || cluster.kubelet(&second).log(name).contains("goes on here as generation");
    eventually("the passive pod's log to tell of it", said).await?;
    counts(&client, 300).await.context("after the first takeover")?;

    // The scheduler replaces the lost pod on the third node; nobody tells anybody that it is the new replica.
    let replacement = cluster.kubelet("c").run(&cluster.kubelet("c").spec("store-2", "store", &[])).await?;
    client.also(server(&replacement.address)?);
    let (active, replica) = cluster.network.protected("c").await.context("after the first loss")?;
    println!("active on {active}, replica on {replica}");
    let both = [active.as_str(), replica.as_str()];
    ensure!(both.contains(&"c") && both.contains(&second.as_str()), "{both:?}");
    let last = if replica == "c" { replacement } else { passive };
    ensure!(!is_ready(&last));
    eventually("the vote to be with the replica", || {
        cluster.network.node(&replica).status().is_ok_and(|s| voters(&s) == [replica.clone()])
    })
    .await?;

    cluster.lose(&active);
    eventually("the last pod to turn ready", || is_ready(&last)).await?;
    counts(&client, 300).await.context("after the second takeover")?;
    let vms = cluster.network.node(&replica).ask(&["vm", "inspect", VM])?;
    let is_last =
        |vm: &Value| vm["role"] == "active" && vm["group"] == "store" && vm["node_name"] == replica.as_str();
    let generation =
        vms.as_array().into_iter().flatten().find(|vm| is_last(vm)).map(|vm| vm["generation"].as_u64());
    ensure!(generation.flatten().is_some_and(|g| g >= 3), "{vms:#}");
    let counted = client.finish().context("nothing acknowledged may be lost, nothing repeated")?;
    println!(
        "{} acknowledged over two losses, {} left open, {} connections, longest gap {} ms",
        counted.acked,
        counted.open,
        counted.connections,
        counted.gap.as_millis()
    );
    Ok(())
}

#[tokio::test]
async fn a_groups_pods_come_and_go() -> Result<()> {
    let Some(mut cluster) = Cluster::make(2).await? else { return Ok(()) };
    let links_before = cluster.kubelet("a").leavings(&cluster.network.node("a").netns())?;
    let on_a = run(&cluster, "a", "store-0", &[]).await?;
    eventually("the first pod to be ready", || is_ready(&on_a)).await?;
    let twice = run(&cluster, "a", "store-9", &[]).await.unwrap_err();
    ensure!(format!("{twice:#}").contains("anti-affinity"), "{twice:#}");
    let on_b = run(&cluster, "b", "store-1", &[]).await?;
    let pair = cluster.network.protected("a").await?;
    ensure!(pair == ("a".to_owned(), "b".to_owned()), "{pair:?}");

    // What belongs to pods is Kubernetes' to stop.
    let refused = cluster.network.node("a").ask(&["vm", "stop", VM]).unwrap_err();
    ensure!(format!("{refused:#}").contains("Kubernetes"), "{refused:#}");

    // The daemon is not the VM's life.
    cluster.network.node_mut("a").kill_daemon();
    cluster.network.node_mut("a").start_daemon().await?;
    eventually("both daemons back", || {
        cluster.network.node("a").status().is_ok_and(|status| alive(&status) == 2)
    })
    .await?;
    let pair = cluster.network.protected("a").await.context("after the daemon's restart")?;
    ensure!(pair == ("a".to_owned(), "b".to_owned()), "{pair:?}");

    // A drained node's pod is asked to end: its VM goes on in the other pod.
    let client = Reconnecting::start(vec![server(&on_a.address)?, server(&on_b.address)?]);
    counts(&client, 100).await?;
    cluster.kubelet("a").delete(&on_a).await?;
    eventually("the other pod to turn ready", || is_ready(&on_b)).await?;
    counts(&client, 100).await?;
    client.finish().context("nothing acknowledged may be lost, nothing repeated")?;

    // All pods gone: the group has ended, and starts anew.
    cluster.kubelet("b").delete(&on_b).await?;
    eventually("no VM anywhere", || {
        cluster
            .network
            .node("a")
            .ask(&["vm", "list"])
            .is_ok_and(|vms| vms.as_array().is_some_and(Vec::is_empty))
    })
    .await?;
    let anew = run(&cluster, "a", "store-3", &[]).await?;
    eventually("the group to start anew", || is_ready(&anew)).await?;
    let vms = cluster.network.node("a").ask(&["vm", "inspect", VM])?;
    ensure!(vms[0]["generation"] == 1 && vms[0]["protected"] == false, "{vms:#}");
    ensure!(vms[0]["placement"].as_str().is_some_and(|why| why.contains("no other node")), "{vms:#}");
    cluster.kubelet("a").delete(&anew).await?;
    let left = || cluster.kubelet("a").leavings(&cluster.network.node("a").netns()).unwrap_or_default();
    eventually("no interface left", || {
        left().replace("cni0", "").trim() == links_before.replace("cni0", "").trim()
    })
    .await
    .with_context(left)
}

#[tokio::test]
async fn a_group_that_cannot_be_protected_says_so_where_the_user_looks() -> Result<()> {
    let Some(mut cluster) = Cluster::make(2).await? else { return Ok(()) };
    let bad = run(&cluster, "a", "bad", &[("endophyte.mycelium.io/on-loss", "panic")]).await.unwrap_err();
    ensure!(format!("{bad:#}").contains("degrade and halt"), "{bad:#}");

    // Under halt the guest waits for a replica, and says so.
    let halting = [("endophyte.mycelium.io/on-loss", "halt")];
    let on_a = run(&cluster, "a", "store-0", &halting).await?;
    let stands = || {
        let vms = cluster.network.node("a").ask(&["vm", "inspect", VM]).unwrap_or_default();
        !is_ready(&on_a) && vms[0]["state"] == "halted" && vms[0]["placement"] != ""
    };
    eventually("a guest that stands for want of a replica", stands).await?;
    let on_b = run(&cluster, "b", "store-1", &halting).await?;
    eventually("the guest to run", || is_ready(&on_a)).await?;
    cluster.kubelet("a").delete(&on_a).await?;
    cluster.kubelet("b").delete(&on_b).await?;

    cluster.network.node_mut("a").kill_daemon();
    let absent = run(&cluster, "a", "store-2", &[]).await.unwrap_err();
    ensure!(format!("{absent:#}").contains("mycelium node run"), "{absent:#}");
    Ok(())
}

#[tokio::test]
async fn vmms_of_a_group_that_die_or_stop_are_replaced_and_never_doubled() -> Result<()> {
    let Some(mut cluster) = Cluster::make(2).await? else { return Ok(()) };
    let on_a = run(&cluster, "a", "store-0", &[]).await?;
    let on_b = run(&cluster, "b", "store-1", &[]).await?;
    let signal = |cluster: &Cluster, node: &str, signal| -> Result<()> {
        Ok(kill_process(cluster.network.node(node).vmm(VM)?, signal)?)
    };
    ensure!(cluster.network.protected("a").await? == ("a".to_owned(), "b".to_owned()));
    signal(&cluster, "a", Signal::KILL)?;
    eventually("the other pod to be active", || is_ready(&on_b)).await?;
    let pair =
        cluster.network.protected("b").await.context("the container is started again, as the replica")?;
    ensure!(pair == ("b".to_owned(), "a".to_owned()), "{pair:?}");

    // Both at once: nobody is left to take over, and the group starts anew.
    signal(&cluster, "a", Signal::KILL)?;
    signal(&cluster, "b", Signal::KILL)?;
    eventually("either pod to be ready", || is_ready(&on_a) || is_ready(&on_b)).await?;
    let (active, replica) = cluster.network.protected("a").await.context("after both were killed")?;

    // A VMM that stands still under a new daemon still is the VM's: nobody starts it a second time.
    let pod = if replica == "a" { &on_a } else { &on_b };
    cluster.kubelet(&replica).delete(pod).await?;
    eventually("one VMM left", || {
        let vms = cluster.network.node(&active).ask(&["vm", "list"]).unwrap_or_default();
        vms.as_array().is_some_and(|vms| vms.len() == 1) && vms[0]["state"] == "unprotected"
    })
    .await?;
    let vmm = cluster.network.node(&active).vmm(VM)?;
    kill_process(vmm, Signal::STOP)?;
    cluster.network.node_mut(&active).kill_daemon();
    cluster.network.node_mut(&active).start_daemon().await?;
    eventually("both daemons back", || {
        cluster.network.node(&replica).status().is_ok_and(|status| alive(&status) == 2)
    })
    .await?;
    let doubled = run(&cluster, &replica, "store-2", &[]).await.unwrap_err();
    ensure!(format!("{doubled:#}").contains("who runs it is not clear"), "{doubled:#}");
    kill_process(vmm, Signal::CONT)?;
    run(&cluster, &replica, "store-3", &[]).await?;
    let pair = cluster.network.protected(&active).await.context("after the VMM went on")?;
    ensure!(pair == (active, replica), "{pair:?}");
    Ok(())
}

async fn run(cluster: &Cluster, node: &str, name: &str, more: &[(&str, &str)]) -> Result<GroupPod> {
    let kubelet = cluster.kubelet(node);
    kubelet.run(&kubelet.spec(name, "store", more)).await
}

/// Waits until the client has had that many more replies.
async fn counts(client: &Reconnecting, more: u64) -> Result<()> {
    let goal = client.acked() + more;
    eventually("replies", || client.acked() >= goal).await
}
