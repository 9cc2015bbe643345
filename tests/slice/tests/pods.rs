//! Pods whose image is a VM, on a real containerd, driven as kubelet and as `ctr` drive it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use slice_tests::containerd::{NATIVE, PLAIN};
use slice_tests::cri::Cri;
use slice_tests::world::{MEMORY, World, eventually, pids};

const SHIM: &str = "containerd-shim-endophyte-v2";
const VMM: &str = "endophyte";
const PODS: usize = 30;
const KILLED: usize = 8;
/// Pods alive at a time: two processors carry no more.
const ALIVE: usize = 4;
const EXIT: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_pod_is_a_vm_from_start_to_removal() -> Result<()> {
    let Some(world) = World::make().await? else { return Ok(()) };
    let (client, from) = world.client().await?;
    let (pod, vm) = world.cri.run(&world.spec("store"), NATIVE, Some(MEMORY)).await?;
    let address = world.cri.address(&pod).await?;

    world.serves(&from, &address).await?;
    ensure!(world.redis(&from, &address, &["SET", "k", "v"])? == "OK");
    ensure!(world.redis(&from, &address, &["GET", "k"])? == "v");
    world.log_has("store", "native-guest: ready").await?;
    world.log_has("store", &format!("ip={address}")).await.context("the guest has the pod's address")?;
    world.log_has("store", "mem=62MiB").await.context("the memory limit is the guest's memory")?;
    ensure!(pids(VMM, &vm).len() == 1, "one VMM, and none for the pause container");

    let stats = world.cri.stats(&vm).await?;
    let used = stats.memory.and_then(|m| m.working_set_bytes).map_or(0, |bytes| bytes.value);
    ensure!((1 << 20..MEMORY.unsigned_abs() * 2).contains(&used), "working set {used}");
    ensure!(stats.cpu.and_then(|c| c.usage_core_nano_seconds).is_some_and(|ns| ns.value > 0));

    let refused = format!("{:#}", world.cri.exec(&vm, &["ls"]).await.unwrap_err());
    ensure!(refused.contains("not supported for VM images") && refused.contains("console"), "{refused}");

    world.cri.stop(&vm, 10).await?;
    ensure!(world.cri.exited(&vm, EXIT).await? == 0, "a VM that was asked to end ends well");
    world.cri.remove(&vm).await?;
    world.cri.remove_pod(&pod).await?;
    world.cri.remove_pod(&client).await?;
    world.is_clean().await?;

    let said = world.containerd.install("uninstall")?;
    ensure!(said.contains("remove") && said.contains("containerd-shim-endophyte-v2"), "{said}");
    ensure!(world.containerd.install("uninstall")?.contains("nothing to do"));
    Ok(())
}

#[tokio::test]
async fn ctr_runs_a_vm() -> Result<()> {
    let Some(world) = World::make().await? else { return Ok(()) };
    let ctr = |line: &str| world.containerd.ctr(&line.split(' ').collect::<Vec<_>>());
    let log = tempfile::NamedTempFile::new()?;
    let uri = format!("file://{}", log.path().display());
    ctr(&format!("-n k8s.io run -d --runtime io.containerd.endophyte.v2 --log-uri {uri} {PLAIN} nothing"))
        .unwrap_err();
    ctr("-n k8s.io container rm nothing")?;
    // Without a network namespace the command line cannot be filled in: that image needs one.
    let refused =
        ctr(&format!("-n k8s.io run -d --runtime io.containerd.endophyte.v2 {NATIVE} alone")).unwrap_err();
    ensure!(format!("{refused:#}").contains("needs {ip}"), "{refused:#}");
    ctr("-n k8s.io container rm alone")?;

    // A network plugin that gives no address: the pod's event says whose doing that is.
    std::fs::create_dir_all("/run/netns")?;
    for line in ["netns add bare", "-n bare link add eth0 type veth peer name eth1"] {
        slice_tests::machine::run("ip", &line.split(' ').collect::<Vec<_>>())?;
    }
    let bare = "--with-ns network:/run/netns/bare";
    let refused = ctr(&format!("-n k8s.io run -d --runtime io.containerd.endophyte.v2 {bare} {NATIVE} bare"));
    let refused = format!("{:#}", refused.unwrap_err());
    ensure!(refused.contains("has no IPv4 address") && refused.contains("CNI"), "{refused}");
    ctr("-n k8s.io container rm bare")?;
    slice_tests::machine::run("ip", &["netns", "del", "bare"])?;

    let (pod, netns) = world.client().await?;
    let ns = format!("network:{}", netns.display());
    let run = "run -d --runtime io.containerd.endophyte.v2";
    ctr(&format!("-n k8s.io {run} --with-ns {ns} --log-uri {uri} {NATIVE} vm"))?;
    eventually("the guest's first line", || {
        std::fs::read_to_string(log.path()).is_ok_and(|text| text.contains("native-guest: ready"))
    })
    .await?;
    ensure!(ctr("-n k8s.io task ls")?.contains("RUNNING"));
    ctr("-n k8s.io task pause vm")?;
    ensure!(ctr("-n k8s.io task ls")?.contains("PAUSED"));
    ctr("-n k8s.io task resume vm")?;
    ensure!(ctr("-n k8s.io task metrics vm")?.contains("memory.usage_in_bytes"));
    ctr("-n k8s.io task kill -s SIGKILL vm")?;
    eventually("the VM's end", || ctr("-n k8s.io task ls").is_ok_and(|text| text.contains("STOPPED")))
        .await?;
    ctr("-n k8s.io task rm vm")?;
    ctr("-n k8s.io container rm vm")?;
    world.cri.remove_pod(&pod).await?;
    world.is_clean().await
}

#[tokio::test]
async fn thirty_pods_of_which_eight_meet_a_killed_shim_vmm_or_containerd_leave_nothing() -> Result<()> {
    let Some(mut world) = World::make().await? else { return Ok(()) };
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut to_kill: Vec<Option<&str>> = vec![None; PODS];
    for victim in rand::seq::index::sample(&mut random, PODS, KILLED) {
        to_kill[victim] = Some(["shim", "vmm", "containerd"][random.random_range(0..3)]);
    }
    let mut running = Vec::new();
    for (n, victim) in to_kill.into_iter().enumerate() {
        let (pod, vm) = world.cri.run(&world.spec(&format!("pod-{n}")), NATIVE, Some(MEMORY)).await?;
        match victim {
            Some("shim") => world.kill(SHIM, &pod.id)?,
            Some("vmm") => world.kill(VMM, &vm)?,
            Some(_) => {
                world.containerd.kill();
                world.containerd.start_again()?;
                world.cri = Cri::connect(&world.containerd.socket()).await?;
            }
            None => {}
        }
        println!("pod {n}: {}", victim.unwrap_or("left alone"));
        running.push(pod);
        // At most a few at a time, and the oldest or the youngest goes first.
        if running.len() > ALIVE {
            let at = if random.random() { 0 } else { running.len() - 1 };
            world.cri.remove_pod(&running.remove(at)).await?;
        }
    }
    for pod in &running {
        world.cri.remove_pod(pod).await?;
    }
    world.is_clean().await
}

#[tokio::test]
async fn what_cannot_be_a_vm_says_why_where_the_user_looks() -> Result<()> {
    let Some(world) = World::make().await? else { return Ok(()) };
    let pod = world.cri.run_pod(&world.spec("plain")).await?;
    let container = world.cri.create(&pod, "vm", PLAIN, None).await?;
    let refused = format!("{:#}", world.cri.start(&container).await.unwrap_err());
    ensure!(refused.contains("nothing to boot") && refused.contains("/boot/kernel"), "{refused}");
    world.cri.remove_pod(&pod).await?;

    let mut spec = world.spec("annotated");
    spec.annotations = vec![("endophyte.mycelium.io/memory".into(), "a lot".into())];
    let refused = format!("{:#}", world.cri.run_pod(&spec).await.unwrap_err());
    ensure!(refused.contains("a lot") && refused.contains("512Mi"), "{refused}");

    let (pod, _) = world.cri.run(&world.spec("two"), NATIVE, Some(MEMORY)).await?;
    let second = world.cri.create(&pod, "second", NATIVE, Some(MEMORY)).await?;
    let refused = format!("{:#}", world.cri.start(&second).await.unwrap_err());
    ensure!(refused.contains("a pod has one VM"), "{refused}");
    world.cri.remove_pod(&pod).await?;
    world.is_clean().await
}

#[tokio::test]
async fn pods_outlive_a_restart_of_containerd() -> Result<()> {
    let Some(mut world) = World::make().await? else { return Ok(()) };
    let (client, from) = world.client().await?;
    let (pod, vm) = world.cri.run(&world.spec("store"), NATIVE, Some(MEMORY)).await?;
    let address = world.cri.address(&pod).await?;
    world.serves(&from, &address).await?;
    world.redis(&from, &address, &["SET", "k", "v"])?;

    world.containerd.kill();
    ensure!(world.redis(&from, &address, &["GET", "k"])? == "v", "the VM does not need containerd");
    world.containerd.start_again()?;
    world.cri = Cri::connect(&world.containerd.socket()).await?;
    ensure!(world.redis(&from, &address, &["GET", "k"])? == "v");
    ensure!(world.cri.status(&vm).await?.finished_at == 0, "containerd knows that it runs");
    world.cri.stats(&vm).await?;
    world.cri.stop(&vm, 10).await?;
    ensure!(world.cri.exited(&vm, EXIT).await? == 0);
    world.cri.remove_pod(&pod).await?;
    world.cri.remove_pod(&client).await?;
    world.is_clean().await
}

#[tokio::test]
async fn a_killed_vmm_or_shim_is_an_exit_and_the_pod_can_start_again() -> Result<()> {
    let Some(world) = World::make().await? else { return Ok(()) };
    let (client, from) = world.client().await?;
    let (pod, vm) = world.cri.run(&world.spec("vmm"), NATIVE, Some(MEMORY)).await?;
    world.kill(VMM, &vm)?;
    ensure!(world.cri.exited(&vm, EXIT).await? == 137);
    world.cri.remove(&vm).await?;
    let again = world.cri.create(&pod, "vm", NATIVE, Some(MEMORY)).await?;
    world.cri.start(&again).await.context("the same pod, its interface taken a second time")?;
    world.serves(&from, &world.cri.address(&pod).await?).await?;

    world.kill(SHIM, &pod.id)?;
    // containerd's own word for a shim it lost is 255, or what the shim's `delete` says, whichever it hears first.
    ensure!([137, 255].contains(&world.cri.exited(&again, EXIT).await?));
    eventually("the end of the VM of a killed shim", || pids(VMM, &again).is_empty()).await?;
    world.cri.remove_pod(&pod).await?;
    world.cri.remove_pod(&client).await?;
    world.is_clean().await
}
