//! Putting the right contents into missing pages: one extent at a time, from any thread.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::error::LazyError;
use super::present::Present;
use super::userfault::{Region, Userfault};
use crate::fetch::{Extent, Fetched, PageFetch};
use crate::limits::{EXTENT_PAGES_MAX, HOLE_PAGES_MIN, HOLES_MAX, PAGE_BYTES, ZERO_PAGES_PER_FAULT};
use crate::reader::bytes_of;

/// Room for one extent; each thread has its own.
pub(super) type Buffer = Vec<u8>;

pub(super) fn buffer() -> Buffer {
    vec![0; EXTENT_PAGES_MAX * PAGE_BYTES]
}

/// Memory, the source of its pages, and which of them are there.
pub(super) struct Filler {
    fetch: Arc<dyn PageFetch>,
    userfault: Userfault,
    regions: Vec<Region>,
    present: Present,
    total: u64,
}

impl Filler {
    /// For regions that were checked against the source.
    pub(super) fn new(fetch: Arc<dyn PageFetch>, userfault: Userfault, regions: Vec<Region>) -> Filler {
        let present = Present::new(fetch.pages());
        let total = regions.iter().map(|region| region.end() - region.first_page()).sum();
        Filler { fetch, userfault, regions, present, total }
    }

    pub(super) fn userfault(&self) -> &Userfault {
        &self.userfault
    }

    pub(super) fn regions(&self) -> &[Region] {
        &self.regions
    }

    pub(super) fn total_pages(&self) -> u64 {
        self.total
    }

    pub(super) fn present_pages(&self) -> u64 {
        self.present.count()
    }

    /// Empties the regions.
    pub(super) fn discard(&self) -> io::Result<()> {
        self.regions.iter().try_for_each(|region| self.userfault.discard(region))
    }

    /// Registers the regions but for large holes, which the kernel fills with zeros as well as we could, and only when they
    /// are touched.
    pub(super) fn register(&self) -> io::Result<()> {
        let mut holes = 0;
        for region in &self.regions {
            let (mut begin, mut page) = (region.first_page(), region.first_page());
            while page < region.end() {
                let extent = self.extent(page);
                let end = end_of(&extent).min(region.end());
                if extent.zeros && end - page >= HOLE_PAGES_MIN && holes < HOLES_MAX {
                    self.register_part(region, begin..page)?;
                    self.present.set(page..end);
                    (begin, holes) = (end, holes + 1);
                }
                page = end;
            }
            self.register_part(region, begin..page)?;
        }
        Ok(())
    }

    /// Empties the pages `missing`.
    pub(super) fn discard_parts(&self, missing: &[Range<u64>]) -> io::Result<()> {
        self.each_part(missing, |region, part| {
            self.userfault.discard_part(region, part.start, part.end - part.start)
        })
    }

    /// Registers the pages `missing`, and what is between them unless that is much: all else is in place already. A page
    /// in place that has no memory is zero, and filled so when it is touched.
    pub(super) fn register_around(&self, missing: &[Range<u64>]) -> io::Result<()> {
        let mut next = 0;
        for range in missing {
            self.present.set(next..range.start);
            next = range.end;
        }
        self.present.set(next..self.fetch.pages());
        self.each_part(&joined(missing), |region, part| self.register_part(region, part))
    }

    /// Calls `each` with the parts of the ranges in each region.
    fn each_part(
        &self,
        ranges: &[Range<u64>],
        mut each: impl FnMut(&Region, Range<u64>) -> io::Result<()>,
    ) -> io::Result<()> {
        for region in &self.regions {
            let within =
                |range: &Range<u64>| range.start.max(region.first_page())..range.end.min(region.end());
            ranges
                .iter()
                .map(within)
                .filter(|part| !part.is_empty())
                .try_for_each(|part| each(region, part))?;
        }
        Ok(())
    }

    /// Puts a page in place unless it is there.
    pub(super) fn supply(&self, page: u64, contents: Option<&[u8]>) -> Result<(), LazyError> {
        let region = self.regions.iter().find(|region| (region.first_page()..region.end()).contains(&page));
        let Some(region) = region.filter(|_| !self.present.has(page)) else { return Ok(()) };
        let placed = match contents {
            Some(contents) => self.userfault.place(region, page, contents),
            None => self.userfault.place_zeros(region, page, 1),
        };
        placed.map_err(|source| LazyError::Place { page, wanted: false, source })?;
        self.present.set(page..page + 1);
        Ok(())
    }

    fn register_part(&self, region: &Region, pages: Range<u64>) -> io::Result<()> {
        if pages.is_empty() {
            return Ok(());
        }
        self.userfault.register(region, pages.start, pages.end - pages.start)
    }

    /// The extent of `page`. A source that breaks its promise is a mistake of ours, and no page would ever come.
    fn extent(&self, page: u64) -> Extent {
        let extent = self.fetch.extent(page);
        let small = extent.zeros || extent.pages <= EXTENT_PAGES_MAX as u64;
        assert!(small && (extent.first_page..end_of(&extent)).contains(&page), "{extent:?} for page {page}");
        extent
    }

    /// The page at an address that faulted.
    pub(super) fn page_at(&self, address: usize) -> Option<(&Region, u64)> {
        self.regions.iter().find_map(|region| Some((region, region.page_at(address)?)))
    }

    /// Serves a fault of the VM: `page` and those around it are there when this returns without an error.
    pub(super) fn serve(&self, region: &Region, page: u64, buffer: &mut Buffer) -> Result<(), LazyError> {
        if self.present.has(page) {
            // It was there before. Either another fault brought it since, then this only wakes who waits; or the
            // guest gave it back (balloon), then its old contents are gone and it is zero.
            return self.zeros(region, page..page + 1, true);
        }
        let extent = self.extent(page);
        if extent.zeros {
            let window = page / ZERO_PAGES_PER_FAULT * ZERO_PAGES_PER_FAULT;
            let pages = clip(&extent, region, window..window + ZERO_PAGES_PER_FAULT);
            return self.fill_zeros(region, pages, true);
        }
        self.fill_data(region, &extent, true, buffer)
    }

    /// Fills what is missing in the extent of `page` ahead of need, at most `zeros` pages if it is empty. Returns the first
    /// page not looked at.
    pub(super) fn advance(
        &self,
        region: &Region,
        page: u64,
        zeros: u64,
        buffer: &mut Buffer,
    ) -> Result<u64, LazyError> {
        let extent = self.extent(page);
        if extent.zeros {
            let pages = clip(&extent, region, page..page + zeros);
            let end = pages.end;
            return self.fill_zeros(region, pages, false).map(|()| end);
        }
        self.fill_data(region, &extent, false, buffer)?;
        Ok(end_of(&extent).min(region.end()))
    }

    fn fill_zeros(&self, region: &Region, pages: Range<u64>, wanted: bool) -> Result<(), LazyError> {
        for part in self.present.absent(pages) {
            self.zeros(region, part.clone(), wanted)?;
            self.present.set(part);
        }
        Ok(())
    }

    fn zeros(&self, region: &Region, pages: Range<u64>, wanted: bool) -> Result<(), LazyError> {
        let page = pages.start;
        let placed = self.userfault.place_zeros(region, page, pages.end - page);
        placed.map_err(|source| LazyError::Place { page, wanted, source })
    }

    fn fill_data(
        &self,
        region: &Region,
        extent: &Extent,
        wanted: bool,
        buffer: &mut Buffer,
    ) -> Result<(), LazyError> {
        let pages = clip(extent, region, extent.first_page..end_of(extent));
        if self.present.absent(pages.clone()).next().is_none() {
            return Ok(());
        }
        let page = pages.start;
        let contents = &mut buffer[..bytes_of(extent.pages)];
        let fetched = self.fetch.fetch(extent.first_page, contents);
        // Supplied meanwhile: then it does not matter what became of the fetch, and who waited has been woken.
        if self.present.absent(pages.clone()).next().is_none() {
            return Ok(());
        }
        if fetched.map_err(|source| LazyError::Fetch { page, wanted, source })? == Fetched::Zeros {
            return self.fill_zeros(region, pages, wanted);
        }
        for part in self.present.absent(pages) {
            let [from, to] = [part.start, part.end].map(|page| bytes_of(page - extent.first_page));
            let placed = self.userfault.place(region, part.start, &contents[from..to]);
            placed.map_err(|source| LazyError::Place { page: part.start, wanted, source })?;
            self.present.set(part);
        }
        Ok(())
    }
}

/// The ranges, with those that have only a small gap between them made one; of many gaps only the first are left open.
fn joined(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        let few = joined.len() < HOLES_MAX;
        match joined.last_mut() {
            Some(last) if range.start - last.end < HOLE_PAGES_MIN || !few => last.end = range.end,
            _ => joined.push(range.clone()),
        }
    }
    joined
}

fn end_of(extent: &Extent) -> u64 {
    extent.first_page + extent.pages
}

/// The pages that are in all three.
fn clip(extent: &Extent, region: &Region, pages: Range<u64>) -> Range<u64> {
    let start = pages.start.max(extent.first_page).max(region.first_page());
    start..pages.end.min(end_of(extent)).min(region.end())
}
