//! SIGTERM and SIGINT, taken by one thread that waits for them; the API's Stop counts as one.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The signals, blocked in every thread.
pub(crate) struct Signals {
    hooks: Hooks,
}

/// Rings the hooks as a signal does.
#[derive(Clone)]
pub(crate) struct Stopper(Hooks);

type Hooks = Arc<Mutex<Raised>>;

#[derive(Default)]
struct Raised {
    /// A signal came before there was anybody to hear it.
    already: bool,
    hooks: Vec<Box<dyn Fn() + Send>>,
}

impl std::fmt::Debug for Stopper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stopper")
    }
}

#[cfg(feature = "fuzzing")]
impl Stopper {
    /// One that nobody hears.
    pub(crate) fn unheard() -> Self {
        Self(Hooks::default())
    }
}

impl Stopper {
    pub(crate) fn stop(&self) {
        let mut raised = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        raised.already = true;
        raised.hooks.iter().for_each(|hook| hook());
    }
}

/// Set by the first signal.
#[derive(Clone, Debug)]
pub(crate) struct Latch(watch::Receiver<bool>);

impl Signals {
    /// None taken yet; the API's Stop is.
    pub(crate) fn unblocked() -> Self {
        Self { hooks: Hooks::default() }
    }

    /// As [`take`](Self::take), at once.
    pub(crate) fn block() -> io::Result<Self> {
        let signals = Self::unblocked();
        signals.take()?;
        Ok(signals)
    }

    /// Must be called before any other thread is started, so that all inherit the mask.
    pub(crate) fn take(&self) -> io::Result<()> {
        let set = blocked_set()?;
        let stopper = self.stopper();
        let wait = move || {
            let mut number = 0;
            // SAFETY: both pointers are to live locals of this closure; the set was filled by `blocked_set`.
            while unsafe { libc::sigwait(&raw const set, &raw mut number) } == 0 {
                stopper.stop();
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(wait).map(drop)
    }

    /// Calls `hook` on every signal from now on, and at once if there was one.
    pub(crate) fn on_signal(&self, hook: impl Fn() + Send + 'static) -> io::Result<()> {
        let mut raised = self.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        if raised.already {
            hook();
        }
        raised.hooks.push(Box::new(hook));
        Ok(())
    }

    /// A way to stop the process as a signal does.
    pub(crate) fn stopper(&self) -> Stopper {
        Stopper(self.hooks.clone())
    }

    /// A latch that the first signal sets.
    pub(crate) fn latch(&self) -> io::Result<Latch> {
        let (set, latch) = watch::channel(false);
        self.on_signal(move || {
            set.send_replace(true);
        })?;
        Ok(Latch(latch))
    }
}

impl Latch {
    /// Returns once it is set.
    pub(crate) async fn wait(&self) {
        // The sender lives in the signal thread, as long as the process.
        let _ = self.0.clone().wait_for(|set| *set).await;
    }

    /// Calls `then` once it is set; abort the task to change one's mind.
    pub(crate) fn on_set(&self, runtime: &Runtime, then: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
        let latch = self.clone();
        runtime.spawn(async move {
            latch.wait().await;
            then();
        })
    }
}

fn blocked_set() -> io::Result<libc::sigset_t> {
    // SAFETY: a zeroed sigset_t is a valid object for sigemptyset to fill; all pointers are to a live local.
    let (set, result) = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigaddset(&raw mut set, libc::SIGINT);
        (set, libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()))
    };
    if result == 0 { Ok(set) } else { Err(io::Error::from_raw_os_error(result)) }
}
