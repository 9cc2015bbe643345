//! The world of two emulated hosts, each with its own kernel, clock and network cards: Debian's stock kernel runs in the VM.
//!
//! Times here come from software emulation: they order events and mean nothing more.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use mycelium_lab::images::{Cache, GuestImage, Kernel, linux_guest_image};
use mycelium_lab::net::GUEST_TAP;
use mycelium_lab::{
    HostConfig, HostFile, LabHost, LabNet, LabNetConfig, PrivateNamespace, Process, Stream, Wire,
};
use mycelium_ram::clock;
use mycelium_ram::events::Stamped;

use crate::arbiter::{Arbiter, Keys};
use crate::capture::{Capture, Seen};
use crate::options::{DemoOptions, Fault};
use crate::programs::Programs;
use crate::resp::Connection;
use crate::story::Story;
use crate::world::{Pace, World};

const MAC: &str = "02:6d:79:63:65:02";
const PATHS: usize = 2;
const NAMES: &[&str] = &["A", "B"];
const RAM_MIB: u32 = 192;
const HOST_MIB: u32 = 1024;
const ARBITER_PORT: u16 = 7600;
const PATH_PORT: u16 = 7700;
const FOLDER: &str = "/demo";
const CONSOLE: &str = "/demo/run/serial.log";
/// An emulated processor keeps nobody's beat: heartbeats and their limits are stretched by this.
const HEARTBEAT_MS: &str = "100";
const DETECT_MS: &str = "2000";
/// Half of an emulated processor is the guest's.
const EPOCH_MIN_MS: &str = "100";
/// A guest that has not booted by then never will.
const BOOT: Duration = Duration::from_secs(180);
/// Reading a timeline out of a host costs it time; not more often than this.
const LOOK: Duration = Duration::from_millis(400);

struct HostWorld {
    host: LabHost,
    endophyte: Option<Process>,
    seen: usize,
    looked: u64,
    lost: bool,
    /// This machine's clock minus the host's, nanoseconds.
    clock_offset: i128,
    capture: Option<Capture>,
    wire_bytes: u64,
}

/// The world.
pub(crate) struct LinuxWorld {
    hosts: [HostWorld; 2],
    net: LabNet,
    _arbiter: Arbiter,
}

impl LinuxWorld {
    /// Boots the hosts and starts arbiter, replica and VM. The calling thread moves into a namespace of its own.
    pub(crate) fn start(
        options: &DemoOptions,
        programs: &Programs,
        dir: &Path,
        story: &Story,
        interrupted: &AtomicBool,
    ) -> Result<Self> {
        let namespace = PrivateNamespace::enter()?;
        let net = LabNet::create(&namespace, &LabNetConfig { hosts: 2, paths: PATHS })?;
        story.now("fetching Debian's kernel".to_owned());
        let cache = Cache::open()?;
        let kernel = Kernel::ensure(&cache)?;
        let image = linux_guest_image(&cache, &kernel, &programs.guest_agent)?;
        let keys = Keys::make(dir, NAMES)?;
        fs::write(dir.join("vm.toml"), spec(&net))?;
        let listen = format!("{}:{ARBITER_PORT}", net.own_address(Wire::Management));
        let arbiter = Arbiter::start(programs, &keys, &listen)?;
        story.now("booting two emulated hosts".to_owned());
        let [a, b] = boot(&net, &kernel, programs, &image, dir)?;
        let mut world =
            Self { hosts: [HostWorld::new(a, 0, dir)?, HostWorld::new(b, 1, dir)?], net, _arbiter: arbiter };
        let listen: Vec<String> = world.path_addresses(1);
        let mut passive = vec!["passive".to_owned(), "--allow".into(), keys.nodes[0].to_string()];
        passive.extend(listen.iter().flat_map(|a| ["--listen".to_owned(), a.clone()]));
        let ticket = format!("{}@{}", keys.nodes[1], listen.join(","));
        world.run_endophyte(0, options, &keys, &["active".into(), "--replica".into(), ticket])?;
        // A booting kernel writes to all of its memory: on an emulated processor it is protected once it is up.
        story.now("booting Debian in the VM".to_owned());
        world.wait_for_guest(interrupted)?;
        world.run_endophyte(1, options, &keys, &passive)?;
        Ok(world)
    }

    fn wait_for_guest(&self, interrupted: &AtomicBool) -> Result<()> {
        let deadline = clock::now() + BOOT;
        let serves = || Connection::open(self.server(), Duration::from_secs(1)).is_ok();
        while !serves() {
            if interrupted.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            if clock::now() > deadline {
                bail!("Debian did not boot in {} s:\n{}", BOOT.as_secs(), self.logs());
            }
        }
        Ok(())
    }

    fn path_addresses(&self, host: usize) -> Vec<String> {
        (0..PATHS).map(|p| format!("{}:{PATH_PORT}", self.net.host_address(host, Wire::Path(p)))).collect()
    }

    fn run_endophyte(&mut self, n: usize, options: &DemoOptions, keys: &Keys, role: &[String]) -> Result<()> {
        let arbiter = format!("{}@{}:{ARBITER_PORT}", keys.arbiter, self.net.own_address(Wire::Management));
        let epoch = options.epoch_ms.max(100).to_string();
        let (spec, key, run_dir) =
            (format!("{FOLDER}/vm.toml"), format!("{FOLDER}/node.key"), format!("{FOLDER}/run"));
        let mut argv =
            vec!["/bin/endophyte", &role[0], "--spec", &spec, "--key", &key, "--arbiter", &arbiter];
        argv.extend(["--run-dir", &run_dir, "--epoch-ms", &epoch, "--epoch-min-ms", EPOCH_MIN_MS]);
        argv.extend(["--heartbeat-ms", HEARTBEAT_MS, "--detect-ms", DETECT_MS]);
        argv.extend(role[1..].iter().map(String::as_str));
        self.hosts[n].endophyte = Some(self.hosts[n].host.spawn(&argv)?);
        Ok(())
    }
}

fn spec(net: &LabNet) -> String {
    format!(
        "name = \"demo\"\nvcpus = 1\nram_mib = {RAM_MIB}\nkernel = \"{FOLDER}/vmlinux\"\ninitrd = \"{FOLDER}/initrd\"\n\
         cmdline = \"console=ttyS0 rdinit=/init panic=-1 loglevel=4 mycelium.ip={}\"\nserial = \"null\"\n\n\
         [[net]]\ntap = \"{GUEST_TAP}\"\nmac = \"{MAC}\"\n",
        net.guest_address(0)
    )
}

/// Both at once: one after the other would take twice as long.
fn boot(
    net: &LabNet,
    kernel: &Kernel,
    programs: &Programs,
    image: &GuestImage,
    dir: &Path,
) -> Result<[LabHost; 2]> {
    let config = |n: usize| -> HostConfig {
        let mut config = net.host_config(n, dir);
        config.memory_mib = HOST_MIB;
        config.files = vec![
            HostFile::program("/bin/endophyte", &programs.endophyte),
            HostFile::data(&format!("{FOLDER}/vmlinux"), &image.vmlinux),
            HostFile::data(&format!("{FOLDER}/initrd"), &image.initrd),
            HostFile::data(&format!("{FOLDER}/vm.toml"), dir.join("vm.toml")),
        ];
        let mut key = HostFile::data(&format!("{FOLDER}/node.key"), dir.join(format!("{}.key", NAMES[n])));
        key.mode = 0o600;
        config.files.push(key);
        config
    };
    let (a, b) = (config(0), config(1));
    std::thread::scope(|scope| {
        let a = scope.spawn(|| LabHost::start(kernel, &programs.lab_agent, a));
        let b = LabHost::start(kernel, &programs.lab_agent, b);
        let a = a.join().map_err(|_| anyhow::anyhow!("booting a host panicked"))?;
        Ok([a?, b?])
    })
}

impl HostWorld {
    fn new(host: LabHost, n: usize, dir: &Path) -> Result<Self> {
        let clock_offset = clock_offset(&host)?;
        let capture = Capture::start(&format!("h{n}-client"), MAC, &dir.join(format!("{n}.pcap")))?;
        Ok(Self {
            host,
            endophyte: None,
            seen: 0,
            looked: 0,
            lost: false,
            clock_offset,
            capture: Some(capture),
            wire_bytes: 0,
        })
    }
}

impl HostWorld {
    /// The guest's console, as far as it can still be read here.
    fn console(&self) -> Vec<u8> {
        if self.lost { Vec::new() } else { self.host.read_file(CONSOLE).unwrap_or_default() }
    }

    /// The end of what endophyte said and of the guest's console.
    fn last_words(&self) -> String {
        let text = |stream| self.endophyte.as_ref().map(|p| p.written(stream)).unwrap_or_default();
        let said = [text(Stream::Stdout), text(Stream::Stderr)].concat();
        let tail =
            |bytes: &[u8]| String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(3000)..]).into_owned();
        format!("{}\nguest console:\n{}", tail(&said), tail(&self.console()))
    }
}

/// Reads the host's uptime (its monotonic clock, to 10 ms) between two looks at ours.
fn clock_offset(host: &LabHost) -> Result<i128> {
    let before = clock::now().0;
    let uptime = host.read_file("/proc/uptime")?;
    let after = clock::now().0;
    let seconds: f64 = String::from_utf8_lossy(&uptime).split(' ').next().unwrap_or("").parse()?;
    #[expect(clippy::cast_possible_truncation, reason = "an uptime in nanoseconds is far below 2^127")]
    let theirs = (seconds * 1e9) as i128;
    Ok(i128::from(before.midpoint(after)) - theirs)
}

impl World for LinuxWorld {
    fn kvm(&self) -> String {
        "kvm_amd in two hosts emulated by QEMU (times are those of an emulation)".to_owned()
    }

    fn pace(&self) -> Pace {
        Pace {
            start: Duration::from_secs(240),
            reply: Duration::from_secs(120),
            think: Duration::ZERO,
            before_loss: (Duration::from_secs(5), Duration::from_secs(10)),
            epochs: 110,
            acks: 550,
            after: Duration::from_secs(5),
        }
    }

    fn server(&self) -> SocketAddr {
        SocketAddr::from((self.net.guest_address(0).address, 6379))
    }

    fn names(&self) -> &'static [&'static str] {
        NAMES
    }

    fn events(&mut self, node: usize) -> Result<Vec<Stamped>> {
        let node = &mut self.hosts[node];
        if node.lost || clock::now().0 < node.looked + u64::try_from(LOOK.as_nanos()).unwrap_or(0) {
            return Ok(Vec::new());
        }
        node.looked = clock::now().0;
        let Ok(file) = node.host.read_file(&format!("{FOLDER}/run/events.jsonl")) else {
            return Ok(Vec::new());
        };
        let Some(fresh) = file.get(node.seen..) else { return Ok(Vec::new()) };
        let whole = fresh.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        node.seen += whole;
        let lines = fresh[..whole].split(|b| *b == b'\n');
        let events = lines.filter_map(|line| serde_json::from_slice::<Stamped>(line).ok());
        let offset = node.clock_offset;
        let ours = |t: u64| u64::try_from(i128::from(t) + offset).unwrap_or(0);
        Ok(events.map(|e| crate::world::on_our_clock(e, ours)).collect())
    }

    fn lose(&mut self, node: usize, fault: Fault) -> Result<u64> {
        self.wire_bytes();
        let at = clock::now().0;
        self.hosts[node].lost = true;
        match fault {
            Fault::Kill => {
                self.hosts[node].host.kill();
                let _ = self.net.set_all_wires(node, false);
            }
            Fault::Stop => self.hosts[node].host.pause(),
            Fault::Link => {
                self.hosts[node].lost = false;
                (0..PATHS).try_for_each(|p| self.net.set_wire(node, Wire::Path(p), false))?;
            }
            Fault::HandOver | Fault::ArbiterLink | Fault::Replica | Fault::Arbiter => {
                bail!("emulated hosts cannot play this")
            }
        }
        Ok(at)
    }

    fn revive(&mut self, node: usize, fault: Fault) -> Result<()> {
        match fault {
            Fault::Kill | Fault::HandOver | Fault::ArbiterLink | Fault::Replica | Fault::Arbiter => {
                return Ok(());
            }
            Fault::Stop => self.hosts[node].host.cont(),
            Fault::Link => (0..PATHS).try_for_each(|p| self.net.set_wire(node, Wire::Path(p), true))?,
        }
        self.hosts[node].lost = false;
        Ok(())
    }

    fn exit_of(&mut self, node: usize) -> Option<i32> {
        let node = &self.hosts[node];
        if node.lost {
            return None;
        }
        match node.endophyte.as_ref()?.wait(Duration::from_secs(10)).ok()? {
            mycelium_lab::ExitStatus::Code(code) => Some(code),
            _ => None,
        }
    }

    fn wire_bytes(&mut self) -> u64 {
        for (n, node) in self.hosts.iter_mut().enumerate() {
            let sum: u64 = (0..PATHS).map(|path| crate::world::sent_by(&format!("h{n}-path{path}"))).sum();
            node.wire_bytes = node.wire_bytes.max(sum);
        }
        self.hosts.iter().map(|node| node.wire_bytes).sum()
    }

    fn console(&self, node: usize) -> Vec<u8> {
        self.hosts[node].console()
    }

    fn captures(&mut self) -> Result<Vec<Vec<Seen>>> {
        let finish = |node: &mut HostWorld| node.capture.take().map_or(Ok(Vec::new()), Capture::finish);
        self.hosts.iter_mut().map(finish).collect()
    }

    fn logs(&self) -> String {
        let [a, b] = &self.hosts;
        format!("host A:\n{}\nhost B:\n{}", a.last_words(), b.last_words())
    }
}
