//! Requests of 4 KiB a second that the guest's own driver gets out of its disk: a file on the host's file system, past the page
//! cache. The guest keeps a constant number of them under way and counts.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bench_figures::{Better, Measured};
use serde::Deserialize;

use super::Shape;
use crate::bench::Bench;
use crate::disk;
use crate::limits::RAM_MIB;
use bench_vms::limits::PATIENCE;
use bench_vms::{Begin, Flavour, Setup, Vmm};

/// One kind of work.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    pub(crate) name: &'static str,
    kind: &'static str,
    depth: u32,
}

pub(super) const READ_1: Work = Work { name: "vmm.blk_randread.d1", kind: "randread", depth: 1 };
pub(super) const READ_32: Work = Work { name: "vmm.blk_randread.d32", kind: "randread", depth: 32 };
pub(super) const WRITE_1: Work = Work { name: "vmm.blk_randwrite.d1", kind: "randwrite", depth: 1 };
pub(super) const WRITE_32: Work = Work { name: "vmm.blk_randwrite.d32", kind: "randwrite", depth: 32 };

const FLAVOURS: [Flavour; 2] = [Flavour::Plain, Flavour::IoThread];

/// The guest's line when it is done, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Done {
    blk: String,
    iops: u32,
    depth: u32,
}

impl Work {
    pub(super) fn shape(self) -> Shape {
        Shape { name: self.name, unit: "1/s", better: Better::Higher, goal: ">= 1.0" }
    }

    fn words(self, seconds: u64) -> String {
        format!("blk=bench:{}:{seconds}:{}:4096", self.kind, self.depth)
    }

    /// Requests a second, if the line says that this work is done.
    fn read(self, line: &str) -> Result<Option<f64>> {
        if line.starts_with("blk: bench FAILED") {
            bail!("the guest said {line}");
        }
        if !line.starts_with("{\"blk\"") {
            return Ok(None);
        }
        let done: Done = serde_json::from_str(line).with_context(|| format!("the guest said {line}"))?;
        ensure!(done.blk == self.kind && done.depth == self.depth, "the guest did other work: {line}");
        Ok(Some(f64::from(done.iops)))
    }
}

pub(super) fn measure(bench: &Bench, work: Work) -> Result<Vec<Measured>> {
    bench.show("writing the disk image");
    disk::make(bench.work(), &bench.stop)?;
    let vmms = bench.contenders(&FLAVOURS);
    let values = bench.in_turn(work.name, &vmms, |vmm| turn(bench, vmm, work))?;
    Ok(vec![work.shape().of(&vmms, values, bench.absent(&FLAVOURS))?])
}

fn turn(bench: &Bench, vmm: &dyn Vmm, work: Work) -> Result<f64> {
    let seconds = bench.options.work_seconds();
    let disk = Some(disk::make(bench.work(), &bench.stop)?);
    let setup = Setup { ram_mib: RAM_MIB, words: work.words(seconds), disk, ..Setup::default() };
    let mut running = bench.start(vmm, &setup, Begin::Boot)?;
    let time = PATIENCE + Duration::from_secs(seconds);
    running.find(time, &bench.stop, |line| work.read(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"blk":"randread","iops":62500,"us_p50":475.0,"us_p99":900.5,"us_max":4000,"n":125000,"depth":32,"bytes":4096}"#;

    #[test]
    fn the_guests_line_gives_its_requests_a_second() {
        assert_eq!(READ_32.read(LINE).unwrap(), Some(62_500.0));
        assert_eq!(READ_32.read("native-guest: ready ip=none").unwrap(), None);
    }

    #[test]
    fn failures_and_other_work_are_errors() {
        let failed = READ_32.read("blk: bench FAILED at sector 8: Read ended with status 1").unwrap_err();
        assert!(failed.to_string().contains("sector 8"));
        assert!(READ_1.read(LINE).is_err() && WRITE_32.read(LINE).is_err());
        assert!(READ_32.read(r#"{"blk":"randread","iops":"#).is_err());
    }

    #[test]
    fn the_guest_is_asked_in_its_own_words() {
        assert_eq!(WRITE_1.words(3), "blk=bench:randwrite:3:1:4096");
    }
}
