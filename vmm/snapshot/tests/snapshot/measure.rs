//! Figures, printed and not judged: how soon a VM could go on, lazily and eagerly.

use std::sync::Arc;
use std::time::{Duration, Instant};

use endophyte_snapshot::Snapshot;

use crate::lazy::{start, userfault};
use crate::support::{PAGE, Ram, Saved, save};

/// 512 MiB, of which 100 MiB hold something.
const PAGES: u64 = 131_072;
const DATA_PAGES: u64 = 25_600;

fn ram() -> Ram {
    let (ram, mut page) = (Ram::new(PAGES), [0; PAGE]);
    for number in 0..DATA_PAGES {
        page[..8].copy_from_slice(&(number + 1).to_le_bytes());
        // Pieces of 1 MiB all over RAM.
        ram.write(number / 256 * 1310 + number % 256, &page);
    }
    ram
}

#[test]
fn time_until_a_vm_could_go_on() {
    let ram = ram();
    let saved = Saved::of(&ram);
    let begun = Instant::now();
    save(&ram, &saved.path()).unwrap();
    println!("save 512 MiB with 100 MiB of contents: {:?}", begun.elapsed());

    let begun = Instant::now();
    let eager = Ram::new(PAGES);
    Snapshot::open(saved.path()).unwrap().load_all(&eager.memory(), &mut |_, _| ()).unwrap();
    println!("eager: open and load_all: {:?}", begun.elapsed());

    let Some(userfault) = userfault() else { return };
    let lazy = Ram::new(PAGES);
    let mapping = lazy.map();
    let begun = Instant::now();
    let snapshot = Arc::new(Snapshot::open(saved.path()).unwrap());
    let opened = begun.elapsed();
    let (memory, _told) = start(snapshot, &mapping, userfault);
    let started = begun.elapsed();
    assert!(mapping.page(1310 * 50) == ram.page(1310 * 50));
    println!("lazy: open {opened:?}, registered after {started:?}, first page after {:?}", begun.elapsed());
    memory.prefetch(None).unwrap();
    assert!(memory.wait(Duration::from_secs(60)));
    println!("lazy: all pages after {:?}, {:?}", begun.elapsed(), memory.progress());
}
