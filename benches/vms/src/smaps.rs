//! What a process' memory is made of: `/proc/PID/smaps`.

use std::fs;

use anyhow::{Context, Result, ensure};

/// Proportional share of a process in the memory it maps, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shares {
    /// Of guest RAM.
    pub ram: u64,
    /// Of everything else.
    pub other: u64,
    /// Address space of guest RAM.
    pub ram_mapped: u64,
}

/// Of some processes that are one VMM, whose guest RAM is a memfd called `memfd`.
///
/// # Errors
/// When a process cannot be read, or they map less guest RAM than `ram_bytes`: then the name is wrong, and RAM would be counted
/// as something else.
pub fn of_processes(pids: &[u32], memfd: &str, ram_bytes: u64) -> Result<Shares> {
    let mut all = Shares::default();
    for pid in pids {
        let path = format!("/proc/{pid}/smaps");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let one = parse(&text, memfd);
        all.ram += one.ram;
        all.other += one.other;
        all.ram_mapped += one.ram_mapped;
    }
    ensure!(
        all.ram_mapped >= ram_bytes,
        "processes {pids:?} map {} bytes of memfd {memfd} instead of the guest's {ram_bytes}",
        all.ram_mapped
    );
    Ok(all)
}

fn parse(text: &str, memfd: &str) -> Shares {
    let name = format!("/memfd:{memfd}");
    let mut shares = Shares::default();
    let mut of_ram = false;
    for line in text.lines() {
        let (field, value) = line.split_once(' ').unwrap_or((line, ""));
        match field {
            "Pss:" if of_ram => shares.ram += bytes(value),
            "Pss:" => shares.other += bytes(value),
            "Size:" if of_ram => shares.ram_mapped += bytes(value),
            // All other fields end in a colon; a mapping begins with its addresses.
            _ if !field.ends_with(':') => of_ram = value.contains(&name),
            _ => {}
        }
    }
    shares
}

/// A value like `132 kB`.
fn bytes(value: &str) -> u64 {
    let kib = value.trim().strip_suffix("kB").and_then(|number| number.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SMAPS: &str = "\
555500000000-555500100000 r-xp 00000000 fe:00 77 /usr/bin/vmm
Size:               1024 kB
Rss:                 800 kB
Pss:                 600 kB
Pss_Dirty:            10 kB
VmFlags: rd ex mr mw me sd
7f0000000000-7f0010000000 rw-s 00000000 00:01 1045 /memfd:the-ram (deleted)
Size:             262144 kB
Pss:                9000 kB
VmFlags: rd wr sh mr mw me ms sd
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0 [stack]
Size:                132 kB
Pss:                  24 kB
";

    #[test]
    fn guest_ram_is_told_from_the_rest() {
        let shares = parse(SMAPS, "the-ram");
        assert_eq!(shares, Shares { ram: 9000 << 10, other: 624 << 10, ram_mapped: 256 << 20 });
    }

    #[test]
    fn a_memfd_of_another_name_is_not_guest_ram() {
        assert_eq!(parse(SMAPS, "else").ram_mapped, 0);
    }

    #[test]
    fn a_process_without_the_memfd_is_an_error() {
        let error = of_processes(&[std::process::id()], "the-ram", 1).unwrap_err().to_string();
        assert!(error.contains("the-ram"), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC*") {
            parse(&text, "the-ram");
        }
    }
}
