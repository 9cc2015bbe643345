//! Processes of ours under test.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use endophyte_api::{VmClient, connect};

use crate::run;

/// Bounds a start that fails; VMs share two busy cores.
const START: Duration = Duration::from_secs(90);

/// A process that ends with the test.
#[derive(Debug)]
pub struct Running(pub Child);

impl Deref for Running {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Connects to a VM's process as soon as it listens.
///
/// # Panics
/// When the process ends before that, or takes forever.
pub async fn reach(process: &mut Running, socket: &Path) -> VmClient {
    let begun = Instant::now();
    loop {
        if let Ok(api) = connect(socket).await {
            return api;
        }
        if let Some(ended) = process.try_wait().expect("a child can be asked") {
            panic!("it ended before it listened: {ended}");
        }
        assert!(begun.elapsed() < START, "nothing answers at {}", socket.display());
        tokio::task::yield_now().await;
    }
}

/// Runs `ip` of iproute2 with arguments parted by spaces.
///
/// # Panics
/// When it fails.
pub fn ip(arguments: &str) {
    let output = run(Command::new("ip").args(arguments.split(' ')));
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}
