//! One start of a VM at a time: two nodes that both believe they run it may ask for a replica of it at once.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Names of the VMs that are being started.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    taken: Mutex<BTreeSet<String>>,
    freed: Notify,
}

/// A name's turn; over when dropped.
#[derive(Debug)]
pub(crate) struct Turn<'t> {
    turns: &'t Turns,
    name: String,
}

impl Turns {
    /// Waits until nobody else starts that VM.
    pub(crate) async fn take(&self, name: &str) -> Turn<'_> {
        loop {
            // Listening before looking: a turn that ends in between is heard.
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if self.lock().insert(name.to_owned()) {
                return Turn { turns: self, name: name.to_owned() };
            }
            freed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.lock().remove(&self.name);
        self.turns.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn two_who_ask_for_one_vm_at_once_take_turns() {
        let turns = Turns::default();
        let first = turns.take("vm").await;
        let _other = turns.take("another").await;
        assert!(timeout(Duration::from_secs(1), turns.take("vm")).await.is_err());
        let (_, second) = tokio::join!(async { drop(first) }, turns.take("vm"));
        assert_eq!(second.name, "vm");
    }
}
