//! A cluster on one machine: the nodes of a [`Network`], each with a containerd of its own; the test is their kubelet.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::Mutex;
use tokio::task::AbortHandle;

use crate::containerd::{Containerd, NATIVE, Node};
use crate::cri::{Cri, Pod, PodSpec};
use crate::network::{Network, address, ip};
use crate::world::MEMORY;
use crate::{HANDLER, machine};

/// How long a readiness probe waits for an answer.
const PROBE: Duration = Duration::from_millis(200);
/// Interval of looks at whether a container has exited.
const TEND: Duration = Duration::from_millis(200);
const GROUP: &str = "endophyte.mycelium.io/group";

/// The cluster.
#[derive(Debug)]
pub struct Cluster {
    /// Its nodes' daemons.
    pub network: Network,
    kubelets: BTreeMap<String, Kubelet>,
}

/// A node's pods: what has exited is started again, as kubelet does it under `restartPolicy: Always`.
#[derive(Debug)]
pub struct Kubelet {
    cri: Cri,
    containerd: Containerd,
    logs: PathBuf,
    /// Container of every pod, by the pod's sandbox.
    containers: Arc<Mutex<BTreeMap<String, (Pod, String)>>>,
    tending: AbortHandle,
}

/// A pod of a group.
#[derive(Clone, Debug)]
pub struct GroupPod {
    pod: Pod,
    /// The pod's address.
    pub address: String,
}

impl Cluster {
    /// Makes a cluster whose daemons are one network; `None` when this machine lacks something.
    ///
    /// # Errors
    /// When something does not come up.
    pub async fn make(nodes: usize) -> Result<Option<Self>> {
        let Some(network) = Network::lay(nodes).await? else { return Ok(None) };
        network.form().await?;
        network.reach()?;
        let mut kubelets = BTreeMap::new();
        for (number, node) in network.nodes().iter().enumerate() {
            let subnet = format!("10.88.{}.0/24", number + 1);
            let dir = network.dir().join(&node.name).join("containerd");
            let at = Node { netns: node.netns(), socket: node.socket() };
            let containerd = Containerd::start_on(&dir, network.programs(), &subnet, Some(at))?;
            let cri = Cri::connect(&containerd.socket()).await?;
            // Clients of the cluster find every node's pods by its address.
            ip(&format!("route add {subnet} via {}", address(number)))?;
            let containers = Arc::<Mutex<_>>::default();
            let tending = tokio::spawn(tend(cri.clone(), containers.clone())).abort_handle();
            let kubelet = Kubelet { cri, containerd, logs: dir.join("logs"), containers, tending };
            kubelets.insert(node.name.clone(), kubelet);
        }
        Ok(Some(Self { network, kubelets }))
    }

    /// A node's pods.
    #[must_use]
    pub fn kubelet(&self, node: &str) -> &Kubelet {
        &self.kubelets[node]
    }

    /// Loses a node with everything on it.
    pub fn lose(&mut self, node: &str) {
        self.network.node_mut(node).lose();
        if let Some(kubelet) = self.kubelets.get_mut(node) {
            kubelet.tending.abort();
            kubelet.containerd.kill();
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::env::var_os("SLICE_LOG").is_none() {
            return;
        }
        for (node, kubelet) in &self.kubelets {
            eprintln!("containerd of {node}:\n{}", kubelet.containerd.log());
            for pod in std::fs::read_dir(&kubelet.logs).into_iter().flatten().flatten() {
                let name = pod.file_name().to_string_lossy().into_owned();
                eprintln!("pod {name} of {node}:\n{}", kubelet.log(&name));
            }
        }
    }
}

impl Kubelet {
    /// A pod of a group, not made yet.
    #[must_use]
    pub fn spec(&self, name: &str, group: &str, more: &[(&str, &str)]) -> PodSpec {
        let more = more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        PodSpec {
            name: name.to_owned(),
            annotations: std::iter::once((GROUP.to_owned(), group.to_owned())).chain(more).collect(),
            handler: HANDLER.to_owned(),
            log_dir: self.logs.join(name).display().to_string(),
        }
    }

    /// Runs a pod of a group.
    ///
    /// # Errors
    /// containerd's, which is what a pod's event shows.
    pub async fn run(&self, spec: &PodSpec) -> Result<GroupPod> {
        let pod = self.cri.run_pod(spec).await?;
        let started = async {
            let vm = self.cri.create(&pod, "vm", NATIVE, Some(MEMORY)).await?;
            self.cri.start(&vm).await?;
            Ok((vm, self.cri.address(&pod).await?))
        };
        match started.await {
            Ok((vm, address)) => {
                self.containers.lock().await.insert(pod.id.clone(), (pod.clone(), vm));
                Ok(GroupPod { pod, address })
            }
            Err(error) => {
                // The user deletes what cannot start.
                self.cri.remove_pod(&pod).await?;
                Err(error)
            }
        }
    }

    /// Deletes a pod: it is asked to end, and removed.
    ///
    /// # Errors
    /// containerd's.
    pub async fn delete(&self, pod: &GroupPod) -> Result<()> {
        self.containers.lock().await.remove(&pod.pod.id);
        self.cri.remove_pod(&pod.pod).await
    }

    /// Whether a pod's container runs.
    ///
    /// # Errors
    /// containerd's.
    pub async fn is_running(&self, pod: &GroupPod) -> Result<bool> {
        let containers = self.containers.lock().await;
        let (_, vm) = containers.get(&pod.pod.id).context("the pod is deleted")?;
        Ok(self.cri.status(vm).await?.finished_at == 0)
    }

    /// What a pod's VM and its VMM have said.
    #[must_use]
    pub fn log(&self, pod: &str) -> String {
        std::fs::read_to_string(self.logs.join(pod).join("vm.log")).unwrap_or_default()
    }

    /// Interfaces of this node, of which pods must leave none.
    ///
    /// # Errors
    /// When the node cannot be asked.
    pub fn leavings(&self, netns: &std::path::Path) -> Result<String> {
        let links = machine::run_in(netns, "ip", &["-o", "link", "show"])?;
        let links: Vec<&str> = links.lines().filter_map(|line| line.split(": ").nth(1)).collect();
        Ok(links.join(" "))
    }
}

async fn tend(cri: Cri, containers: Arc<Mutex<BTreeMap<String, (Pod, String)>>>) {
    loop {
        tokio::time::sleep(TEND).await;
        for (pod, vm) in containers.lock().await.values_mut() {
            // One that is not there any more was removed before it could be made anew.
            if cri.status(vm).await.is_ok_and(|status| status.finished_at == 0) {
                continue;
            }
            let again = async {
                let _ = cri.remove(vm).await;
                *vm = cri.create(pod, "vm", NATIVE, Some(MEMORY)).await?;
                cri.start(vm).await
            };
            let how = again.await;
            println!("a container of pod {} had exited; started again: {how:?}", pod.id);
        }
    }
}

/// A TCP readiness probe, as kubelet makes it.
#[must_use]
pub fn is_ready(pod: &GroupPod) -> bool {
    let Ok(server) = server(&pod.address) else { return false };
    TcpStream::connect_timeout(&server, PROBE).is_ok()
}

/// Where a pod serves.
///
/// # Errors
/// When the address is none.
pub fn server(address: &str) -> Result<SocketAddr> {
    format!("{address}:6379").parse().with_context(|| format!("{address} is no address"))
}
