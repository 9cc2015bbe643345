//! Every bound of this crate with its unit and its reason.

/// Exit code of a process that a forbidden system call has ended. Apart from those the program itself gives.
pub const EXIT_VIOLATION: u8 = 8;
/// Open files: a VM's devices, its links and API connections take well below a thousand; vsock streams the rest.
pub(crate) const OPEN_FILES_MAX: u64 = 16_384;
/// Memory of the process besides the guest's RAM, bytes: replication's staging and buffers take the most.
pub(crate) const MEMORY_ALLOWANCE_BYTES: u64 = 512 << 20;
/// Threads of a process: vCPUs, devices, links, and room for kernel workers of its rings.
pub(crate) const THREADS_MAX: u64 = 256;
/// Largest user and group database read, bytes.
pub(crate) const DATABASE_BYTES_MAX: u64 = 4 << 20;
/// Kernel's scale for the right to raise priorities: 20 minus the nice value, of which -20 is the highest priority.
pub(crate) const NICE_LIMIT: u64 = 40;
