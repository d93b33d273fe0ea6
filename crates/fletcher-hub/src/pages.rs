//! Memory that was needed once and may be given back.

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

/// Lets what waiting does not need leave memory, for a process that has started or worked and now
/// waits: the program's code and constants, of which what runs again comes back from the file by
/// itself, sixteen pages for each one that is missed, and heap that was freed.
///
/// A page of code that a debugger or a probe of the kernel has changed is lost with its change.
pub fn release_unused() {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: the function keeps the callback's contract and gets no data.
        unsafe { libc::dl_iterate_phdr(Some(release_segments), std::ptr::null_mut()) };
        #[cfg(target_env = "gnu")]
        // SAFETY: may be called at any time.
        unsafe {
            libc::malloc_trim(0)
        };
    }
}

/// Releases the first object's segments that nobody writes to; that object is the program.
#[cfg(target_os = "linux")]
unsafe extern "C" fn release_segments(
    object: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    _data: *mut libc::c_void,
) -> libc::c_int {
    const STOP: libc::c_int = 1;
    // SAFETY: the loader hands out a description with its headers that is valid during the call.
    let (base, headers) = unsafe {
        let object = &*object;
        let headers = std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into());
        (object.dlpi_addr, headers)
    };
    for segment in headers {
        if segment.p_type != libc::PT_LOAD || segment.p_flags & libc::PF_W != 0 {
            continue;
        }
        let start = std::ptr::with_exposed_provenance::<u8>((base + segment.p_vaddr) as usize);
        // SAFETY: the loader has mapped the program's file there, for as long as the process is. It
        // wrote to none of it: relocations of code are an error of the linker.
        unsafe { release_pages(std::slice::from_raw_parts(start, segment.p_filesz as usize)) };
    }
    STOP
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

    /// KiB of this program's code that are in memory.
    fn resident_code_kib() -> usize {
        let program = std::env::current_exe().unwrap();
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let is_code =
            |line: &&str| line.contains(" r-xp ") && line.ends_with(program.to_str().unwrap());
        let at = maps.lines().position(|line| is_code(&line)).unwrap();
        let rss = maps.lines().skip(at).find_map(|line| line.strip_prefix("Rss:")).unwrap();
        rss.split_whitespace().next().unwrap().parse().unwrap()
    }

    #[test]
    fn code_leaves_and_comes_back() {
        let all = |bytes: usize| (0..bytes).map(|i| i % 251).sum::<usize>();
        let (sum, before) = (all(100_000), resident_code_kib());
        release_unused();
        let after = resident_code_kib();
        // Other tests run meanwhile, and what reads the numbers is code too.
        assert!(after < before * 3 / 4, "{before} KiB of code, then {after}");
        assert_eq!(all(100_000), sum);
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
