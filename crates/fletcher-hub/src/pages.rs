//! Pages of files that were read once and may leave memory.

/// Lets the pages of `bytes` leave this process's memory; what is read again comes back from the
/// file. Only whole pages inside `bytes` are meant, so what lies around them is not touched. Does
/// nothing where the system has no such call.
///
/// # Safety
/// `bytes` lie in a mapping of a file that was never written through this mapping: another kind of
/// memory would lose its content.
pub unsafe fn release_pages(bytes: &[u8]) {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: asks for a constant of the system.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let Ok(page @ 1..) = usize::try_from(page) else { return };
        let skip = bytes.as_ptr().addr().wrapping_neg() % page;
        let Some(length) = bytes.len().checked_sub(skip).map(|rest| rest - rest % page) else {
            return;
        };
        if length > 0 {
            let start = bytes.as_ptr().wrapping_add(skip).cast_mut().cast();
            // SAFETY: the pages lie inside `bytes`, and as the caller promises the file has their
            // content. A refusal leaves them where they are, which is as good.
            let _ = unsafe { libc::madvise(start, length, libc::MADV_DONTNEED) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = bytes;
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::Write;

    use memmap2::Mmap;

    use super::*;

    /// KiB of the mapping that holds `bytes` which are in memory.
    fn resident_kib(bytes: &[u8]) -> usize {
        let start = format!("{:x}-", bytes.as_ptr().addr());
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let from = maps.lines().skip_while(|line| !line.starts_with(&start));
        let rss = from.into_iter().find_map(|line| line.strip_prefix("Rss:")).unwrap();
        rss.split_whitespace().next().unwrap().parse().unwrap()
    }

    #[test]
    fn released_pages_leave_and_come_back() {
        let content: Vec<u8> = (0..1 << 20).map(|i| (i % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        // SAFETY: nobody else has this file.
        let mapped = unsafe { Mmap::map(&file) }.unwrap();
        assert!(mapped[..] == content[..]);
        assert_eq!(resident_kib(&mapped), 1024);
        // SAFETY: the bytes are a file's.
        unsafe { release_pages(&mapped[1..]) };
        assert!(resident_kib(&mapped) <= 64, "{} KiB", resident_kib(&mapped));
        assert!(mapped[..] == content[..]);
        // SAFETY: as above.
        unsafe { release_pages(&mapped[1..1]) };
        // SAFETY: as above.
        unsafe { release_pages(&mapped[1..9]) };
    }
}
