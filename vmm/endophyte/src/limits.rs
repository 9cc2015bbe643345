//! Every bound of this program with its unit and its reason.

use std::time::Duration;

/// Console bytes kept of a VM without a run folder: a boot's messages. Protected VMs have them all in serial.log.
pub(crate) const CONSOLE_RING_BYTES: usize = 256 << 10;
/// Console bytes read and sent at a time; a slow reader holds this much a few times over.
pub(crate) const CONSOLE_CHUNK_BYTES: usize = 16 << 10;
/// Messages that wait for a slow API client, per stream.
pub(crate) const API_QUEUE: usize = 4;
/// Calls on one API connection at a time: a daemon and a shim watch, follow the console and ask now and then.
pub(crate) const API_STREAMS: u32 = 64;
/// Bytes an API client may send ahead.
pub(crate) const API_WINDOW_BYTES: u32 = 64 << 10;
/// Node keys that may connect to a passive; one is in use at a time.
pub(crate) const ALLOWED_KEYS: usize = 64;
/// A guest is asked to stand or to go on, and the answer waits for it this long: a pause takes milliseconds.
pub(crate) const API_PATIENCE: Duration = Duration::from_secs(5);
/// A guest that is to let go of a device is waited for so long unless the caller says otherwise: a driver is gone in a
/// second, a busy guest takes some.
pub(crate) const DETACH_PATIENCE: Duration = Duration::from_secs(15);
/// Longest a caller may have it waited for.
pub(crate) const DETACH_PATIENCE_MAX: Duration = Duration::from_secs(3600);
/// Requests to detach that wait for the guest at a time; each caller that gives up leaves none behind.
pub(crate) const DETACHING_MAX: usize = 64;
/// A process that ends waits this long for its API's last answers and its timeline's last lines.
pub(crate) const PARTING: Duration = Duration::from_millis(500);
