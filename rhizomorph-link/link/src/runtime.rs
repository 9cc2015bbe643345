//! Where a link's tasks run: in the caller's tokio runtime, or on a thread of their own.

use std::sync::Arc;
use std::{fmt, io, thread};

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::limits::CLOSE_LINGER;

/// Choice of the runtime that drives sockets and paths. The API works from any runtime either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RuntimeChoice {
    /// The tokio runtime the caller is in.
    #[default]
    Current,
    /// A thread with a single-threaded runtime of its own, which ends with the link: a busy or blocked caller does
    /// not delay heartbeats, and a QUIC connection gains nothing from more threads.
    Dedicated,
}

/// No runtime to run in.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// [`RuntimeChoice::Current`] outside a runtime.
    #[error(
        "a link needs a tokio runtime and this thread is in none; call from one or choose a dedicated one"
    )]
    None,
    /// [`RuntimeChoice::Dedicated`] failed.
    #[error("cannot start a thread for the link; check the limits on threads and open files")]
    Thread(#[source] io::Error),
}

/// A handle to spawn on; keeps a dedicated thread alive.
#[derive(Clone, Debug)]
pub(crate) struct Executor {
    handle: Handle,
    _thread: Option<Arc<Dedicated>>,
}

impl Executor {
    pub(crate) fn new(choice: RuntimeChoice) -> Result<Self, RuntimeError> {
        match choice {
            RuntimeChoice::Current => {
                let handle = Handle::try_current().map_err(|_| RuntimeError::None)?;
                Ok(Self { handle, _thread: None })
            }
            RuntimeChoice::Dedicated => {
                let (handle, thread) = Dedicated::start().map_err(RuntimeError::Thread)?;
                Ok(Self { handle, _thread: Some(Arc::new(thread)) })
            }
        }
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.handle.spawn(task);
    }
}

/// Ends its thread when dropped. Never joins it: the last owner may be a task on that very thread.
struct Dedicated {
    stop: Option<oneshot::Sender<()>>,
}

impl Dedicated {
    fn start() -> io::Result<(Handle, Self)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        thread::Builder::new().name("rhizomorph".into()).spawn(move || {
            runtime.block_on(async {
                let _ = stopped.await;
                tokio::time::sleep(CLOSE_LINGER).await;
            });
        })?;
        Ok((handle, Self { stop: Some(stop) }))
    }
}

impl Drop for Dedicated {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }
}

impl fmt::Debug for Dedicated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dedicated")
    }
}
