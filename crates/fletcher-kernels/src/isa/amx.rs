//! Intel's AMX: eight tile registers of 16 rows of 64 bytes, and products of whole tiles.
//!
//! The intrinsics are not stable, so each instruction is a line of assembly. The compiler never
//! uses a tile register, which is why tiles keep their contents between these lines although it
//! is told nothing of them.
//!
//! A product takes one cycle a row, 16 for a tile: 16 * 16 * 32 products of bfloat16 or
//! 16 * 16 * 64 of bytes, which is 16 or 8 times what a 512-bit dot product does in a cycle. Its
//! sums come 52 cycles later, so four tiles of sums keep it busy.
//!
//! **Order of the sums.** `tdpbf16ps` sums a tile's 16 products of even elements in one chain of
//! fused multiply-adds from 0, those of odd elements in another, and adds the two chains' sum to
//! the tile of sums; every result is rounded to nearest even, and what is below the normal range
//! counts as 0. [`emulated::Emulated`] says the same in Rust and is what tests compare with, bit
//! for bit. A row's sum never depends on the other rows of its tile.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

#[cfg(test)]
pub(crate) mod emulated;

/// Most rows of a tile.
pub(crate) const ROWS: usize = 16;
/// Bytes of a row.
pub(crate) const ROW_BYTES: usize = 64;
/// 32-bit words of a row.
pub(crate) const ROW_WORDS: usize = ROW_BYTES / 4;

/// Whether the CPU has tiles of bfloat16 and of bytes and the system lets this process use them.
///
/// Asking the system is what lets it: it makes room for tiles in the state of each thread that
/// uses them.
pub(crate) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| in_cpu() && in_context() && permitted())
}

/// Whether the CPU has the instructions, with tiles of the size that this file is written for.
fn in_cpu() -> bool {
    const TILE: u32 = 1 << 24;
    const INT8: u32 = 1 << 25;
    const BF16: u32 = 1 << 22;
    let all = TILE | INT8 | BF16;
    if __cpuid_count(0, 0).eax < 0x1d || __cpuid_count(7, 0).edx & all != all {
        return false;
    }
    let palette = __cpuid_count(0x1d, 1);
    let (row_bytes, names) = (palette.ebx & 0xffff, palette.ebx >> 16);
    (row_bytes as usize, names, palette.ecx as usize & 0xffff) == (ROW_BYTES, 8, ROWS)
}

/// Whether the system saves tiles when it switches threads: bits 17 and 18 of XCR0.
fn in_context() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    if __cpuid_count(1, 0).ecx & OSXSAVE == 0 {
        return false;
    }
    let low: u32;
    // SAFETY: OSXSAVE says that the register can be read, and there is always a register 0.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _, options(nomem, nostack));
    }
    low >> 17 & 0b11 == 0b11
}

/// Asks Linux for the permission to use tiles, for all threads of the process.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XTILEDATA: usize = 18;
    let result: isize;
    // SAFETY: the call takes two numbers and reads or writes no memory of ours; rcx and r11 are
    // what a system call may change.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// How other systems are asked is not known here.
#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// The tile unit of this thread.
///
/// # Safety
/// Every method requires that [`available`] is true (for [`Hardware`]), and all but
/// [`Self::configure`] a thread whose tiles are configured.
pub(crate) trait Tiles {
    /// Gives tiles their size, and zeros: those of sums and of left operands, 0 to 5, have `rows`
    /// rows, 1 to 16; those of right operands, 6 and 7, have 16.
    unsafe fn configure(rows: usize);
    /// Takes the tiles from the thread, so that nobody has to save them.
    unsafe fn release();
    unsafe fn zero<const TILE: u8>();
    /// Rows of 64 bytes, `stride` bytes apart.
    unsafe fn load<const TILE: u8>(from: *const u8, stride: usize);
    /// The same for rows that the first cache need not keep: they pass by what it holds.
    unsafe fn stream<const TILE: u8>(from: *const u8, stride: usize);
    /// Rows of 64 bytes, `stride` bytes apart.
    unsafe fn store<const TILE: u8>(to: *mut u8, stride: usize);
    /// `sums += a * b` for pairs of bfloat16: row `r` of `a` holds the pairs that meet row `i` of
    /// `b`'s pairs, one for each column.
    unsafe fn dot_bf16<const SUMS: u8, const A: u8, const B: u8>();
    /// The same for four unsigned bytes in `a` and four signed ones in `b`, into 32-bit integers.
    unsafe fn dot_int8<const SUMS: u8, const A: u8, const B: u8>();
}

/// The CPU's own.
pub(crate) struct Hardware;

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Of 16 tiles, 8 of which exist.
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// An instruction on tiles: it may change all of them and nothing else that is not named.
macro_rules! tiles {
    ($instruction:literal, $($operands:tt)*) => {
        asm!(
            $instruction,
            $($operands)*
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, preserves_flags),
        )
    };
}

// SAFETY, for every block below: the trait's contract gives the instructions and configured
// tiles, and its callers the memory.
#[expect(clippy::undocumented_unsafe_blocks, reason = "one argument for all, above")]
impl Tiles for Hardware {
    #[inline(always)]
    unsafe fn configure(rows: usize) {
        let mut config = Config {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        config.row_bytes[..8].fill(ROW_BYTES as u16);
        config.rows[..6].fill(rows as u8);
        config.rows[6..8].fill(ROWS as u8);
        unsafe { tiles!("ldtilecfg [{config}]", config = in(reg) &raw const config,) }
    }
    #[inline(always)]
    unsafe fn release() {
        unsafe { tiles!("tilerelease",) }
    }
    #[inline(always)]
    unsafe fn zero<const TILE: u8>() {
        unsafe { tiles!("tilezero tmm{tile}", tile = const TILE,) }
    }
    #[inline(always)]
    unsafe fn load<const TILE: u8>(from: *const u8, stride: usize) {
        unsafe {
            tiles!(
                "tileloadd tmm{tile}, [{from} + {stride} * 1]",
                tile = const TILE, from = in(reg) from, stride = in(reg) stride,
            )
        }
    }
    #[inline(always)]
    unsafe fn stream<const TILE: u8>(from: *const u8, stride: usize) {
        unsafe {
            tiles!(
                "tileloaddt1 tmm{tile}, [{from} + {stride} * 1]",
                tile = const TILE, from = in(reg) from, stride = in(reg) stride,
            )
        }
    }
    #[inline(always)]
    unsafe fn store<const TILE: u8>(to: *mut u8, stride: usize) {
        unsafe {
            tiles!(
                "tilestored [{to} + {stride} * 1], tmm{tile}",
                tile = const TILE, to = in(reg) to, stride = in(reg) stride,
            )
        }
    }
    #[inline(always)]
    unsafe fn dot_bf16<const SUMS: u8, const A: u8, const B: u8>() {
        unsafe {
            tiles!(
                "tdpbf16ps tmm{sums}, tmm{a}, tmm{b}",
                sums = const SUMS, a = const A, b = const B,
            )
        }
    }
    #[inline(always)]
    unsafe fn dot_int8<const SUMS: u8, const A: u8, const B: u8>() {
        unsafe {
            tiles!(
                "tdpbusd tmm{sums}, tmm{a}, tmm{b}",
                sums = const SUMS, a = const A, b = const B,
            )
        }
    }
}

/// Configured tiles, until it is dropped: a thread that does not multiply has none.
pub(crate) struct Configured<T: Tiles>(std::marker::PhantomData<T>);

impl<T: Tiles> Configured<T> {
    /// # Safety
    /// As [`Tiles`]; `rows` is 1 to 16.
    #[inline(always)]
    pub(crate) unsafe fn new(rows: usize) -> Self {
        // SAFETY: the caller's guarantees are passed on.
        unsafe { T::configure(rows) }
        Self(std::marker::PhantomData)
    }
}

impl<T: Tiles> Drop for Configured<T> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the tiles were configured on this thread.
        unsafe { T::release() }
    }
}

/// Products of whole tiles, a multiple of four, on tiles alone: what no kernel is faster than.
///
/// # Safety
/// [`available`] is true.
pub(crate) unsafe fn multiply<const BYTES: bool>(products: usize) {
    // SAFETY: the caller guarantees the instructions; the tiles are configured, and zero.
    unsafe {
        let _configured = Configured::<Hardware>::new(ROWS);
        for _ in 0..products / 4 {
            match BYTES {
                true => {
                    Hardware::dot_int8::<0, 4, 6>();
                    Hardware::dot_int8::<1, 4, 7>();
                    Hardware::dot_int8::<2, 5, 6>();
                    Hardware::dot_int8::<3, 5, 7>();
                }
                false => {
                    Hardware::dot_bf16::<0, 4, 6>();
                    Hardware::dot_bf16::<1, 4, 7>();
                    Hardware::dot_bf16::<2, 5, 6>();
                    Hardware::dot_bf16::<3, 5, 7>();
                }
            }
        }
    }
}
