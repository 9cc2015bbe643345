//! Devices that come and go, through the ports a guest uses: real KVM objects, real images, no guest.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;

use super::events::MachineEvent;
use super::plug::PlugError;
use super::small::machine_with;
use super::{Machine, MachinePorts, RestoreOptions};
use crate::arch::layout::port;
use crate::devices::block::DiskImage;
use crate::devices::hotplug::Register;
use crate::devices::net::{NicPort, Tap, TapPort};
use crate::devices::serial::StreamPort;
use crate::spec::{BootSpec, DeviceSpecs, DeviceTable, DiskSpec, NetSpec, VmSpec};
use crate::vcpu::Bus;
use crate::virtio::rig::{BUFFERS, Rig, spec};

const FLUSH: u64 = 1 << 9;
const WRITE: u32 = 1;

fn disk(folder: &Path, serial: &str) -> DiskSpec {
    let path = folder.join(serial);
    if !path.exists() {
        File::create_new(&path).unwrap().set_len(1 << 20).unwrap();
    }
    let table = format!("path = {path:?}\nserial = {serial:?}");
    DeviceTable::Disk(&table).disk(1, 0).unwrap()
}

fn card(tap: &str, last: u8) -> (NetSpec, NicPort, UnixDatagram) {
    let (far, near) = UnixDatagram::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    let tap_port = Arc::new(Tap::from_fd(OwnedFd::from(near), tap));
    let port = NicPort { port: Arc::new(TapPort::new(Arc::clone(&tap_port))), tap: tap_port };
    (NetSpec::plain(tap, format!("02:00:00:00:00:{last:02x}").parse().unwrap()), port, far)
}

fn ports() -> MachinePorts {
    MachinePorts::none(Arc::new(StreamPort::new(std::io::sink())))
}

fn built(disks: Vec<DiskSpec>) -> Machine {
    Machine::build(&spec(DeviceSpecs { disks, ..DeviceSpecs::default() }), ports()).unwrap()
}

/// Vendor and device in a slot.
fn in_slot(machine: &Machine, slot: u32) -> u32 {
    machine.platform.port_write(port::PCI_ADDRESS, &(1 << 31 | slot << 11).to_le_bytes());
    let mut word = [0; 4];
    machine.platform.port_read(port::PCI_DATA, &mut word);
    u32::from_le_bytes(word)
}

fn at(register: Register) -> u16 {
    port::HOTPLUG + u16::try_from(register.offset()).unwrap()
}

fn register(machine: &Machine, register: Register) -> u32 {
    let mut word = [0; 4];
    machine.platform.port_read(at(register), &mut word);
    u32::from_le_bytes(word)
}

fn eject(machine: &Machine, slot: u32) {
    machine.platform.port_write(at(Register::Eject), &(1u32 << slot).to_le_bytes());
}

#[test]
fn a_disk_comes_works_and_goes_and_its_slot_and_interrupts_are_used_again() {
    let Some(machine) = machine_with(DeviceSpecs::default()) else { return };
    let folder = tempfile::tempdir().unwrap();
    let data = disk(folder.path(), "data");
    let mut rig = None;
    for _ in 0..3 {
        let machine = rig.take().map_or_else(
            || built(Vec::new()),
            |rig: Rig| {
                let Rig { machine, .. } = rig;
                machine
            },
        );
        assert_eq!(in_slot(&machine, 1), u32::MAX);
        assert_eq!(machine.attach_disk(&data).unwrap(), 1);
        assert_eq!(in_slot(&machine, 1), 0x1042_1af4);
        assert_eq!(register(&machine, Register::Up), 1 << 1);
        assert!(DiskImage::open(&data).is_err(), "the disk is in use");
        let mut driven = Rig::new(machine, 0, FLUSH);
        write_sector(&mut driven, 0x5a);
        let machine = &driven.machine;
        assert_eq!(machine.ask_to_detach("data").unwrap(), 1);
        assert_eq!(register(machine, Register::Down), 1 << 1);
        assert!(machine.events().try_recv().is_none() && machine.clear_away().is_empty());
        eject(machine, 1);
        assert_eq!(in_slot(machine, 1), u32::MAX);
        assert_eq!((register(machine, Register::Up), register(machine, Register::Down)), (0, 0));
        assert_eq!(machine.events().try_recv(), Some(MachineEvent::Ejected { slot: 1 }));
        assert!(machine.attach_disk(&DiskSpec { slot: Some(1), ..data.clone() }).is_err(), "not yet");
        let gone = machine.clear_away();
        assert_eq!((gone.len(), gone[0].slot, gone[0].name.as_str()), (1, 1, "data"));
        assert!(gone[0].trouble.is_none(), "{:?}", gone[0]);
        drop(DiskImage::open(&data).expect("its file is closed"));
        assert!(machine.devices_now().is_empty());
        rig = Some(driven);
    }
    assert_eq!(std::fs::read(&data.path).unwrap()[..512], [0x5a; 512]);
    drop(machine);
}

fn write_sector(rig: &mut Rig, byte: u8) {
    let (header, data, status) = (BUFFERS, BUFFERS + 0x1000, BUFFERS + 0x2000);
    rig.put(header, &[&WRITE.to_le_bytes()[..], &[0; 12]].concat());
    rig.put(data, &[byte; 512]);
    rig.put(status, &[0xaa]);
    rig.chain(0, 0, &[(header, 16, false), (data, 512, false), (status, 1, true)]);
    super::nic_rig::wait_until("the write is answered", || {
        rig.device.event(0);
        rig.get(status, 1) == [0]
    });
}

#[test]
fn an_attached_device_is_in_state_spec_and_fingerprint_in_its_slot() {
    if machine_with(DeviceSpecs::default()).is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|serial| disk(folder.path(), serial));
    let source = built(vec![a.clone(), b]);
    source.attach_disk(&DiskSpec { slot: Some(9), ..c }).unwrap();
    eject(&source, 2);
    assert_eq!(source.clear_away()[0].name, "b");
    let mut state = Vec::new();
    source.save_state(&mut state).unwrap();
    let (now, fingerprint) = (source.spec_now(), source.fingerprint());
    assert_eq!(now.devices.disks.iter().map(|d| d.slot).collect::<Vec<_>>(), [Some(1), Some(9)]);
    let before = built(Vec::new());
    let differences = before.fingerprint().diff(&fingerprint).join("; ");
    assert!(
        differences.contains("devices missing here: disk a writable 1 queues in slot 1, disk c"),
        "{differences}"
    );
    before.check_state(&state).unwrap_err();
    drop(source);
    let target = Machine::build(&now, ports()).unwrap();
    assert_eq!(target.fingerprint().diff(&fingerprint), [""; 0]);
    target.restore_state(&state, RestoreOptions::default()).unwrap();
    assert_eq!(register(&target, Register::Up), 1 << 9, "the guest has not been told yet");
    drop(target);
    let mut moved: VmSpec = now;
    moved.devices.disks[1].slot = Some(10);
    let moved = Machine::build(&moved, ports()).unwrap();
    let differences = moved.fingerprint().diff(&fingerprint).join("; ");
    assert!(differences.contains("disk c writable 1 queues in slot 9, and there: disk c"), "{differences}");
    moved.check_state(&state).unwrap_err();
}

#[test]
fn a_card_comes_and_goes() {
    let Some(machine) = machine_with(DeviceSpecs::default()) else { return };
    let (first, port, _wire) = card("tap7", 7);
    assert_eq!(machine.attach_nic(&first, port).unwrap(), 1);
    assert!(machine.devices_now()[0].removable);
    let (again, port, _wire) = card("tap8", 7);
    assert!(matches!(machine.attach_nic(&again, port), Err(PlugError::Taken { field: "net.mac", .. })));
    let (second, port, wire) = card("tap8", 8);
    assert_eq!(machine.attach_nic(&second, port).unwrap(), 2);
    assert_eq!(machine.ask_to_detach("02:00:00:00:00:08").unwrap(), 2);
    eject(&machine, 2);
    assert_eq!(machine.clear_away()[0].name, "tap8");
    assert!(wire.send(&[0; 60]).is_err(), "its tap is closed");
    assert_eq!(machine.metrics().net.iter().map(|net| net.number).collect::<Vec<_>>(), [0]);
}

#[test]
fn what_cannot_come_or_go_says_why() {
    if machine_with(DeviceSpecs::default()).is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|serial| disk(folder.path(), serial));
    let mut booted = spec(DeviceSpecs { disks: vec![a.clone()], ..DeviceSpecs::default() });
    booted.boot = BootSpec::Disk { entry: None };
    let machine = Machine::build(&booted, ports()).unwrap();
    let said = machine.ask_to_detach("a").unwrap_err().to_string();
    assert!(said.contains("boots from it"), "{said}");
    eject(&machine, 1);
    assert!(machine.events().try_recv().is_none() && in_slot(&machine, 1) != u32::MAX, "and it stays");
    let said = machine.ask_to_detach("x").unwrap_err().to_string();
    assert!(said.contains("no device x; it has a"), "{said}");
    let same = DiskSpec { serial: "a".to_owned(), ..b.clone() };
    assert!(matches!(machine.attach_disk(&same), Err(PlugError::Taken { field: "disk.serial", .. })));
    let there = DiskSpec { slot: Some(1), ..b.clone() };
    assert!(matches!(machine.attach_disk(&there), Err(PlugError::Taken { field: "slot", .. })));
    let missing = DiskSpec { path: folder.path().join("missing"), ..b.clone() };
    assert!(matches!(machine.attach_disk(&missing), Err(PlugError::Disk(_))));
    assert_eq!(machine.devices_now().len(), 1);
    for number in 1..8 {
        machine.attach_disk(&disk(folder.path(), &format!("more{number}"))).unwrap();
    }
    assert!(matches!(machine.attach_disk(&b), Err(PlugError::Full { .. })));
    assert_eq!(machine.ask_to_detach("slot:4").unwrap(), 4);
    drop(machine);
    let fixed =
        Machine::build_fixed(&spec(DeviceSpecs { disks: vec![a], ..DeviceSpecs::default() }), ports());
    let fixed = fixed.unwrap();
    assert!(matches!(fixed.attach_disk(&b), Err(PlugError::Fixed)));
    assert!(matches!(fixed.ask_to_detach("a"), Err(PlugError::Built { .. })));
    eject(&fixed, 1);
    assert_ne!(in_slot(&fixed, 1), u32::MAX);
}

#[test]
fn after_a_reset_what_was_attached_is_there_as_if_it_had_always_been() {
    let Some(machine) = machine_with(DeviceSpecs::default()) else { return };
    let folder = tempfile::tempdir().unwrap();
    machine.attach_disk(&disk(folder.path(), "data")).unwrap();
    let mut bar = [0; 4];
    let device = &machine.devices()[0];
    device.config_read(0x10, &mut bar);
    assert_eq!(bar, [0; 4], "a guest gives it its address");
    // The kernel is an empty file, which is found out last.
    assert!(machine.reset().is_err());
    device.config_read(0x10, &mut bar);
    assert_eq!(u32::from_le_bytes(bar), 0xc000_0000);
    assert_eq!(register(&machine, Register::Up), 0, "nobody needs to be told");
}
