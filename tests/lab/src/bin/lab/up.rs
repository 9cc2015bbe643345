//! Booting hosts and handing them to the check or the prompt.

use std::path::Path;
use std::thread;
use std::time::Instant;

use anyhow::Context;
use mycelium_lab::images::{Cache, Kernel, static_binary};
use mycelium_lab::{
    HostConfig, HostFile, LabError, LabHost, LabNet, LabNetConfig, PrivateNamespace, requirements,
};

use crate::{UpArgs, check, prompt};

/// Where a static busybox lies when it is installed.
const BUSYBOX: &str = "/bin/busybox";

pub(crate) fn fetch() -> anyhow::Result<()> {
    let kernel = Kernel::ensure(&Cache::open()?)?;
    println!("{} at {}", kernel.version(), kernel.vmlinux().display());
    Ok(())
}

pub(crate) fn up(args: &UpArgs) -> anyhow::Result<()> {
    requirements::check()?;
    let kernel = Kernel::ensure(&Cache::open()?).context("fetching the hosts' kernel")?;
    let agent = static_binary("lab-agent", "lab-agent").context("building the hosts' agent")?;
    let scratch = tempfile::tempdir()?;
    let run_dir = args.run_dir.as_deref().unwrap_or(scratch.path());

    let begun = Instant::now();
    let namespace = PrivateNamespace::enter()?;
    let lab_net = LabNet::create(&namespace, &LabNetConfig { hosts: args.hosts, paths: args.paths })?;
    let configs = (0..args.hosts).map(|host| config(&lab_net, host, run_dir, args)).collect();
    let hosts = start_all(&kernel, &agent, configs)?;
    for host in &hosts {
        let report = host.boot_report();
        let (wall, own) = (report.wall.as_secs_f64(), report.uptime.as_secs_f64());
        println!(
            "{}: Linux {} ready after {wall:.1} s ({own:.1} s by its own clock)",
            host.name(),
            report.kernel
        );
    }
    println!("{} host(s) ready after {:.1} s", hosts.len(), begun.elapsed().as_secs_f64());
    if args.check { check::check(&lab_net, &hosts) } else { prompt::prompt(&lab_net, &hosts) }
}

/// Boots hosts side by side: each boot is mostly one busy thread.
fn start_all(kernel: &Kernel, agent: &Path, configs: Vec<HostConfig>) -> Result<Vec<LabHost>, LabError> {
    thread::scope(|scope| {
        let starting: Vec<_> =
            configs.into_iter().map(|config| scope.spawn(|| LabHost::start(kernel, agent, config))).collect();
        starting
            .into_iter()
            .map(|starting| starting.join().expect("starting a host does not panic"))
            .collect()
    })
}

fn config(lab_net: &LabNet, host: usize, run_dir: &Path, args: &UpArgs) -> HostConfig {
    let mut config = lab_net.host_config(host, run_dir);
    config.memory_mib = args.memory_mib;
    config.files = args.files.iter().map(|(inside, source)| HostFile::program(inside, source)).collect();
    if Path::new(BUSYBOX).is_file() {
        config.files.push(HostFile::program(BUSYBOX, BUSYBOX));
    }
    config
}
