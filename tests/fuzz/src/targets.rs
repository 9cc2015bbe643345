//! Every decoder that reads bytes from a peer, a guest, a guest's client or a file.

use crate::limits::INPUT_BYTES;
use crate::seeds;

/// One decoder: its name, its entry point, and what is known of its inputs.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&[u8]),
    /// Some well-formed inputs to mutate.
    pub(crate) seeds: fn() -> Vec<Vec<u8>>,
    /// Bytes of its longest input.
    pub(crate) bytes_max: usize,
    /// Words of its language.
    pub(crate) words: &'static [&'static str],
    /// Without KVM it does nothing.
    pub(crate) on_kvm: bool,
}

impl Target {
    const fn new(name: &'static str, run: fn(&[u8]), seeds: fn() -> Vec<Vec<u8>>) -> Target {
        Target { name, run, seeds, bytes_max: INPUT_BYTES, words: &[], on_kvm: false }
    }

    const fn bytes(mut self, bytes: usize) -> Target {
        self.bytes_max = bytes;
        self
    }

    const fn words(mut self, words: &'static [&'static str]) -> Target {
        self.words = words;
        self
    }

    const fn on_kvm(mut self) -> Target {
        self.on_kvm = true;
        self
    }

    /// Whether this machine cannot run it.
    pub(crate) fn cannot_run(&self) -> bool {
        self.on_kvm && std::fs::File::open("/dev/kvm").is_err()
    }

    /// The one of that name.
    pub(crate) fn find(name: &str) -> Option<&'static Target> {
        ALL.iter().find(|target| target.name == name)
    }
}

/// All of them.
pub(crate) const ALL: &[Target] = &[
    Target::new("message", mycelium_ram_core::message::fuzz_message, seeds::messages),
    Target::new("pages", mycelium_ram_core::page_codec::fuzz_part, seeds::parts).bytes(16 << 10),
    Target::new("disks", mycelium_ram_core::disk::fuzz_disk_part, seeds::disk_parts).bytes(16 << 10),
    Target::new(
        "journal",
        endophyte_vmm::devices::block::fuzz_journal,
        endophyte_vmm::devices::block::seeds_journal,
    )
    .bytes(16 << 10),
    Target::new("arbiter", mycelium_arbiter::wire::fuzz_wire, seeds::questions).words(ARBITER_WORDS),
    Target::new("state", endophyte_vmm::fuzz_state, seeds::none).bytes(16 << 10),
    Target::new("snapshot", endophyte_snapshot::fuzz_snapshot, seeds::snapshots).bytes(32 << 10),
    Target::new("migration", endophyte_migration::message::fuzz_message, seeds::migration).bytes(16 << 10),
    Target::new("net", endophyte_vmm::fuzz_net, endophyte_vmm::seeds_net).on_kvm(),
    Target::new("block", endophyte_vmm::fuzz_block, endophyte_vmm::seeds_block).on_kvm(),
    Target::new("vsock", endophyte_vmm::fuzz_vsock, endophyte_vmm::seeds_vsock).on_kvm(),
    Target::new("console", endophyte_vmm::fuzz_console, endophyte_vmm::seeds_console).on_kvm(),
    Target::new("rng", endophyte_vmm::fuzz_rng, endophyte_vmm::seeds_rng).on_kvm(),
    Target::new("balloon", endophyte_vmm::fuzz_balloon, endophyte_vmm::seeds_balloon).on_kvm(),
    Target::new("hotplug", endophyte_vmm::fuzz_hotplug, endophyte_vmm::seeds_hotplug),
    Target::new("pci", endophyte_vmm::fuzz_pci, endophyte_vmm::seeds_pci).on_kvm(),
    Target::new("ports", endophyte_vmm::fuzz_ports, endophyte_vmm::seeds_ports).on_kvm(),
    Target::new("restore", endophyte_vmm::fuzz_restore, endophyte_vmm::seeds_restore)
        .bytes(32 << 10)
        .on_kvm(),
    Target::new("kernel", endophyte_vmm::fuzz_kernel, endophyte_vmm::seeds_kernel),
    Target::new("qcow2", endophyte_vmm::fuzz_qcow2, endophyte_vmm::seeds_qcow2).bytes(16 << 10),
    Target::new("spec", endophyte_vmm::fuzz_spec, endophyte_vmm::seeds_spec).words(SPEC_WORDS),
    Target::new("fingerprint", endophyte_vmm::fuzz_fingerprint, endophyte_vmm::seeds_fingerprint),
    Target::new("api", endophyte::fuzz_api, endophyte::seeds_api),
    Target::new("peer", mycelium_node::fuzz_peer, mycelium_node::seeds_peer),
    Target::new("staging", mycelium_ram::staging::fuzz_staging, seeds::staging).bytes(16 << 10),
    Target::new("resp", resp_kv::fuzz_resp, seeds::resp).words(RESP_WORDS),
    Target::new("hello", rhizomorph_proto::fuzz::fuzz_hello, seeds::none),
    Target::new("welcome", rhizomorph_proto::fuzz::fuzz_welcome, seeds::none),
    Target::new("stripe", rhizomorph_proto::fuzz::fuzz_stripe, seeds::none),
    Target::new("datagram", rhizomorph_proto::fuzz::fuzz_datagram, seeds::none),
    Target::new("reassembly", rhizomorph_proto::fuzz::fuzz_reassembly, seeds::none),
    Target::new("dedup", rhizomorph_proto::fuzz::fuzz_dedup, seeds::none),
    Target::new("key", rhizomorph_link::fuzz::fuzz_spki, seeds::none),
    Target::new("invitation", mycelium_identity::fuzz_invitation, seeds::invitations),
    Target::new("spores", mycelium_spores::fuzz_frames, seeds::frames).words(SPORES_WORDS),
    Target::new("gpt", mycelium_images::disk::gpt::fuzz_gpt, seeds::disks).bytes(32 << 10),
    Target::new("bzimage", mycelium_images::linux::fuzz_bzimage, seeds::kernels).bytes(16 << 10),
    Target::new("module", mycelium_images::linux::fuzz_module, seeds::none).bytes(16 << 10),
    Target::new("ticket", rhizomorph_link::fuzz::fuzz_ticket, seeds::tickets),
    Target::new("partitions", endophyte_bootdisk::fuzz_table, seeds::partitions).bytes(32 << 10),
    Target::new("grub", endophyte_bootdisk::fuzz_grub, seeds::grub).bytes(8 << 10).words(GRUB_WORDS),
    Target::new("bls", endophyte_bootdisk::fuzz_bls, seeds::bls).words(BLS_WORDS),
    Target::new("extlinux", endophyte_bootdisk::fuzz_extlinux, seeds::extlinux).words(EXTLINUX_WORDS),
    Target::new("ext4", endophyte_bootdisk::fuzz_ext4, seeds::patches),
];

const ARBITER_WORDS: &[&str] =
    &["\"vm\"", "\"ask\"", "\"read\"", "\"swap\"", "\"reply\"", "\"record\"", "null"];

const GRUB_WORDS: &[&str] = &[
    "set ",
    "menuentry ",
    "submenu ",
    "function ",
    "linux ",
    "initrd ",
    "if ",
    "then ",
    "else ",
    "fi",
    "for ",
    "while ",
    "do ",
    "done",
    "$",
    "${",
    "[ ",
    " ]",
    "default=",
    "load_env",
    "source ",
    "search ",
];

const BLS_WORDS: &[&str] = &[
    "title ",
    "version ",
    "machine-id ",
    "sort-key ",
    "linux ",
    "initrd ",
    "options ",
    "$kernelopts",
    "efi ",
];

const RESP_WORDS: &[&str] = &["*1\r\n", "$3\r\n", "SET", "GET", "INCR", "PING", "\r\n", "DEL", "MGET"];

const SPORES_WORDS: &[&str] =
    &["\"Raft\"", "\"Vote\"", "\"Append\"", "\"Decide\"", "\"term\"", "\"node_id\"", "null", "{", "}"];

const SPEC_WORDS: &[&str] = &[
    "name",
    "vcpus",
    "cpu",
    "ram_mib",
    "ram_bytes",
    "huge_pages",
    "kernel",
    "initrd",
    "cmdline",
    "serial",
    "boot_entry",
    "firmware",
    "on_panic",
    "[[net]]",
    "tap",
    "mac",
    "offload",
    "queues",
    "bytes_per_s",
    "packets_per_s",
    "[[disk]]",
    "path",
    "format",
    "readonly",
    "cache",
    "iops",
    "[vsock]",
    "cid",
    "socket",
    "[[console]]",
    "rng",
    "balloon",
    " = ",
    "true",
    "\"\"\"",
];

const EXTLINUX_WORDS: &[&str] = &[
    "DEFAULT ",
    "LABEL ",
    "MENU LABEL ",
    "MENU DEFAULT",
    "LINUX ",
    "KERNEL ",
    "INITRD ",
    "APPEND ",
    "initrd=",
    ",",
];
