//! Every bound of the shim with its unit and its reason.

use std::time::Duration;

/// Guest memory when neither a limit nor an annotation says how much, MiB: the native guest needs less, a small Linux fits.
pub(crate) const RAM_MIB_DEFAULT: u64 = 256;
/// Least guest memory, MiB: less does not hold a kernel.
pub(crate) const RAM_MIB_MIN: u64 = 32;
/// Most guest memory, MiB: 1 TiB, beyond the machines we know.
pub(crate) const RAM_MIB_MAX: u64 = 1 << 20;
/// Bytes of an image's `/boot/cmdline`: Linux takes 2048 on x86.
pub(crate) const CMDLINE_BYTES: u64 = 2048;
/// Bytes of a bundle's `config.json`: containerd's own are below 100 KiB.
pub(crate) const CONFIG_BYTES: u64 = 16 << 20;
/// Bytes of console output kept while nobody reads it; beyond, the oldest go. A guest must never wait for `kubectl logs`.
pub(crate) const CONSOLE_BACKLOG_BYTES: usize = 1 << 20;
/// The console's last bytes have this long to be read once the VM has ended.
pub(crate) const CONSOLE_DRAIN: Duration = Duration::from_secs(5);
/// Events waiting for containerd; a task makes about five in its life.
pub(crate) const EVENTS_WAITING: usize = 1024;
/// An event is offered this long, across restarts of containerd, before it is given up.
pub(crate) const EVENT_PATIENCE: Duration = Duration::from_secs(120);
/// Pause between two tries.
pub(crate) const EVENT_RETRY: Duration = Duration::from_millis(200);
/// One try to hand an event to containerd.
pub(crate) const EVENT_CALL: Duration = Duration::from_secs(5);
/// A VM that was killed has this long to be gone.
pub(crate) const KILLED: Duration = Duration::from_secs(10);
/// The last reply of a shim that ends has this long to leave.
pub(crate) const FAREWELL: Duration = Duration::from_secs(2);
/// Last words of a VMM that fails, bytes: they go into the error.
pub(crate) const LAST_WORDS_BYTES: usize = 2048;
/// Bytes of a VM's name, as the arbiter's records have it.
pub(crate) const VM_NAME_BYTES: usize = 64;
/// A pod of a group asks again so often when another pod was faster to become the active.
pub(crate) const GROUP_TRIES: u32 = 3;
/// The node's daemon may be starting anew while a pod of a group starts; it has this long to answer.
pub(crate) const DAEMON: Duration = Duration::from_secs(5);
/// An answer of it, which may wait for a takeover to be over.
pub(crate) const DAEMON_ANSWER: Duration = Duration::from_secs(20);
/// A VMM that runs says within this how it is.
pub(crate) const VM_ANSWER: Duration = Duration::from_secs(1);
/// Pause between two tries to reach it.
pub(crate) const DAEMON_RETRY: Duration = Duration::from_millis(100);
/// A VM has this long from its start until it runs; the largest part is loading its kernel.
pub(crate) const VM_START: Duration = Duration::from_secs(30);
/// Pause between two looks at whether it does: there is nothing to wait on before its socket is there.
pub(crate) const VM_LOOK: Duration = Duration::from_millis(5);
