//! Every bound of this crate, with its unit and its reason.

use std::time::Duration;

/// vCPUs of one VM. Bounds the pause: every vCPU is kicked, waited for and saved in it.
pub const VCPUS_MAX: u8 = 8;

/// Least guest RAM: room for boot structures below 1 MiB, a kernel above it and its page tables.
pub const RAM_BYTES_MIN: u64 = 16 << 20;

/// Most guest RAM: what a 39-bit guest physical address space holds beside the hole for devices.
pub const RAM_BYTES_MAX: u64 = 256 << 30;

/// Network cards of one VM; each takes one PCI slot, and an interrupt route per queue.
pub const NICS_MAX: usize = 4;

/// Disks of one VM; each takes one PCI slot, and a thread.
pub const DISKS_MAX: usize = 8;

/// Request queues of one disk: more than vCPUs are of no use.
pub const DISK_QUEUES_MAX: u16 = 8;

/// Images a qcow2 image may be based on, one below the other: a read may have to ask all of them, and opening them needs stack
/// for each.
pub const DISK_LAYERS_MAX: usize = 16;

/// Longest serial number of a disk: the field of the request that asks for it.
pub const DISK_SERIAL_BYTES_MAX: usize = 20;

/// Requests of one disk under way at a time, over all its queues: keeps any device busy, and bounds what a pause
/// waits for.
pub const DISK_REQUESTS_MAX: u16 = 128;

/// Requests taken per turn, so that completions are not kept waiting by submissions.
pub const DISK_TURN_REQUESTS: usize = 64;

/// Sectors one discard or write-zeroes request may cover (1 GiB): a longer one would keep a pause waiting.
pub const DISK_CLEAR_SECTORS_MAX: u32 = 1 << 21;

/// Bytes of one read or write, of which a copy may be made: a guest could name the same memory a hundred times. Linux asks for a few
/// MiB at most.
pub const DISK_REQUEST_BYTES_MAX: u64 = 32 << 20;

/// Ports of the paravirtual console; each has two queues.
pub const CONSOLES_MAX: usize = 8;

/// How long finding and reading a disk's boot files may take: tens of megabytes from a slow disk. A hostile file system
/// can lead its reader in circles for ever.
pub const DISK_BOOT_DEADLINE: Duration = Duration::from_secs(60);

/// Longest path of a Unix socket (`sun_path` without its terminator).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Programs that may wait to be accepted at a device's socket.
pub const SOCKET_BACKLOG: i32 = 128;

/// Connections through the socket device, and as many programs that have not said what they want. Each takes a
/// descriptor, of which a process commonly has 1024.
pub const VSOCK_CONNECTIONS_MAX: usize = 384;

/// Bytes the guest may send on one connection ahead of the host program, as Linux has it for its own side.
pub const VSOCK_BUFFER_BYTES: u32 = 256 << 10;

/// Longest payload of a packet for the guest, as Linux has it for its own.
pub const VSOCK_PACKET_BYTES_MAX: usize = 64 << 10;

/// Refusals that wait for the guest to take them before nothing more is taken from it.
pub const VSOCK_RESETS_MAX: usize = 256;

/// Bytes of what the guest did that wait to be carried out before nothing more is taken from it: a quarter of the output
/// gate, so that a flood leaves room for frames and console.
pub const VSOCK_WAITING_BYTES_MAX: usize = 2 << 20;

/// What a thing the guest did counts for while it waits, besides its bytes.
pub const VSOCK_ORDER_BYTES: usize = 64;

/// Longest line that a program of the host begins with.
pub const VSOCK_GREETING_BYTES_MAX: usize = 32;

/// Packets the socket device works off per turn in each direction, so that a flood cannot keep a pause waiting.
pub const VSOCK_TURN_PACKETS: usize = 64;

/// Output of a console port that waits for a client, bytes; the newest is kept.
pub const CONSOLE_RING_BYTES: usize = 64 << 10;

/// Bytes of one chain of a console port; drivers send pages, or 32 KiB.
pub const CONSOLE_CHAIN_BYTES_MAX: usize = 256 << 10;

/// Bytes handed to a console port's way out at a time, which must fit an output of the gate.
pub const CONSOLE_WRITE_BYTES: usize = 32 << 10;

/// Chains a console queue is worked off per turn, so that a flood cannot keep a pause waiting.
pub const CONSOLE_TURN_CHAINS: usize = 64;

/// Programs taken in at a console's socket per turn.
pub const CONSOLE_TURN_CLIENTS: usize = 8;

/// Longest kernel command line, terminator included: what Linux accepts on x86_64 (`COMMAND_LINE_SIZE`).
pub const CMDLINE_BYTES_MAX: usize = 2048;

/// Longest VM name: it becomes part of file and interface names.
pub const NAME_BYTES_MAX: usize = 64;

/// Longest VM spec file. A spec is a page of text; more is a wrong file.
pub const SPEC_BYTES_MAX: u64 = 64 << 10;

/// Descriptors per virtio queue.
pub const QUEUE_SIZE: u16 = 256;

/// Longest Ethernet frame that is not to be cut: 1500 bytes of payload, header and one VLAN tag.
pub const FRAME_BYTES_MAX: usize = 1518;

/// Longest frame that is to be cut to size by whoever takes it: the largest IP packet and an Ethernet header.
pub const LARGE_FRAME_BYTES_MAX: usize = 65_550;

/// Pairs of queues of one card: more than vCPUs are of no use.
pub const NIC_PAIRS_MAX: u16 = 8;

/// Shortest frame that has a whole Ethernet header.
pub const FRAME_BYTES_MIN: usize = 14;

/// Frames a card works off per turn in each direction, so that a flood cannot keep a pause waiting for its lock.
pub const NIC_TURN_FRAMES: usize = 64;

/// Bytes after which such a turn ends: copying them takes the host some 100 us.
pub const NIC_TURN_BYTES: usize = 512 << 10;

/// Frames that wait for guest receive buffers before further ones are dropped: the replay of one takeover.
pub const RX_BACKLOG_FRAMES: usize = 1024;

/// Random bytes given per request: what `getrandom` yields in well under a millisecond.
pub const RNG_REQUEST_BYTES_MAX: usize = 64 << 10;

/// Requests for entropy per turn, so that a flood cannot keep a pause waiting for the device's lock.
pub const RNG_TURN_REQUESTS: usize = 4;

/// Page numbers in one request to the balloon. Linux sends 256; others send a page full.
pub const BALLOON_NUMBERS_MAX: usize = 1024;

/// Requests per turn of the balloon, for the same reason as [`NIC_TURN_FRAMES`].
pub const BALLOON_TURN_CHAINS: usize = 16;

/// Pages after which a turn of the balloon ends: each may cost a system call that stops the vCPUs for a moment.
pub const BALLOON_TURN_PAGES: u64 = 1024;

/// Most pages one report of free pages may name before it is passed over: 1 GiB, eight times what Linux reports at
/// once. Freeing them takes the host some 50 ms, which a pause may have to wait for.
pub const BALLOON_REPORT_PAGES_MAX: u64 = 1 << 18;

/// Entries of memory statistics that are read; drivers know 16.
pub const BALLOON_STATS_MAX: usize = 32;

/// How often a guest is asked for memory statistics at most: collecting them costs it a walk of its own counters.
pub const BALLOON_STATS_INTERVAL: Duration = Duration::from_secs(1);

/// Serial input bytes that wait for the guest before further ones are refused.
pub const SERIAL_INPUT_BYTES_MAX: usize = 64 << 10;

/// Events not yet fetched. A guest can repeat itself (panic, watchdog); the first ones tell the story.
pub const EVENTS_MAX: usize = 64;

/// Largest saved machine state accepted for restoring; 8 vCPUs with AMX state need about 150 KiB.
pub const STATE_BYTES_MAX: usize = 4 << 20;

/// Most sections in one state: one per vCPU, card and platform part, with room for later ones.
pub const STATE_SECTIONS_MAX: usize = 64;

/// Most MSRs in one vCPU section (`KVM_MAX_MSR_ENTRIES`).
pub const MSRS_MAX: usize = 256;

/// Largest XSAVE area accepted, bytes (AMX has 11 KiB).
pub const XSAVE_BYTES_MAX: usize = 64 << 10;

/// How long a vCPU may take to leave `KVM_RUN` after it was kicked before pausing counts as failed, seconds.
/// It normally takes microseconds; the bound only turns a hang into an error.
pub const PARK_TIMEOUT_S: u64 = 10;
