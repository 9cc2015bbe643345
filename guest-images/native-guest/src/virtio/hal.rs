//! Memory as virtio-drivers needs it: physical and virtual addresses are the same here.

use alloc::alloc::{Layout, alloc_zeroed, dealloc};
use core::ptr::{self, NonNull};
use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

/// The one-to-one memory of this kernel.
pub(crate) struct IdentityMap;

fn layout(pages: usize) -> Option<Layout> {
    Layout::from_size_align(pages.checked_mul(PAGE_SIZE)?, PAGE_SIZE).ok().filter(|layout| layout.size() > 0)
}

// SAFETY: `dma_alloc` returns page-aligned zeroed memory of its own, exclusively, until `dma_dealloc`;
// `mmio_phys_to_virt` returns the address itself, which is mapped (everything below 512 GiB that matters is), and
// MMIO regions are not part of the heap.
unsafe impl Hal for IdentityMap {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // SAFETY: the layout is not of size zero.
        let memory = layout(pages).and_then(|layout| NonNull::new(unsafe { alloc_zeroed(layout) }));
        // Address 0 is how the trait's caller is told that there is no memory.
        memory.map_or((0, NonNull::dangling()), |memory| (memory.as_ptr().expose_provenance() as u64, memory))
    }

    unsafe fn dma_dealloc(_paddr: PhysAddr, vaddr: NonNull<u8>, pages: usize) -> i32 {
        let Some(layout) = layout(pages) else { return -1 };
        // SAFETY: the caller returns what `dma_alloc` gave for the same number of pages, so with the same layout.
        unsafe { dealloc(vaddr.as_ptr(), layout) };
        0
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, _size: usize) -> NonNull<u8> {
        let address = usize::try_from(paddr).unwrap_or(0);
        NonNull::new(ptr::with_exposed_provenance_mut(address)).unwrap_or(NonNull::dangling())
    }

    unsafe fn share(buffer: NonNull<[u8]>, _direction: BufferDirection) -> PhysAddr {
        buffer.as_ptr().cast::<u8>().expose_provenance() as u64
    }

    unsafe fn unshare(_paddr: PhysAddr, _buffer: NonNull<[u8]>, _direction: BufferDirection) {}
}
