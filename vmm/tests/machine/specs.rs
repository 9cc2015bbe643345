//! Wrong VM specs: each error names the field, the reason and the remedy.

use std::path::Path;

use endophyte_vmm::spec::VmSpec;

const NET: &str = "\n[[net]]\ntap = \"tap0\"\nmac = ";

/// A file that looks like an x86_64 ELF kernel, with or without the PVH note.
fn kernel(with_note: bool) -> Vec<u8> {
    let mut elf = vec![0; 64 + 56];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[18] = 62;
    elf[32] = 64;
    elf[54] = 56;
    elf[56] = 1;
    elf[64] = 4;
    elf[72] = 120;
    elf[96] = 20;
    if with_note {
        elf.extend_from_slice(&[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0, b'X', b'e', b'n', 0, 0, 0, 16, 0]);
    }
    elf
}

const DISK: &str = "\n[[disk]]\npath = \"d\"\n";

fn refusal(folder: &Path, text: &str) -> String {
    let path = folder.join("vm.toml");
    std::fs::write(&path, text).unwrap();
    VmSpec::load(&path).unwrap_err().to_string()
}

#[test]
fn every_wrong_field_is_named_with_reason_and_remedy() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("good"), kernel(true)).unwrap();
    std::fs::write(folder.path().join("noteless"), kernel(false)).unwrap();
    std::fs::write(folder.path().join("text"), "hello").unwrap();
    let base = "name = \"a\"\nkernel = \"good\"\n";
    let ram = "ram_mib = 64\n";
    for (text, expected) in [
        (format!("{ram}kernel = \"good\"\n"), "missing field `name`"),
        (format!("{base}{ram}colour = 1\n"), "unknown field `colour`"),
        (format!("{base}{ram}vcpus = 0\n"), "vcpus = \"0\" is not between 1 and 8"),
        (format!("{base}{ram}vcpus = 99\n"), "vcpus = \"99\" is not between 1 and 8"),
        (base.to_owned(), "ram_mib = \"\" is missing"),
        (format!("{base}ram_mib = 4\n"), "ram_mib = \"4\" is less than 16 MiB"),
        (format!("{base}ram_mib = -1\n"), "ram_mib = \"-1\" is less than 16 MiB"),
        (format!("{base}ram_mib = 9999999999999\n"), "is more than 256 GiB"),
        (
            format!("{base}ram_bytes = 67108865\n"),
            "ram_bytes = \"67108865\" is not a multiple of the page size",
        ),
        (format!("{base}{ram}ram_bytes = 67108864\n"), "together with ram_bytes"),
        (format!("name = \"a b\"\nkernel = \"good\"\n{ram}"), "name = \"a b\" is not 1 to 64 letters"),
        (
            format!("name = \"a\"\nkernel = \"text\"\n{ram}"),
            "text is neither a bzImage nor an ELF file; use the distribution's vmlinuz",
        ),
        (
            format!("name = \"a\"\nkernel = \"noteless\"\n{ram}"),
            "has no PVH entry note; build the kernel with CONFIG_PVH",
        ),
        (format!("name = \"a\"\nkernel = \"absent\"\n{ram}"), "absent cannot be read"),
        (format!("{base}{ram}initrd = \"absent\"\n"), "initrd = "),
        (format!("{base}{ram}on_panic = \"explode\"\n"), "unknown variant `explode`"),
        (format!("{base}{ram}{NET}\"02:00\"\n"), "net.mac = \"02:00\" is not six"),
        (format!("{base}{ram}{NET}\"01:00:5e:00:00:01\"\n"), "is a multicast address"),
        (
            format!("{base}{ram}{NET}\"02:00:00:00:00:01\"{NET}\"02:00:00:00:00:01\"\n"),
            "is given to two cards",
        ),
        (
            format!("{base}{ram}{NET}\"02:00:00:00:00:01\"\nqueues = 0"),
            "net.queues = \"0\" is not between 1 and 8",
        ),
        (
            format!("{base}{ram}{NET}\"02:00:00:00:00:01\"\nqueues = 9"),
            "net.queues = \"9\" is not between 1 and 8",
        ),
        (
            format!("{base}{ram}[[net]]\ntap = \"fd:3\"\nmac = \"02:00:00:00:00:01\"\nqueues = 2"),
            "is more than an inherited tap has",
        ),
        (
            format!("{base}{ram}{NET}\"02:00:00:00:00:01\"\nbytes_per_s = 0"),
            "net.bytes_per_s = \"0\" is not above",
        ),
        (format!("{base}{ram}{NET}\"02:00:00:00:00:01\"\npackets_per_s = -1"), "net.packets_per_s = \"-1\""),
        (format!("name = \"a\"\n{ram}"), "kernel = \"\" is missing, and there is no disk"),
        (format!("name = \"a\"\n{ram}initrd = \"good\"{DISK}"), "is given without a kernel"),
        (format!("{base}{ram}firmware = \"good\""), "firmware = \"good\" is given together with a kernel"),
        (format!("{base}{ram}boot_entry = \"0\"{DISK}"), "is given together with a kernel or firmware"),
        (format!("{base}{ram}{DISK}format = \"vmdk\""), "disk.format = \"vmdk\" is no disk format"),
        (format!("{base}{ram}{DISK}cache = \"none\""), "disk.cache = \"none\" is no cache mode"),
        (format!("{base}{ram}{DISK}queues = 0"), "disk.queues = \"0\" is not between 1 and 8"),
        (format!("{base}{ram}{DISK}iops = 0"), "disk.iops = \"0\" is not above zero"),
        (format!("{base}{ram}{DISK}serial = \"{:021}\"", 1), "is not at most 20 plain characters"),
        (
            format!("{base}{ram}[vsock]\ncid = 2\nsocket = \"s\""),
            "vsock.cid = \"2\" is no guest's context id",
        ),
        (
            format!(
                "{base}{ram}[[console]]\nname = \"a\"\nsocket = \"s\"\n[[console]]\nname = \"a\"\nsocket = \"t\""
            ),
            "has a name or socket twice",
        ),
    ] {
        let said = refusal(folder.path(), &text);
        assert!(said.contains(expected), "{text}\nsaid: {said}\nexpected: {expected}");
    }
}

#[test]
fn a_good_spec_loads_and_its_fingerprint_leaves_out_what_belongs_to_the_node() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("good"), kernel(true)).unwrap();
    std::fs::write(folder.path().join("same"), kernel(true)).unwrap();
    let load = |text: &str| {
        let path = folder.path().join("vm.toml");
        std::fs::write(&path, text).unwrap();
        VmSpec::load(&path).unwrap()
    };
    let here = load(&format!(
        "name = \"a\"\nkernel = \"good\"\nram_mib = 64\nserial = \"null\"{NET}\"02:00:00:00:00:01\"\n"
    ));
    let there = load(
        "name = \"a\"\nkernel = \"same\"\nram_bytes = 67108864\n[[net]]\ntap = \"other\"\nmac = \"02:00:00:00:00:01\"\n",
    );
    let other = load("name = \"a\"\nkernel = \"same\"\nram_mib = 64\non_panic = \"reset\"\n");
    assert!(here.net[0].offload && here.net[0].queues == 1 && here.net[0].bytes_per_s.is_none());
    let card = load(&format!(
        "name = \"a\"\nkernel = \"good\"\nram_mib = 64{NET}\"02:00:00:00:00:01\"\noffload = false\nqueues = 8\npackets_per_s = 5\n"
    ));
    assert!(!card.net[0].offload && card.net[0].queues == 8 && card.net[0].packets_per_s == Some(5));
    let [here, there, other] = [here, there, other].map(|spec| spec.fingerprint().unwrap());
    assert_eq!(here.diff(&there), [""; 0]);
    let differences = here.diff(&other).join("\n");
    assert!(
        differences.contains("network cards missing there: 02:00:00:00:00:01 in slot 1"),
        "{differences}"
    );
    assert!(differences.contains("policies"), "{differences}");
}
