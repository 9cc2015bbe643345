//! Where the guest's console output goes.

use std::io::Write;
use std::sync::Mutex;

/// Takes what the guest writes to its console. Console output depends on guest state, so under protection the
/// port is a gate that holds it back until the epoch it belongs to is committed.
pub trait SerialPort: Send + Sync {
    /// Takes bytes, in order. Called from a vCPU thread, with the device locked: it must not wait.
    fn write(&self, bytes: &[u8]);
}

/// Passes output straight on to a file or terminal.
pub struct StreamPort(Mutex<Box<dyn Write + Send>>);

impl std::fmt::Debug for StreamPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StreamPort")
    }
}

impl StreamPort {
    /// Writes to `stream`.
    pub fn new(stream: impl Write + Send + 'static) -> StreamPort {
        StreamPort(Mutex::new(Box::new(stream)))
    }
}

impl SerialPort for StreamPort {
    fn write(&self, bytes: &[u8]) {
        if let Ok(mut stream) = self.0.lock() {
            // A closed terminal must not stop the guest; a UART has nobody to tell either.
            drop(stream.write_all(bytes).and_then(|()| stream.flush()));
        }
    }
}
