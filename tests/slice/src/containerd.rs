//! A containerd of one's own, with its CRI plugin, a CNI network and the images of the tests.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::image;
use crate::machine::run;
use crate::needs::CNI_PLUGINS;

/// How long containerd may take to answer.
const START: Duration = Duration::from_secs(20);

/// Image names; CRI wants them whole.
pub const NATIVE: &str = "docker.io/library/native-guest:local";
/// An ordinary container image: nothing to boot.
pub const PLAIN: &str = "docker.io/library/plain:local";
const PAUSE: &str = "docker.io/library/pause:local";

/// A running containerd; ends with this value.
#[derive(Debug)]
pub struct Containerd {
    dir: PathBuf,
    programs: PathBuf,
    node: Option<Node>,
    child: Option<Child>,
}

/// A node of its own for a containerd.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its network namespace.
    pub netns: PathBuf,
    /// Its daemon's socket.
    pub socket: PathBuf,
}

impl Containerd {
    /// Starts containerd below `dir`, with pods on `subnet` (`10.88.1.0/24`), and imports the images.
    ///
    /// # Errors
    /// When it does not come up; with its log.
    pub fn start(dir: &Path, programs: &Path, subnet: &str) -> Result<Self> {
        Self::start_on(dir, programs, subnet, None)
    }

    /// The same on a node.
    ///
    /// # Errors
    /// As [`Containerd::start`].
    pub fn start_on(dir: &Path, programs: &Path, subnet: &str, node: Option<Node>) -> Result<Self> {
        fs::create_dir_all(dir.join("cni"))?;
        fs::write(dir.join("cni/10-pods.conflist"), cni(dir, subnet))?;
        let settings = dir.join("config.toml");
        fs::write(&settings, config(dir))?;
        let this = Self { dir: dir.to_owned(), programs: programs.to_owned(), node, child: None };
        this.install("install")?;
        Self::run(this)
    }

    /// Has `mycelium shim` put our runtime where this containerd finds it, or take it away.
    ///
    /// # Errors
    /// With its own words.
    pub fn install(&self, word: &str) -> Result<String> {
        let mycelium = self.programs.join("mycelium").display().to_string();
        let (bin, config) =
            (self.bin().display().to_string(), self.dir.join("config.toml").display().to_string());
        fs::create_dir_all(self.bin())?;
        run(&mycelium, &["shim", word, "--bin-dir", &bin, "--config", &config])
    }

    fn bin(&self) -> PathBuf {
        self.dir.join("bin")
    }

    fn run(mut this: Self) -> Result<Self> {
        this.launch()?;
        this.import()?;
        Ok(this)
    }

    fn launch(&mut self) -> Result<()> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("containerd.log"))?;
        let path = std::env::var("PATH").unwrap_or_default();
        let mut containerd = match &self.node {
            Some(node) => {
                let mut inside = Command::new("nsenter");
                inside.arg(format!("--net={}", node.netns.display())).args(["--", "containerd"]);
                inside.env("MYCELIUM_SOCKET", &node.socket);
                inside
            }
            None => Command::new("containerd"),
        };
        containerd.arg("--config").arg(self.dir.join("config.toml"));
        // Where a shim is looked for.
        containerd.env("PATH", format!("{}:{path}", self.bin().display()));
        containerd.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        self.child = Some(containerd.spawn().context("cannot start containerd")?);
        self.wait_ready()
    }

    fn wait_ready(&self) -> Result<()> {
        let deadline = Instant::now() + START;
        while self.ctr(&["version"]).is_err() {
            if Instant::now() > deadline {
                bail!("containerd does not answer; its log:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn import(&self) -> Result<()> {
        let kernel = fs::read(self.programs.join("native-guest")).context("the native guest is not built")?;
        let busybox = fs::read("/bin/busybox").context("install busybox-static")?;
        let native: &[image::Entry<'_>] =
            &[("boot/kernel", &kernel, 0o644), ("boot/cmdline", b"ip={ip}/{prefix} gw={gateway}\n", 0o644)];
        let plain: &[image::Entry<'_>] = &[("bin/busybox", &busybox, 0o755)];
        let idle = ["/bin/busybox", "sleep", "1000000"];
        for (name, files) in [(NATIVE, native), (PLAIN, plain), (PAUSE, plain)] {
            let archive = self.dir.join("image.tar");
            image::write(&archive, name, files, &idle)?;
            self.ctr(&["-n", "k8s.io", "images", "import", &archive.display().to_string()])?;
        }
        Ok(())
    }

    /// Runs `ctr` against this containerd.
    ///
    /// # Errors
    /// With ctr's own words.
    pub fn ctr(&self, args: &[&str]) -> Result<String> {
        let socket = self.socket().display().to_string();
        run("ctr", &[&["--address", &socket, "--timeout", "30s"], args].concat())
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.join("c.sock")
    }

    /// What it has written.
    #[must_use]
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.dir.join("containerd.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Kills it, as a crash would. Pods go on.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again after [`Containerd::kill`].
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_again(&mut self) -> Result<()> {
        self.launch()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.kill();
    }
}

fn config(dir: &Path) -> String {
    let at = |name: &str| dir.join(name).display().to_string();
    format!(
        r#"version = 2
root = "{root}"
state = "{state}"
[grpc]
  address = "{socket}"
[ttrpc]
  address = "{socket}.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "{PAUSE}"
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PLUGINS}"
    conf_dir = "{cni}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"#,
        root = at("root"),
        state = at("state"),
        socket = at("c.sock"),
        cni = at("cni"),
    )
}

fn cni(dir: &Path, subnet: &str) -> String {
    let data = dir.join("ipam").display().to_string();
    format!(
        r#"{{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false,
    "ipam": {{"type": "host-local", "dataDir": "{data}", "ranges": [[{{"subnet": "{subnet}"}}]],
             "routes": [{{"dst": "0.0.0.0/0"}}]}}}},
  {{"type": "portmap", "capabilities": {{"portMappings": true}}}}
]}}"#
    )
}
