//! Guests whose RAM is of huge pages.

use std::fs;

use crate::native::Native;

/// Huge pages of the host that these machines take.
const POOL: &str = "/proc/sys/vm/nr_hugepages";

fn moves_and_keeps_its_memory(native: &Native, spec: &str) {
    let first = native.boot("heartbeat=10", spec);
    let taken = first.take();
    let second = native.build("heartbeat=10", spec);
    second.go_on(&taken);
    second.console.wait_text(0, "tick 50 ");
    second.machine.pause().unwrap();
    // Switched off and on again: its memory is zero, and all of it is there.
    second.machine.reset().unwrap();
    second.machine.resume().unwrap();
    second.console.wait_text(0, "native-guest: ready");
}

#[test]
fn a_guest_runs_where_huge_pages_are_advised() {
    let Some(native) = Native::new() else { return };
    moves_and_keeps_its_memory(&native, "rng = true\nballoon = true\nhuge_pages = \"advise\"\n");
}

#[test]
fn a_guest_runs_on_the_hosts_pool_or_hears_how_to_fill_it() {
    let Some(native) = Native::new() else { return };
    let spec = "rng = true\nhuge_pages = \"hugetlb\"\n";
    let before = fs::read_to_string(POOL).unwrap();
    let pages = before.trim().parse::<u32>().unwrap();
    // Enough for two machines at once; without the right to, the pool stays and the refusal is looked at.
    let _ = fs::write(POOL, (pages + 64).to_string());
    let enough = fs::read_to_string(POOL).unwrap().trim().parse::<u32>().unwrap() >= pages + 64;
    match native.try_build("", spec) {
        Ok(first) if enough => {
            drop(first);
            moves_and_keeps_its_memory(&native, spec);
        }
        Ok(_) => println!("SKIPPED: the pool has room for one machine only"),
        Err(error) => assert!(!enough && error.to_string().contains("vm.nr_hugepages"), "{error}"),
    }
    let _ = fs::write(POOL, before);
}
