//! Aligned zeros whose pages are taken from the system only when they are written.
//!
//! For an alignment beyond the allocator's own, the standard library's `alloc_zeroed` allocates and
//! then writes the zeros, which makes every page of an arena resident although most batches never
//! need it. Here the allocator is asked for a little more at its own alignment, which it answers
//! with fresh pages where it can.

use std::alloc::{Layout, alloc_zeroed, dealloc};

/// What is kept in front of the data: how far it lies behind the allocation's start.
const HEADER: usize = size_of::<usize>();

/// As [`alloc_zeroed`]; to be freed by [`free`].
///
/// # Safety
/// The layout's size is not zero, and its alignment is at least that of `usize`.
pub(crate) unsafe fn allocate(layout: Layout) -> *mut u8 {
    let Some(outer) = outer(layout) else { return std::ptr::null_mut() };
    // SAFETY: `outer` is larger than `layout`, so it is not empty.
    let start = unsafe { alloc_zeroed(outer) };
    if start.is_null() {
        return start;
    }
    // The start is aligned to the header, so there is room for one in front of the next multiple.
    let shift = layout.align() - start.addr() % layout.align();
    debug_assert!(shift >= HEADER);
    // SAFETY: `shift` is at most the alignment, by which `outer` is larger; the header lies between
    // the start and the data.
    unsafe {
        let data = start.add(shift);
        data.cast::<usize>().sub(1).write(shift);
        data
    }
}

/// Frees what [`allocate`] gave.
///
/// # Safety
/// `data` came from [`allocate`] with this very layout and was not freed yet.
pub(crate) unsafe fn free(data: *mut u8, layout: Layout) {
    let Some(outer) = outer(layout) else { return };
    // SAFETY: the header tells where the allocation starts; `outer` is a function of the layout.
    unsafe {
        let shift = data.cast::<usize>().sub(1).read();
        dealloc(data.sub(shift), outer);
    }
}

fn outer(layout: Layout) -> Option<Layout> {
    Layout::from_size_align(layout.size().checked_add(layout.align())?, HEADER).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_aligned_zero_and_freed() {
        for size in [1, 8, 64, 4096, 1 << 20] {
            let layout = Layout::from_size_align(size, 64).unwrap();
            // SAFETY: the size is not zero, and the data is freed once, with its layout.
            unsafe {
                let data = allocate(layout);
                assert!(!data.is_null() && data.addr().is_multiple_of(64));
                assert!(std::slice::from_raw_parts(data, size).iter().all(|&byte| byte == 0));
                data.write_bytes(1, size);
                free(data, layout);
            }
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn untouched_pages_are_not_resident() {
        let resident = || {
            let status = std::fs::read_to_string("/proc/self/statm").unwrap();
            status.split(' ').nth(1).unwrap().parse::<usize>().unwrap()
        };
        let before = resident();
        let layout = Layout::from_size_align(256 << 20, 64).unwrap();
        // SAFETY: as above.
        unsafe {
            let data = allocate(layout);
            assert!(!data.is_null());
            // 64 MiB of pages is far more than other tests allocate meanwhile.
            assert!(resident() < before + (64 << 20) / 4096);
            free(data, layout);
        }
    }
}
