//! Well-formed inputs: where mutation begins, and what is replayed besides the corpus.

use bytes::Bytes;
use endophyte_snapshot::{Memory, SaveError, Slot, SnapshotWriter};
use mycelium_identity::{Invitation, NetworkId};
use mycelium_ram_core::message::{Heartbeat, Message};
use mycelium_ram_core::page_codec::PartWriter;
use mycelium_ram_core::{EpochId, Generation, Incarnation, Member, NodeId, PageIndex, Time};
use rhizomorph_link::Identity;

pub(crate) fn none() -> Vec<Vec<u8>> {
    vec![Vec::new(), vec![0; 64]]
}

/// An invitation's text; its binary form is reached through it.
pub(crate) fn invitations() -> Vec<Vec<u8>> {
    let (inviter, network) = (Identity::from_seed(&[1; 32]), NetworkId([2; 32]));
    let addrs = vec![([10, 0, 0, 2], 7946).into()];
    let issued = Invitation::issue(&inviter, network, addrs, 1_000, 600);
    issued.map_or_else(|_| none(), |invitation| vec![invitation.to_string().into_bytes()])
}

/// The front of a disk with two partitions.
pub(crate) fn disks() -> Vec<Vec<u8>> {
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
pub(crate) fn kernels() -> Vec<Vec<u8>> {
    let mut image = vec![0; 5 * 512];
    image[0x1f1] = 4;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    let payload = [2, 0x21, 0x4c, 0x18, 5, 0, 0, 0, 0x40, 0x7f, b'E', b'L', b'F', 4, 0, 0, 0];
    image[0x24c..0x250].copy_from_slice(&17_u32.to_le_bytes());
    image.extend_from_slice(&payload);
    vec![image]
}

pub(crate) fn frames() -> Vec<Vec<u8>> {
    let frames: [&[u8]; 3] = [
        b"\0\"Leader\"",
        b"\0{\"Decide\":{\"vm\":\"vm\",\"request\":\"read\"}}",
        b"\0{\"Raft\":{\"group\":1,\"to\":2,\"rpc\":{\"Vote\":{\"vote\":{\"leader_id\":{\"term\":1,\"node_id\":3},\"committed\":false},\"last_log_id\":null}}}}",
    ];
    frames.map(<[u8]>::to_vec).to_vec()
}

pub(crate) fn messages() -> Vec<Vec<u8>> {
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
pub(crate) fn migration() -> Vec<Vec<u8>> {
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

/// Changes of every kind.
pub(crate) fn disk_parts() -> Vec<Vec<u8>> {
    vec![disk_part().to_vec()]
}

fn disk_part() -> Bytes {
    use mycelium_ram_core::disk::{Change, DiskChange, DiskPartWriter};
    let data = Bytes::from_static(&[3; 512]);
    let changes = [
        Change::Copy { offset: 4096, data: data.clone() },
        Change::Write { offset: 0, data },
        Change::Zero { offset: 512, bytes: 1024 },
        Change::Flush,
    ];
    let mut writer = DiskPartWriter::default();
    for change in changes {
        writer
            .push(&DiskChange { disk: 0, change }, |_| Ok::<_, ()>(()))
            .expect("a few changes fill no part");
    }
    writer.finish().unwrap_or_default()
}

pub(crate) fn parts() -> Vec<Vec<u8>> {
    let mut writer = PartWriter::default();
    let mut changed = [9; 4096];
    changed[3000..3010].fill(1);
    writer.push(PageIndex(1), &[0; 4096], None);
    writer.push(PageIndex(2), &[9; 4096], None);
    writer.push(PageIndex(900), &changed, Some(&[9; 4096]));
    vec![writer.finish().to_vec()]
}

pub(crate) fn questions() -> Vec<Vec<u8>> {
    vec![br#"{"vm":"a","ask":"read"}"#.to_vec(), br#"{"reply":{"record":null}}"#.to_vec()]
}

pub(crate) fn resp() -> Vec<Vec<u8>> {
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
pub(crate) fn snapshots() -> Vec<Vec<u8>> {
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

pub(crate) fn tickets() -> Vec<Vec<u8>> {
    vec![format!("{}@10.0.0.1:7700,[::1]:9", "ab".repeat(32)).into_bytes()]
}

/// An MBR with an extended partition, and a GPT of one entry with its sums.
pub(crate) fn partitions() -> Vec<Vec<u8>> {
    let mut mbr = vec![0; 4096];
    for (at, kind, start) in [(446, 0x83, 1), (462, 0x05, 2), (1024 + 446, 0x83, 1), (1024 + 462, 0x05, 2)] {
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

pub(crate) fn grub() -> Vec<Vec<u8>> {
    let fixtures: [&[u8]; 2] = [
        include_bytes!("../../../vmm/bootdisk/tests/fixtures/debian12.cfg"),
        include_bytes!("../../../vmm/bootdisk/tests/fixtures/fedora.cfg"),
    ];
    let small = b"set default=1>0\nfunction f { a=$1; return 1; }\nfor i in a b; do f $i; done\nmenuentry 'A' { linux /k \
        \"$a\" }\nsubmenu B --id b {\nmenuentry C { linux (hd0,gpt1)/k; initrd /i /j }\n}\nwhile [ -f /x -o ! a = b ]; do \
        break; done";
    fixtures.into_iter().chain([small.as_slice()]).map(<[u8]>::to_vec).collect()
}

pub(crate) fn bls() -> Vec<Vec<u8>> {
    let entry =
        b"title T\nversion 6.8.5-301.fc40\nmachine-id 4f\nsort-key fedora\nlinux /vmlinuz\ninitrd /initrd \
        $tuned_initrd\noptions $kernelopts ${x} ro\n";
    vec![entry.to_vec()]
}

/// Changes to a small image: none, some of its superblock, some further on.
pub(crate) fn patches() -> Vec<Vec<u8>> {
    let spread = (0..48u8).map(|i| i.wrapping_mul(37)).collect();
    vec![Vec::new(), vec![8, 0, 2, 30, 0, 1, 60, 0, 0xff], spread]
}

pub(crate) fn extlinux() -> Vec<Vec<u8>> {
    let text = b"DEFAULT lts\nLABEL lts\n MENU LABEL ^Linux\n LINUX vmlinuz\n INITRD initramfs\n APPEND root=UUID=1 quiet\nLABEL v\n \
        MENU DEFAULT\n KERNEL /k\n APPEND initrd=a,/b root=x\n";
    vec![text.to_vec()]
}

/// A seed epoch and one that follows it, with frames for the guest; as `fuzz_staging` reads them.
pub(crate) fn staging() -> Vec<Vec<u8>> {
    use mycelium_ram_core::IngressSeq;
    use mycelium_ram_core::message::{EpochEnd, EpochPart, Ingress, PartKind};
    use mycelium_ram_core::stage::{content_hash, part_hash};
    use mycelium_ram_core::state_codec;
    let step = |message: &Message| {
        let frame = message.encode();
        let length = u16::try_from(frame.len()).unwrap_or(u16::MAX).to_le_bytes();
        [&[0], &length[..], &frame].concat()
    };
    let epoch = |number: u64, base: Option<u64>, fill: u8| {
        let (epoch, base) = (EpochId(number), base.map(EpochId));
        let mut writer = PartWriter::default();
        writer.push(PageIndex(number), &[fill; 4096], None);
        let part = |index, kind, payload| EpochPart { epoch, base, index, kind, payload };
        let pages = part(0, PartKind::Pages, writer.finish());
        let disks = part(1, PartKind::Disks, disk_part());
        let mut end = EpochEnd {
            epoch,
            base,
            parts: 2,
            content_hash: 0,
            cut_at: Time(number),
            released: EpochId(number - 1),
            ingress: IngressSeq(1),
            state: state_codec::encode(None, &[1; 20]),
            outputs: Vec::new(),
        };
        let hashes = [&pages, &disks].map(|part| part_hash(part.kind, &part.payload));
        end.content_hash = content_hash(hashes, &end);
        [step(&Message::Part(pages)), step(&Message::Part(disks)), step(&Message::End(end))].concat()
    };
    let frames =
        Ingress { first: IngressSeq(1), frames: vec![(0, vec![1; 60].into()), (1, vec![2; 60].into())] };
    let whole =
        [epoch(1, None, 0), vec![1, 1], step(&Message::Ingress(frames)), epoch(2, Some(1), 9), vec![1, 2]];
    vec![whole.concat()]
}
