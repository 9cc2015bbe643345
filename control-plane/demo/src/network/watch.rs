//! Asking every daemon again and again how things are, without holding up the demo: during an election an answer takes
//! its time.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use mycelium_api::{ListVmsRequest, NodeClient, StatusRequest};
use mycelium_ram::clock;

use super::chronicle::{Chronicle, Look};

/// Time between questions; what the daemons say is known this late at most, unless they are busy electing.
const EVERY: Duration = Duration::from_millis(200);
/// A daemon that has not answered by then is asked anew.
const PATIENCE: Duration = Duration::from_secs(2);

/// The running watch: a thread for each daemon.
#[derive(Debug)]
pub(crate) struct Watch {
    chronicle: Arc<Mutex<Chronicle>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Watch {
    /// Starts asking the daemons behind these sockets, which are in the order of the chronicle's nodes.
    pub(crate) fn start(chronicle: Chronicle, sockets: impl Iterator<Item = PathBuf>) -> Result<Self> {
        let chronicle = Arc::new(Mutex::new(chronicle));
        let mut watch = Self { chronicle, stop: Arc::default(), threads: Vec::new() };
        for (node, socket) in sockets.enumerate() {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.context("cannot watch a daemon")?;
            let (chronicle, stop) = (watch.chronicle.clone(), watch.stop.clone());
            watch.threads.push(std::thread::spawn(move || {
                runtime.block_on(follow(node, &socket, &chronicle, &stop));
            }));
        }
        Ok(watch)
    }

    /// What is known now.
    pub(crate) fn chronicle(&self) -> Chronicle {
        lock(&self.chronicle).clone()
    }

    /// What is new for people since the last call.
    pub(crate) fn news(&self) -> Vec<(u64, String)> {
        lock(&self.chronicle).take_news()
    }

    /// What a node's daemon says from now on does not count.
    pub(crate) fn lost(&self, node: usize) {
        lock(&self.chronicle).lose(node);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn lock(chronicle: &Mutex<Chronicle>) -> MutexGuard<'_, Chronicle> {
    chronicle.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn follow(node: usize, socket: &Path, chronicle: &Mutex<Chronicle>, stop: &AtomicBool) {
    let mut client = None;
    while !stop.load(Ordering::Relaxed) && !lock(chronicle).is_lost(node) {
        let looked = tokio::time::timeout(PATIENCE, look(&mut client, socket)).await;
        match looked {
            Ok(Some(look)) => lock(chronicle).note(node, look),
            _ => client = None,
        }
        tokio::time::sleep(EVERY).await;
    }
}

async fn look(client: &mut Option<NodeClient>, socket: &Path) -> Option<Look> {
    if client.is_none() {
        *client = mycelium_api::connect(socket).await.ok();
    }
    let client = client.as_mut()?;
    let status = client.status(StatusRequest {}).await.ok()?.into_inner();
    let vms = client.list_vms(ListVmsRequest {}).await.ok()?.into_inner().vms;
    Some(Look { at: clock::now().0, status, vms })
}
