//! Pods through containerd's CRI socket, in the order in which kubelet makes its calls.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hyper_util::rt::TokioIo;
use k8s_cri::v1 as cri;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// The longest a call may take; kubelet's own limit is two minutes.
const CALL: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

/// What kubelet has of a containerd.
#[derive(Clone, Debug)]
pub struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

/// What is asked for in a pod.
#[derive(Clone, Debug, Default)]
pub struct PodSpec {
    /// Its name, unique on the node.
    pub name: String,
    /// Annotations of the pod.
    pub annotations: Vec<(String, String)>,
    /// Runtime class handler.
    pub handler: String,
    /// Folder for the containers' logs.
    pub log_dir: String,
}

/// A pod that was made.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its sandbox.
    pub id: String,
    config: cri::PodSandboxConfig,
}

impl Cri {
    /// Connects to a containerd's socket, and waits until its CRI plugin answers, which it does later than containerd itself.
    ///
    /// # Errors
    /// When it does not.
    pub async fn connect(socket: &Path) -> Result<Self> {
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://containerd.invalid").timeout(CALL);
        let channel = endpoint.connect_with_connector_lazy(connector);
        let runtime = RuntimeServiceClient::new(channel.clone());
        let deadline = Instant::now() + CALL;
        while let Err(status) = runtime.clone().list_pod_sandbox(cri::ListPodSandboxRequest::default()).await
        {
            if Instant::now() > deadline {
                return Err(status).context("the CRI plugin does not answer");
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(Self { runtime, images: ImageServiceClient::new(channel) })
    }

    /// Makes a pod's sandbox.
    ///
    /// # Errors
    /// containerd's.
    pub async fn run_pod(&self, spec: &PodSpec) -> Result<Pod> {
        let metadata = cri::PodSandboxMetadata {
            name: spec.name.clone(),
            uid: format!("uid-{}", spec.name),
            namespace: "default".to_owned(),
            attempt: 0,
        };
        let config = cri::PodSandboxConfig {
            metadata: Some(metadata),
            hostname: spec.name.clone(),
            log_directory: spec.log_dir.clone(),
            annotations: spec.annotations.iter().cloned().collect(),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: format!("/endophyte-tests/{}", spec.name),
                ..Default::default()
            }),
            ..Default::default()
        };
        let request =
            cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: spec.handler.clone() };
        let reply = self.runtime.clone().run_pod_sandbox(request).await.context("RunPodSandbox")?;
        Ok(Pod { id: reply.into_inner().pod_sandbox_id, config })
    }

    /// Creates a container in a pod.
    ///
    /// # Errors
    /// containerd's.
    pub async fn create(&self, pod: &Pod, name: &str, image: &str, memory: Option<i64>) -> Result<String> {
        let metadata = cri::ContainerMetadata { name: name.to_owned(), attempt: 0 };
        let resources =
            cri::LinuxContainerResources { memory_limit_in_bytes: memory.unwrap_or(0), ..Default::default() };
        let config = cri::ContainerConfig {
            metadata: Some(metadata),
            image: Some(cri::ImageSpec { image: image.to_owned(), ..Default::default() }),
            log_path: format!("{name}.log"),
            linux: Some(cri::LinuxContainerConfig { resources: Some(resources), security_context: None }),
            ..Default::default()
        };
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let reply = self.runtime.clone().create_container(request).await.context("CreateContainer")?;
        Ok(reply.into_inner().container_id)
    }

    /// Starts a container.
    ///
    /// # Errors
    /// containerd's, which is what a pod's event shows.
    pub async fn start(&self, container: &str) -> Result<()> {
        let request = cri::StartContainerRequest { container_id: container.to_owned() };
        self.runtime.clone().start_container(request).await.map(drop).context("StartContainer")
    }

    /// A pod with one container, running.
    ///
    /// # Errors
    /// containerd's.
    pub async fn run(&self, spec: &PodSpec, image: &str, memory: Option<i64>) -> Result<(Pod, String)> {
        let pod = self.run_pod(spec).await?;
        let container = self.create(&pod, "vm", image, memory).await?;
        self.start(&container).await?;
        Ok((pod, container))
    }

    /// Address of a pod.
    ///
    /// # Errors
    /// containerd's, and when it has none.
    pub async fn address(&self, pod: &Pod) -> Result<String> {
        let (status, _) = self.pod_status(pod).await?;
        status.network.map(|network| network.ip).filter(|ip| !ip.is_empty()).context("the pod has no address")
    }

    /// Network namespace of a pod.
    ///
    /// # Errors
    /// containerd's, and when it does not say.
    pub async fn netns(&self, pod: &Pod) -> Result<std::path::PathBuf> {
        let (_, info) = self.pod_status(pod).await?;
        let info: serde_json::Value = serde_json::from_str(info.get("info").context("no info")?)?;
        let namespaces = info.pointer("/runtimeSpec/linux/namespaces").and_then(|n| n.as_array());
        let network = namespaces.into_iter().flatten().find(|n| n["type"] == "network");
        network.and_then(|n| n["path"].as_str()).map(Into::into).context("the pod has no network namespace")
    }

    async fn pod_status(&self, pod: &Pod) -> Result<(cri::PodSandboxStatus, HashMap<String, String>)> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
        let reply = self.runtime.clone().pod_sandbox_status(request).await.context("PodSandboxStatus")?;
        let reply = reply.into_inner();
        Ok((reply.status.context("no status")?, reply.info))
    }

    /// How a container is.
    ///
    /// # Errors
    /// containerd's.
    pub async fn status(&self, container: &str) -> Result<cri::ContainerStatus> {
        let request = cri::ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
        let reply = self.runtime.clone().container_status(request).await.context("ContainerStatus")?;
        reply.into_inner().status.context("no status")
    }

    /// Waits until a container has exited; returns its exit code.
    ///
    /// # Errors
    /// When it has not in time.
    pub async fn exited(&self, container: &str, patience: Duration) -> Result<i32> {
        let deadline = Instant::now() + patience;
        loop {
            let status = self.status(container).await?;
            if status.state() == cri::ContainerState::ContainerExited {
                return Ok(status.exit_code);
            }
            if Instant::now() > deadline {
                bail!("the container still is {:?}", status.state());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What a container uses.
    ///
    /// # Errors
    /// containerd's.
    pub async fn stats(&self, container: &str) -> Result<cri::ContainerStats> {
        let request = cri::ContainerStatsRequest { container_id: container.to_owned() };
        let reply = self.runtime.clone().container_stats(request).await.context("ContainerStats")?;
        reply.into_inner().stats.context("no stats")
    }

    /// Runs a command in a container and waits for it.
    ///
    /// # Errors
    /// containerd's; always, for a VM.
    pub async fn exec(&self, container: &str, command: &[&str]) -> Result<()> {
        let request = cri::ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout: 10,
        };
        self.runtime.clone().exec_sync(request).await.map(drop).context("ExecSync")
    }

    /// Stops a container: asks, waits, kills.
    ///
    /// # Errors
    /// containerd's.
    pub async fn stop(&self, container: &str, grace_s: i64) -> Result<()> {
        let request = cri::StopContainerRequest { container_id: container.to_owned(), timeout: grace_s };
        self.runtime.clone().stop_container(request).await.map(drop).context("StopContainer")
    }

    /// Removes a container.
    ///
    /// # Errors
    /// containerd's.
    pub async fn remove(&self, container: &str) -> Result<()> {
        let request = cri::RemoveContainerRequest { container_id: container.to_owned() };
        self.runtime.clone().remove_container(request).await.map(drop).context("RemoveContainer")
    }

    /// Stops and removes a pod with all its containers, as kubelet does: again until it is done.
    ///
    /// # Errors
    /// containerd's last one, when it does not work out in time.
    pub async fn remove_pod(&self, pod: &Pod) -> Result<()> {
        let deadline = Instant::now() + CALL;
        loop {
            let stop = cri::StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
            let remove = cri::RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
            let done = match self.runtime.clone().stop_pod_sandbox(stop).await {
                Ok(_) => self.runtime.clone().remove_pod_sandbox(remove).await.map(drop),
                Err(status) => Err(status),
            };
            match done {
                Ok(()) => return Ok(()),
                Err(status) if Instant::now() > deadline => return Err(status).context("removing the pod"),
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Ids of all pods and containers.
    ///
    /// # Errors
    /// containerd's.
    pub async fn everything(&self) -> Result<Vec<String>> {
        let pods = self.runtime.clone().list_pod_sandbox(cri::ListPodSandboxRequest::default()).await?;
        let containers = self.runtime.clone().list_containers(cri::ListContainersRequest::default()).await?;
        let pods = pods.into_inner().items.into_iter().map(|pod| pod.id);
        Ok(pods.chain(containers.into_inner().containers.into_iter().map(|c| c.id)).collect())
    }

    /// Names of the images there are.
    ///
    /// # Errors
    /// containerd's.
    pub async fn images(&self) -> Result<Vec<String>> {
        let reply = self.images.clone().list_images(cri::ListImagesRequest::default()).await?;
        Ok(reply.into_inner().images.into_iter().flat_map(|image| image.repo_tags).collect())
    }
}
