//! Three nodes, each in a namespace of its own, with real daemons and real VMs between them.

use std::fs::File;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use slice_tests::counter::Counter;
use slice_tests::network::{GUEST, Network, alive, voters};
use slice_tests::resp::Resp;
use slice_tests::world::{eventually, pids};

#[tokio::test]
async fn a_network_forms_and_refuses_whom_it_must() -> Result<()> {
    let Some(mut network) = Network::lay(3).await? else { return Ok(()) };
    let outside = network.node("a").ask(&["vm", "list"]).unwrap_err();
    ensure!(format!("{outside:#}").contains("mycelium network init"), "{outside:#}");
    network.node("a").ask(&["network", "init"])?;
    let invitation = network.invitation()?;
    network.node("b").ask(&["network", "join", &invitation])?;
    let replayed = network.node("c").ask(&["network", "join", &invitation]).unwrap_err();
    ensure!(format!("{replayed:#}").contains("used"), "{replayed:#}");
    let nonsense = network.node("c").ask(&["network", "join", "mycelium1-nonsense"]).unwrap_err();
    ensure!(format!("{nonsense:#}").contains("invitation"), "{nonsense:#}");
    let again = network.node("b").ask(&["network", "init"]).unwrap_err();
    ensure!(format!("{again:#}").contains("already"), "{again:#}");
    let invitation = network.invitation()?;
    network.node("c").ask(&["network", "join", &invitation])?;
    eventually("three voters", || network.node("b").status().is_ok_and(|s| voters(&s).len() == 3)).await?;

    // A daemon that comes back is the same node, as a new member.
    network.node_mut("b").kill_daemon();
    eventually("two alive", || network.node("c").status().is_ok_and(|s| alive(&s) == 2)).await?;
    network.node_mut("b").start_daemon().await?;
    eventually("three alive", || network.node("c").status().is_ok_and(|s| alive(&s) == 3)).await?;

    // A node that leaves has forgotten the network, and may come in again as anybody may.
    network.node("c").ask(&["network", "leave"])?;
    ensure!(network.node("c").status()?["state"] == "outside");
    let invitation = network.invitation()?;
    network.node("c").ask(&["network", "join", &invitation])?;
    eventually("three alive again", || network.node("a").status().is_ok_and(|s| alive(&s) == 3)).await
}

#[tokio::test]
async fn a_vm_outlives_two_nodes_in_turn() -> Result<()> {
    let Some(mut network) = Network::lay(3).await? else { return Ok(()) };
    network.form().await?;
    let spec = network.spec(64)?.display().to_string();
    network.node("a").ask(&["vm", "run", "--spec", &spec, "--protect"])?;
    let (active, first) = network.protected("a").await?;
    ensure!(active == "a" && first != "a", "{active} {first}");
    let client = Counter::once_served(GUEST).await?;
    counts(&client, 300).await?;

    network.node_mut("a").lose();
    let (active, second) = network.protected(&first).await.context("after the loss of node a")?;
    ensure!(active == first && second != "a", "{active} {second}");
    counts(&client, 300).await.context("after the first takeover")?;
    // Two nodes are left: the vote belongs to the one that holds the replica.
    eventually("the vote to be with the replica", || {
        network.node(&second).status().is_ok_and(|s| voters(&s) == [second.clone()])
    })
    .await?;

    network.node_mut(&first).lose();
    counts(&client, 300).await.context("after the second takeover")?;
    let vms = network.node(&second).ask(&["vm", "inspect", "store"])?;
    let active: Vec<_> = vms.as_array().into_iter().flatten().filter(|vm| vm["role"] == "active").collect();
    ensure!(active.len() == 1 && active[0]["node_name"] == second.as_str(), "{vms:#}");
    ensure!(active[0]["generation"] == 3, "{vms:#}");
    let counted = client.finish().context("nothing acknowledged may be lost or repeated")?;
    println!("{} acknowledged over two losses, longest gap {} ms", counted.acked, counted.gap.as_millis());
    Ok(())
}

#[tokio::test]
async fn a_daemon_that_dies_finds_its_vms_again_and_a_failover_can_be_ordered() -> Result<()> {
    let Some(mut network) = Network::lay(2).await? else { return Ok(()) };
    network.form().await?;
    let spec = network.spec(64)?.display().to_string();
    network.node("a").ask(&["vm", "run", "--spec", &spec, "--protect"])?;
    network.protected("a").await?;
    network.node_mut("a").kill_daemon();
    network.node_mut("a").start_daemon().await?;
    let (active, replica) = network.protected("a").await.context("after the daemon's restart")?;
    ensure!((active.as_str(), replica.as_str()) == ("a", "b"));

    // On purpose: the replica takes over, and the old node becomes the replica's.
    network.node("a").ask(&["vm", "failover", "store"])?;
    let (active, replica) = network.protected("b").await.context("after the failover")?;
    ensure!((active.as_str(), replica.as_str()) == ("b", "a"));
    let wrong = network.node("a").ask(&["vm", "failover", "store"]).unwrap_err();
    ensure!(format!("{wrong:#}").contains("no replica in sync"), "{wrong:#}");

    // And back, without a silence.
    let client = Counter::once_served(GUEST).await?;
    counts(&client, 100).await?;
    let handed = network.node("b").ask(&["vm", "failover", "store", "--planned"])?;
    ensure!(handed["generation"] == 3 && handed["vm"] == "store", "{handed:#}");
    let (active, replica) = network.protected("a").await.context("after the handover")?;
    ensure!((active.as_str(), replica.as_str()) == ("a", "b"));
    counts(&client, 100).await?;
    client.finish().context("nothing acknowledged may be lost or repeated")?;
    let wrong = network.node("b").ask(&["vm", "failover", "store", "--planned"]).unwrap_err();
    ensure!(format!("{wrong:#}").contains("ask the process that is its active"), "{wrong:#}");

    network.node("a").ask(&["vm", "stop", "store"])?;
    network.node("a").ask(&["vm", "rm", "store"])?;
    eventually("no VM anywhere", || {
        network.node("a").ask(&["vm", "list"]).is_ok_and(|vms| vms.as_array().is_some_and(Vec::is_empty))
    })
    .await
}

#[tokio::test]
async fn a_daemon_killed_during_protect_is_back_with_one_replica() -> Result<()> {
    let Some(mut network) = Network::lay(2).await? else { return Ok(()) };
    network.form().await?;
    let spec = network.spec(64)?.display().to_string();
    network.node("a").ask(&["vm", "run", "--spec", &spec])?;
    let ours = network.dir().display().to_string();
    // Where in its work the daemon dies is left to chance; the first delays meet it before, the last ones after.
    for (victim, delay_ms) in [("a", 5), ("b", 20), ("b", 60), ("b", 120), ("a", 60), ("a", 150)] {
        std::thread::scope(|scope| {
            let active = network.node("a");
            scope.spawn(move || active.ask(&["vm", "protect", "store"]));
            std::thread::sleep(Duration::from_millis(delay_ms));
            network.node(victim).signal_daemon(Signal::KILL)
        })?;
        network.node_mut(victim).kill_daemon();
        network.node_mut(victim).start_daemon().await?;
        let back = async {
            eventually("both daemons back", || network.node("a").status().is_ok_and(|s| alive(&s) == 2))
                .await?;
            network.node("a").ask(&["vm", "protect", "store"])?;
            network.protected("a").await?;
            eventually("one process on each node", || pids("endophyte", &ours).len() == 2).await?;
            network.node("a").ask(&["vm", "protect", "store", "--off"])?;
            eventually("one process in all", || pids("endophyte", &ours).len() == 1).await
        };
        back.await.with_context(|| format!("daemon of {victim} killed after {delay_ms} ms"))?;
    }
    Ok(())
}

/// Sectors the guest works on, spread over a disk.
const SECTORS: std::ops::Range<u64> = 0..48;
const STRIDE: u64 = 997;

fn fill(guest: &mut Resp, byte: u8) -> Result<()> {
    SECTORS.into_iter().try_for_each(|sector| guest.write_sector(sector * STRIDE, byte))?;
    guest.flush()
}

fn is_filled(guest: &mut Resp, byte: u8) -> Result<()> {
    SECTORS.into_iter().try_for_each(|sector| {
        let found = guest.read_sector(sector * STRIDE)?;
        ensure!(found == byte, "sector {} holds {found} instead of {byte}", sector * STRIDE);
        Ok(())
    })
}

#[tokio::test]
async fn what_is_written_to_a_disk_outlives_its_node_there_and_back() -> Result<()> {
    let Some(mut network) = Network::lay(2).await? else { return Ok(()) };
    network.form().await?;
    let image = network.dir().join("data.img");
    File::create(&image)?.set_len(64 << 20)?;
    let spec = network.spec(64)?;
    let text = std::fs::read_to_string(&spec)?;
    std::fs::write(&spec, format!("{text}\n[[disk]]\npath = {image:?}\nserial = \"data\"\n"))?;
    network.node("a").ask(&["vm", "run", "--spec", &spec.display().to_string(), "--protect"])?;
    network.protected("a").await?;
    let of_b = network.node("b").state().join("vms/store/disks/disk0.raw");
    ensure!(std::fs::metadata(&of_b)?.len() == 64 << 20);
    let mut guest = Resp::once_served(GUEST).await?;
    fill(&mut guest, 1)?;
    eventually("the vote to be with the replica", || {
        network.node("b").status().is_ok_and(|s| voters(&s) == ["b"])
    })
    .await?;

    network.node_mut("a").lose();
    is_filled(&mut guest, 1).context("after the loss of node a")?;
    fill(&mut guest, 2)?;
    // The node that is back gives the image it had, whatever that holds, and none of anybody else.
    network.node_mut("a").come_back().await?;
    let (active, replica) = network.protected("b").await.context("after the return of node a")?;
    ensure!((active.as_str(), replica.as_str()) == ("b", "a"));
    ensure!(!network.node("a").state().join("vms/store/disks").exists());
    fill(&mut guest, 3)?;
    network.node("b").ask(&["vm", "failover", "store"])?;
    is_filled(&mut guest, 3).context("after the way back")?;
    network.protected("a").await.context("after the way back")?;

    // A replica that is given up leaves no image; one that is wanted again gets one.
    network.node("a").ask(&["vm", "protect", "store", "--off"])?;
    eventually("the replica's image to go", || !of_b.exists()).await?;
    network.node("a").ask(&["vm", "protect", "store"])?;
    network.protected("a").await.context("protected anew")?;
    network.node("a").ask(&["vm", "failover", "store", "--planned"])?;
    network.protected("b").await.context("after the handover")?;
    is_filled(&mut guest, 3).context("after the handover")?;

    // What may be the only copy does not go by the way.
    network.node("b").ask(&["vm", "stop", "store"])?;
    let kept = network.node("b").ask(&["vm", "rm", "store"]).unwrap_err();
    ensure!(format!("{kept:#}").contains("--discard-disks") && of_b.exists(), "{kept:#}");
    network.node("b").ask(&["vm", "rm", "store", "--discard-disks"])?;
    ensure!(!of_b.exists() && image.exists());
    Ok(())
}

/// Waits until the client has had that many more replies.
async fn counts(client: &Counter, more: u64) -> Result<()> {
    let goal = client.acked() + more;
    eventually("replies", || client.acked() >= goal).await
}
