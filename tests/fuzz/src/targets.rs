//! Every decoder that reads bytes from a peer, a guest's client or a file.

/// One decoder: its name, its entry point, and some well-formed inputs to mutate.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&[u8]),
    pub(crate) seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub(crate) const ALL: &[Target] = &[
    Target { name: "message", run: mycelium_ram_core::message::fuzz_message, seeds: seeds::messages },
    Target { name: "pages", run: mycelium_ram_core::page_codec::fuzz_part, seeds: seeds::parts },
    Target { name: "arbiter", run: mycelium_arbiter::wire::fuzz_wire, seeds: seeds::questions },
    Target { name: "state", run: endophyte_vmm::fuzz_state, seeds: seeds::none },
    Target { name: "snapshot", run: endophyte_snapshot::fuzz_snapshot, seeds: seeds::snapshots },
    Target { name: "migration", run: endophyte_migration::message::fuzz_message, seeds: seeds::migration },
    Target { name: "net", run: endophyte_vmm::fuzz_net, seeds: endophyte_vmm::seeds_net },
    Target { name: "block", run: endophyte_vmm::fuzz_block, seeds: endophyte_vmm::seeds_block },
    Target { name: "vsock", run: endophyte_vmm::fuzz_vsock, seeds: endophyte_vmm::seeds_vsock },
    Target { name: "console", run: endophyte_vmm::fuzz_console, seeds: endophyte_vmm::seeds_console },
    Target { name: "rng", run: endophyte_vmm::fuzz_rng, seeds: endophyte_vmm::seeds_rng },
    Target { name: "balloon", run: endophyte_vmm::fuzz_balloon, seeds: endophyte_vmm::seeds_balloon },
    Target { name: "hotplug", run: endophyte_vmm::fuzz_hotplug, seeds: endophyte_vmm::seeds_hotplug },
    Target { name: "resp", run: resp_kv::fuzz_resp, seeds: seeds::resp },
    Target { name: "hello", run: rhizomorph_proto::fuzz::fuzz_hello, seeds: seeds::none },
    Target { name: "welcome", run: rhizomorph_proto::fuzz::fuzz_welcome, seeds: seeds::none },
    Target { name: "stripe", run: rhizomorph_proto::fuzz::fuzz_stripe, seeds: seeds::none },
    Target { name: "datagram", run: rhizomorph_proto::fuzz::fuzz_datagram, seeds: seeds::none },
    Target { name: "reassembly", run: rhizomorph_proto::fuzz::fuzz_reassembly, seeds: seeds::none },
    Target { name: "dedup", run: rhizomorph_proto::fuzz::fuzz_dedup, seeds: seeds::none },
    Target { name: "key", run: rhizomorph_link::fuzz::fuzz_spki, seeds: seeds::none },
    Target { name: "invitation", run: mycelium_identity::fuzz_invitation, seeds: seeds::invitations },
    Target { name: "spores", run: mycelium_spores::fuzz_frames, seeds: seeds::frames },
    Target { name: "gpt", run: mycelium_images::disk::gpt::fuzz_gpt, seeds: seeds::disks },
    Target { name: "bzimage", run: mycelium_images::linux::fuzz_bzimage, seeds: seeds::kernels },
    Target { name: "module", run: mycelium_images::linux::fuzz_module, seeds: seeds::none },
    Target { name: "ticket", run: rhizomorph_link::fuzz::fuzz_ticket, seeds: seeds::tickets },
    Target { name: "partitions", run: endophyte_bootdisk::fuzz_table, seeds: seeds::partitions },
    Target { name: "grub", run: endophyte_bootdisk::fuzz_grub, seeds: seeds::grub },
    Target { name: "bls", run: endophyte_bootdisk::fuzz_bls, seeds: seeds::bls },
    Target { name: "ext4", run: endophyte_bootdisk::fuzz_ext4, seeds: seeds::patches },
];

mod seeds {
    use endophyte_snapshot::{Memory, SaveError, Slot, SnapshotWriter};
    use mycelium_identity::{Invitation, NetworkId};
    use mycelium_ram_core::message::{Heartbeat, Message};
    use mycelium_ram_core::page_codec::PartWriter;
    use mycelium_ram_core::{EpochId, Generation, Incarnation, Member, NodeId, PageIndex, Time};
    use rhizomorph_link::Identity;

    pub(super) fn none() -> Vec<Vec<u8>> {
        vec![Vec::new(), vec![0; 64]]
    }

    /// An invitation's text; its binary form is reached through it.
    pub(super) fn invitations() -> Vec<Vec<u8>> {
        let (inviter, network) = (Identity::from_seed(&[1; 32]), NetworkId([2; 32]));
        let addrs = vec![([10, 0, 0, 2], 7946).into()];
        let issued = Invitation::issue(&inviter, network, addrs, 1_000, 600);
        issued.map_or_else(|_| none(), |invitation| vec![invitation.to_string().into_bytes()])
    }

    /// The front of a disk with two partitions.
    pub(super) fn disks() -> Vec<Vec<u8>> {
        use mycelium_images::disk::gpt::{BIOS_BOOT, Guid, LINUX, Partition, table};
        let partition = |number, kind, start, bytes| Partition {
            number,
            kind,
            id: Guid([3; 16]),
            start,
            bytes,
            name: "root".to_owned(),
        };
        let partitions = [partition(1, LINUX, 2 << 20, 1 << 20), partition(14, BIOS_BOOT, 1 << 20, 1 << 20)];
        let [(_, front), ..] = table(4 << 20, Guid([4; 16]), &partitions);
        vec![front]
    }

    /// A bzImage's header with an LZ4 payload that claims four bytes.
    pub(super) fn kernels() -> Vec<Vec<u8>> {
        let mut image = vec![0; 5 * 512];
        image[0x1f1] = 4;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        let payload = [2, 0x21, 0x4c, 0x18, 5, 0, 0, 0, 0x40, 0x7f, b'E', b'L', b'F', 4, 0, 0, 0];
        image[0x24c..0x250].copy_from_slice(&17_u32.to_le_bytes());
        image.extend_from_slice(&payload);
        vec![image]
    }

    pub(super) fn frames() -> Vec<Vec<u8>> {
        let frames: [&[u8]; 3] = [
            b"\0\"Leader\"",
            b"\0{\"Decide\":{\"vm\":\"vm\",\"request\":\"read\"}}",
            b"\0{\"Raft\":{\"group\":1,\"to\":2,\"rpc\":{\"Vote\":{\"vote\":{\"leader_id\":{\"term\":1,\"node_id\":3},\"committed\":false},\"last_log_id\":null}}}}",
        ];
        frames.map(<[u8]>::to_vec).to_vec()
    }

    pub(super) fn messages() -> Vec<Vec<u8>> {
        let from = Member { node: NodeId([7; 32]), incarnation: Incarnation(1) };
        let heartbeat = Heartbeat {
            from,
            generation: Generation(1),
            sent_at: Time(5),
            echo: Some(Time(4)),
            progress: 3,
            epoch: Some(EpochId(2)),
        };
        let deposed = Message::Deposed { generation: Generation(2), epoch: EpochId(9) };
        [Message::Heartbeat(heartbeat), Message::Refuse("no".to_owned()), deposed]
            .iter()
            .map(|m| m.encode().to_vec())
            .collect()
    }

    /// An offer, pages, a list of pages and a switch.
    pub(super) fn migration() -> Vec<Vec<u8>> {
        use endophyte_migration::batch::BatchWriter;
        use endophyte_migration::message::{DiskFacts, Message, Mode, Offer, Pages, Switch};
        let mut batch = BatchWriter::default();
        batch.push(PageIndex(1), |page| page.fill(0));
        batch.push(PageIndex(2), |page| page.fill(9));
        let mut missing = mycelium_ram_core::PageSet::empty(1 << 20);
        [5, 6, 7, 900].into_iter().for_each(|page| missing.insert(PageIndex(page)));
        let disks = vec![DiskFacts { serial: "data".to_owned(), bytes: 1 << 30 }];
        let offer = Offer { fingerprint: b"{}".as_slice().into(), disks, mode: Mode::PostCopy };
        let switch = Switch {
            messages: 2,
            digest: 3,
            verified: true,
            mode: Mode::PreCopy,
            elapsed_ns: 4,
            console_bytes: 5,
            held: false,
            state: vec![1; 40].into(),
        };
        let mut all = vec![
            Message::Offer(offer),
            Message::Pages(Pages { want: 0, batch: batch.finish().concat().into() }),
            Message::Switch(switch),
            Message::Stay("no".to_owned()),
        ];
        all.extend(endophyte_migration::runs::write(&missing).into_iter().map(Message::Missing));
        all.iter().map(|message| message.encode().to_vec()).collect()
    }

    pub(super) fn parts() -> Vec<Vec<u8>> {
        let mut writer = PartWriter::default();
        writer.push(PageIndex(1), &[0; 4096]);
        writer.push(PageIndex(2), &[9; 4096]);
        vec![writer.finish().to_vec()]
    }

    pub(super) fn questions() -> Vec<Vec<u8>> {
        vec![br#"{"vm":"a","ask":"read"}"#.to_vec(), br#"{"reply":{"record":null}}"#.to_vec()]
    }

    pub(super) fn resp() -> Vec<Vec<u8>> {
        vec![b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n".to_vec(), b"PING\r\nINCR n\r\n".to_vec()]
    }

    /// 64 pages of which 0, 1 and 63 hold something.
    struct SmallRam;

    impl Memory for SmallRam {
        fn slots(&self) -> Vec<Slot> {
            vec![Slot { first_page: 0, pages: 64 }]
        }

        fn read(&self, first_page: u64, into: &mut [u8]) -> std::io::Result<()> {
            for (page, bytes) in (first_page..).zip(into.chunks_mut(4096)) {
                bytes.fill(u8::from([0, 1, 63].contains(&page)));
            }
            Ok(())
        }
    }

    /// A whole file, and its two ends without contents.
    pub(super) fn snapshots() -> Vec<Vec<u8>> {
        let write = |path: &std::path::Path| -> Result<(), SaveError> {
            let mut writer = SnapshotWriter::create(path)?;
            writer.metadata(b"{}")?;
            writer.state(b"")?;
            writer.pages(&SmallRam, &mut |_, _| ())?;
            writer.commit()
        };
        let Ok(folder) = tempfile::tempdir() else { return none() };
        let path = folder.path().join("seed.snapshot");
        let Some(whole) = write(&path).ok().and_then(|()| std::fs::read(&path).ok()) else { return none() };
        let ends = [&whole[..4096], &whole[whole.len() - 4096..]].concat();
        vec![whole, ends]
    }

    pub(super) fn tickets() -> Vec<Vec<u8>> {
        vec![format!("{}@10.0.0.1:7700,[::1]:9", "ab".repeat(32)).into_bytes()]
    }

    /// An MBR with an extended partition, and a GPT of one entry with its sums.
    pub(super) fn partitions() -> Vec<Vec<u8>> {
        let mut mbr = vec![0; 4096];
        for (at, kind, start) in
            [(446, 0x83, 1), (462, 0x05, 2), (1024 + 446, 0x83, 1), (1024 + 462, 0x05, 2)]
        {
            (mbr[at + 4], mbr[at + 8], mbr[at + 12]) = (kind, start, 2);
        }
        for at in [510, 1024 + 510] {
            mbr[at..at + 2].copy_from_slice(&[0x55, 0xaa]);
        }
        let mut gpt = mbr.clone();
        gpt[450] = 0xee;
        gpt[512..604].copy_from_slice(include_bytes!("gpt-header.bin"));
        gpt[1024..1040].fill(1);
        (gpt[1024 + 32], gpt[1024 + 40]) = (4, 5);
        vec![mbr, gpt]
    }

    pub(super) fn grub() -> Vec<Vec<u8>> {
        let fixtures: [&[u8]; 2] = [
            include_bytes!("../../../vmm/bootdisk/tests/fixtures/debian12.cfg"),
            include_bytes!("../../../vmm/bootdisk/tests/fixtures/fedora.cfg"),
        ];
        let small = b"set default=1>0\nfunction f { a=$1; return 1; }\nfor i in a b; do f $i; done\nmenuentry 'A' { linux /k \
            \"$a\" }\nsubmenu B --id b {\nmenuentry C { linux (hd0,gpt1)/k; initrd /i /j }\n}\nwhile [ -f /x -o ! a = b ]; do \
            break; done";
        fixtures.into_iter().chain([small.as_slice()]).map(<[u8]>::to_vec).collect()
    }

    pub(super) fn bls() -> Vec<Vec<u8>> {
        let entry = b"title T\nversion 6.8.5-301.fc40\nmachine-id 4f\nsort-key fedora\nlinux /vmlinuz\ninitrd /initrd \
            $tuned_initrd\noptions $kernelopts ${x} ro\n";
        vec![entry.to_vec()]
    }

    /// Changes to a small image: none, some of its superblock, some further on.
    pub(super) fn patches() -> Vec<Vec<u8>> {
        let spread = (0..48u8).map(|i| i.wrapping_mul(37)).collect();
        vec![Vec::new(), vec![8, 0, 2, 30, 0, 1, 60, 0, 0xff], spread]
    }
}
