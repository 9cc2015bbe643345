//! A guest whose memory, its code too, comes as it is touched.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use crate::lazy::{start, userfault};
use crate::support::{Mapping, PAGE, Ram, Saved};

const LONG: Duration = Duration::from_secs(60);
const PAGES: u64 = 64;
/// Real-mode code: `mov al, [0x5000]; out 0x10, al; hlt`, at the beginning of page 1.
const CODE: &[u8] = &[0xa0, 0x00, 0x50, 0xe6, 0x10, 0xf4];

fn ram() -> Ram {
    let ram = Ram::new(PAGES);
    let mut code = [0x90; PAGE];
    code[..CODE.len()].copy_from_slice(CODE);
    ram.write(1, &code);
    ram.write(5, &[0x42; PAGE]);
    ram
}

/// A VM with one vCPU that is about to run [`CODE`]; `None` without KVM.
fn vm(mapping: &Mapping) -> Option<(VmFd, VcpuFd)> {
    let kvm = Kvm::new().inspect_err(|error| eprintln!("SKIPPED: /dev/kvm: {error}")).ok()?;
    let vm = kvm.create_vm().unwrap();
    let memory_size = PAGES * PAGE as u64;
    let userspace_addr = mapping.slice(0).ptr_guard().as_ptr() as u64;
    let slot = kvm_userspace_memory_region { memory_size, userspace_addr, ..Default::default() };
    // SAFETY: the slot is mapped; the tests drop the VM before the mapping.
    unsafe { vm.set_user_memory_region(slot) }.unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    let mut sregs = vcpu.get_sregs().unwrap();
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs).unwrap();
    let mut regs = vcpu.get_regs().unwrap();
    (regs.rip, regs.rflags) = (0x1000, 2);
    vcpu.set_regs(&regs).unwrap();
    Some((vm, vcpu))
}

/// What the guest wrote to its port, or how the kernel says that it cannot run it: by an error, or, where it interprets
/// the instruction, as if there were a device in place of the memory.
fn run(vcpu: &mut VcpuFd) -> Result<u8, String> {
    match vcpu.run() {
        Ok(VcpuExit::IoOut(0x10, bytes)) => Ok(bytes[0]),
        Ok(VcpuExit::MmioRead(0x5000, _)) => Err("Bad address: no memory at 0x5000".into()),
        Ok(other) => panic!("unexpected exit {other:?}"),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn a_guest_runs_on_memory_that_is_not_there_yet() {
    let (Some(userfault), ram) = (userfault(), ram()) else { return };
    let saved = Saved::of(&ram);
    let restored = Ram::new(PAGES);
    let mapping = restored.map();
    let Some((vm, mut vcpu)) = vm(&mapping) else { return };
    let (lazy, _told) = start(Arc::new(saved.open()), &mapping, userfault);
    assert_eq!(run(&mut vcpu), Ok(0x42));
    // The second fault may not have been counted yet; the first was before the second was served.
    assert!(lazy.progress().faults >= 1, "{lazy:?}");
    drop((vcpu, vm));
}

#[test]
fn a_vcpu_that_needs_a_damaged_page_stops_without_it() {
    let (Some(userfault), ram) = (userfault(), ram()) else { return };
    let saved = Saved::of(&ram);
    saved.damage(&ram, 5);
    let restored = Ram::new(PAGES);
    let mapping = restored.map();
    let Some((_vm, mut vcpu)) = vm(&mapping) else { return };
    let (lazy, told) = start(Arc::new(saved.open()), &mapping, userfault);
    let (tell, ended) = channel();
    thread::spawn(move || drop(tell.send(run(&mut vcpu))));
    let error = told.recv_timeout(LONG).unwrap();
    assert!(error.to_string().contains("page 5 "), "{error}");
    assert!(ended.try_recv().is_err(), "the guest went on");
    drop(lazy);
    let answer = ended.recv_timeout(LONG).unwrap();
    assert!(answer.as_ref().is_err_and(|error| error.contains("Bad address")), "{answer:?}");
}
