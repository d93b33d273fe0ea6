//! What a record has to say of the machine that it was made on.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// The machine, as far as the system tells.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    /// Of the CPU's flags those that kernels are chosen by.
    pub(crate) flags: Vec<String>,
    pub(crate) memory_mib: Option<u64>,
    pub(crate) system: String,
}

/// Flags that matter to the kernels of some engine, as Linux spells them.
const FLAGS: [&str; 16] = [
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512dq",
    "avx512vl",
    "avx512_bf16",
    "avx512_vnni",
    "avx_vnni",
    "avx512_fp16",
    "amx_bf16",
    "amx_int8",
    "asimddp",
    "i8mm",
    "bf16",
];

impl Machine {
    pub(crate) fn detect() -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |names: &[&str]| {
            cpuinfo.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                names.contains(&name.trim()).then(|| value.trim().to_owned())
            })
        };
        let flags = field(&["flags", "Features"]).unwrap_or_default();
        let flags: Vec<&str> = flags.split_whitespace().collect();
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self {
            cpu: field(&["model name", "Hardware", "CPU part"]).unwrap_or_else(|| "unknown".into()),
            cores: crate::config::threads(),
            flags: FLAGS.iter().filter(|f| flags.contains(f)).map(|&f| f.to_owned()).collect(),
            memory_mib: kib(&meminfo, "MemTotal:").map(|kib| kib / 1024),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        }
    }
}

/// Resident memory of this process in MiB.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Memory {
    /// All of it: the program's own pages and the mapped files' alike.
    pub(crate) resident_mib: f64,
    /// Of that, what belongs to no file.
    pub(crate) anonymous_mib: f64,
    /// The greatest `resident_mib` so far.
    pub(crate) peak_mib: f64,
}

impl Memory {
    /// What Linux says; `None` elsewhere.
    pub(crate) fn now() -> Option<Self> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let mib = |name| Some(kib(&status, name)? as f64 / 1024.0);
        Some(Self {
            resident_mib: mib("VmRSS:")?,
            anonymous_mib: mib("RssAnon:")?,
            peak_mib: mib("VmHWM:")?,
        })
    }
}

fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Today in UTC, as `2026-01-31`.
pub(crate) fn today() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (year, month, day) = civil((since.as_secs() / 86_400) as i64);
    format!("{year}-{month:02}-{day:02}")
}

/// Days since 1970 as year, month and day (Howard Hinnant's `civil_from_days`).
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted_month + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let cases = [
            (0, (1970, 1, 1)),
            (59, (1970, 3, 1)),
            (11_016, (2000, 2, 29)),
            (20_783, (2026, 11, 26)),
        ];
        for (days, date) in cases {
            assert_eq!(civil(days), date, "{days}");
        }
    }

    #[test]
    fn kib_reads_proc() {
        assert_eq!(kib("VmPeak:\t 9 kB\nVmRSS:\t  123 kB\n", "VmRSS:"), Some(123));
        assert_eq!(kib("VmPeak:\t 9 kB\n", "VmRSS:"), None);
    }
}
