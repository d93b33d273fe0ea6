//! Memory as the kernels like it: aligned to a cache line, zeroed, and with row lengths that do
//! not make rows compete for the same cache sets.

use std::alloc::{Layout, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::number::Number;
use crate::zeroed;

/// Bytes of a cache line, and of the widest vector.
pub(crate) const LINE: usize = 64;

/// Rows of more lines than this are so long that one register tile's rows, at a distance that is a
/// multiple of a few lines, fall into few sets of a first-level cache and evict each other.
const SHORT_LINES: usize = 8;

/// The distance between rows, in elements, at which rows of `columns` are best laid out: whole
/// cache lines, and an odd number of them unless it is small.
pub fn row_stride<T: Number>(columns: usize) -> usize {
    let line = LINE / size_of::<T>();
    let lines = columns.div_ceil(line);
    line * if lines > SHORT_LINES { lines | 1 } else { lines }
}

/// A fixed number of numbers, zero at first, aligned to a cache line.
///
/// The zeros come from the allocator, so pages that nobody writes take no memory.
pub struct AlignedBuffer<T: Number = f32> {
    data: NonNull<T>,
    len: usize,
}

// SAFETY: the buffer owns plain numbers.
unsafe impl<T: Number> Send for AlignedBuffer<T> {}
// SAFETY: shared access only reads.
unsafe impl<T: Number> Sync for AlignedBuffer<T> {}

impl<T: Number> AlignedBuffer<T> {
    /// Allocates `len` zeros; `None` when there is no memory for them.
    pub fn try_new(len: usize) -> Option<Self> {
        if len == 0 {
            return Some(Self { data: NonNull::dangling(), len });
        }
        let layout = Self::layout(len)?;
        // SAFETY: the layout's size is not zero, and a line is longer than a `usize`.
        let data = NonNull::new(unsafe { zeroed::allocate(layout) }.cast::<T>())?;
        Some(Self { data, len })
    }

    /// Allocates `len` zeros.
    ///
    /// # Panics
    /// Aborts like `Vec` when there is no memory for them.
    pub fn new(len: usize) -> Self {
        Self::try_new(len).unwrap_or_else(|| {
            handle_alloc_error(Self::layout(len).unwrap_or_else(Layout::new::<f32>))
        })
    }

    fn layout(len: usize) -> Option<Layout> {
        Layout::from_size_align(len.checked_mul(size_of::<T>())?, LINE).ok()
    }
}

impl<T: Number> Drop for AlignedBuffer<T> {
    fn drop(&mut self) {
        if let (Some(layout), true) = (Self::layout(self.len), self.len > 0) {
            // SAFETY: allocated with this very layout.
            unsafe { zeroed::free(self.data.as_ptr().cast(), layout) }
        }
    }
}

impl<T: Number> Deref for AlignedBuffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` initialised elements (or none, dangling), owned by the buffer.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl<T: Number> DerefMut for AlignedBuffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

impl<T: Number> std::fmt::Debug for AlignedBuffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuffer({} {})", self.len, std::any::type_name::<T>())
    }
}

/// Asks for numbers that will be read soon, where the instruction set has a way to.
pub(crate) fn prefetch<T: Number>(numbers: &[T]) {
    for line in numbers.chunks(LINE / size_of::<T>()) {
        prefetch_line(line.as_ptr().cast());
    }
}

/// Asks for the line of an address, which need not be one.
#[inline(always)]
pub(crate) fn prefetch_line(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: part of the x86-64 baseline, and only a hint.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::number::Bf16;

    #[test]
    fn buffers_are_zero_aligned_and_writable() {
        for len in [0, 1, 15, 16, 1000] {
            let mut buffer = AlignedBuffer::<f32>::new(len);
            assert!(buffer.iter().all(|&value| value == 0.0));
            assert!(len == 0 || buffer.as_ptr().addr().is_multiple_of(LINE));
            buffer.fill(1.0);
            assert_eq!(buffer.iter().sum::<f32>(), len as f32);
        }
        assert!(AlignedBuffer::<f32>::try_new(usize::MAX / 2).is_none());
    }

    #[test]
    fn long_strides_are_odd_numbers_of_lines() {
        let cases = [(1, 16), (16, 16), (17, 32), (128, 128), (384, 400), (512, 528), (1536, 1552)];
        for (columns, stride) in cases {
            assert_eq!(row_stride::<f32>(columns), stride, "{columns} columns");
        }
        assert_eq!(row_stride::<Bf16>(1024), 1056);
        assert_eq!(row_stride::<u8>(2048), 2112);
    }
}
