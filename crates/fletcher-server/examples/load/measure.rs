//! Times, processor time, and the record that they end in.

use std::time::Duration;

use serde_json::{Value, json};

use crate::Outcome;
use crate::options::{self, Options};

/// Ticks of the kernel's accounting in a second, on every Linux there is.
const TICKS: f64 = 100.0;

/// Processor time of the whole machine, and of this process with its children.
pub(crate) struct Busy {
    all: f64,
    own: f64,
    total: f64,
}

impl Busy {
    pub(crate) fn now() -> Self {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = stat.lines().next().unwrap_or_default();
        let times: Vec<f64> =
            line.split_whitespace().skip(1).take(8).filter_map(|n| n.parse().ok()).collect();
        let total: f64 = times.iter().sum();
        let idle: f64 = times.iter().skip(3).take(2).sum();
        Self { all: (total - idle) / TICKS, own: own_with_children(), total: total / TICKS }
    }

    /// The share of the machine that others used since then.
    fn foreign_share(&self) -> f64 {
        let now = Self::now();
        let foreign = (now.all - self.all) - (now.own - self.own);
        (foreign / (now.total - self.total).max(1e-9)).max(0.0)
    }
}

fn stat_fields(pid: &str) -> Vec<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name may hold anything, so count from its closing bracket: the next is field 3.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace().skip(11).take(4).filter_map(|n| n.parse().ok()).collect()
}

/// Processor seconds of a process.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    stat_fields(&pid.to_string()).iter().take(2).sum::<f64>() / TICKS
}

/// Processor seconds of this process alone.
pub(crate) fn own_seconds() -> f64 {
    stat_fields("self").iter().take(2).sum::<f64>() / TICKS
}

/// Processor seconds of the children that ended.
pub(crate) fn children_seconds() -> f64 {
    stat_fields("self").iter().skip(2).sum::<f64>() / TICKS
}

fn own_with_children() -> f64 {
    stat_fields("self").iter().sum::<f64>() / TICKS
}

/// Resident memory of a process in MiB: now, and the most there was.
pub(crate) fn resident_mib(pid: u32) -> (f64, f64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
        kib.unwrap_or(0.0) / 1024.0
    };
    (field("VmRSS:"), field("VmHWM:"))
}

/// Some durations, to be asked for their spread.
#[derive(Default)]
pub(crate) struct Times(Vec<f64>);

impl Times {
    pub(crate) fn push(&mut self, time: Duration) {
        self.0.push(time.as_secs_f64() * 1e3);
    }

    pub(crate) fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Milliseconds that this share of them stays under.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let at = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(at.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "count": self.len(),
            "p50_ms": rounded(self.quantile(0.5)),
            "p99_ms": rounded(self.quantile(0.99)),
            "max_ms": rounded(self.quantile(1.0)),
        })
    }
}

/// The middle of some values.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Four digits are more than any of this is good for.
pub(crate) fn rounded(value: f64) -> Value {
    if value == 0.0 || !value.is_finite() {
        return json!(value);
    }
    let scale = 10f64.powi(3 - value.abs().log10().floor() as i32);
    json!((value * scale).round() / scale)
}

/// Everything that a reader needs to judge the numbers.
pub(crate) fn record(options: &Options, before: &Busy, outcome: &Outcome) -> Value {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let date = std::process::Command::new("date").args(["-u", "+%F"]).output();
    let date = date.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned());
    json!({
        "kind": format!("server-{}", options.command),
        "date": date.unwrap_or_default(),
        "command": format!("cargo run --release -p fletcher-server --example load -- {}", options.line),
        "machine": {
            "cpu": cpu.map_or("unknown", |(_, name)| name),
            "cores": std::thread::available_parallelism().map_or(0, usize::from),
            "system": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        },
        "foreign_share": rounded(before.foreign_share()),
        "model": options::bare(&options.model),
        "numbers": outcome.numbers,
        "does_not_hold": outcome.failures,
    })
}
