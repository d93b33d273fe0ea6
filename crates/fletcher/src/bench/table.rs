//! A report as tables for the terminal.

use std::fmt::Write as _;

use crate::bench::report::{Peak, Report, Sizes};
use crate::bench::workload::{LatencyRun, Shares, SizeRun, SoakRun, TextRun};

/// The whole report.
pub(crate) fn print(report: &Report) -> String {
    let mut out = String::new();
    let machine = &report.machine;
    line(&mut out, "model", &format!("{} ({})", report.model.name, report.model.architecture));
    let threads = report.threads;
    line(&mut out, "on", &format!("{}, {}, {threads} threads", report.device, report.precision));
    line(&mut out, "machine", &format!("{}, {} cores", machine.cpu, machine.cores));
    line(&mut out, "flags", &machine.flags.join(" "));
    if let Some(Peak { gops, format }) = report.peak {
        line(&mut out, "peak", &format!("{gops:.0} Gop/s in {format}, measured"));
    }
    line(&mut out, "loaded in", &format!("{:.1} ms", report.load_ms));
    if let Some(idle) = report.idle {
        let (all, own) = (idle.resident_mib, idle.anonymous_mib);
        line(&mut out, "idle", &format!("{all:.1} MiB resident, {own:.1} MiB of it not of files"));
    }
    for device in report.devices.iter().filter(|_| report.devices.len() > 1) {
        line(&mut out, &device.name, &format!("{} blocks", device.blocks));
    }
    for device in &report.devices {
        if let Some(mib) = device.peak_memory_mib {
            line(&mut out, &device.name, &format!("at most {mib:.0} MiB of its memory taken"));
        }
    }
    if let Some(sizes) = &report.sizes {
        print_sizes(&mut out, sizes);
    }
    if let Some(text) = &report.text {
        print_text(&mut out, text);
    }
    if !report.latency.is_empty() {
        print_latency(&mut out, &report.latency);
    }
    if let Some(soak) = &report.soak {
        print_soak(&mut out, soak);
    }
    out
}

fn line(out: &mut String, name: &str, value: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "{name:<10} {value}");
}

fn print_sizes(out: &mut String, sizes: &Sizes) {
    let _ = writeln!(out, "\n{} tokens a sequence, batches of {}", sizes.seq_len, sizes.batch_size);
    let _ = writeln!(
        out,
        "{:>10} {:>9} {:>11} {:>11} {:>8} {:>8} {:>9}",
        "sequences", "seconds", "vectors/s", "best second", "spread", "of peak", "peak RSS"
    );
    for run in &sizes.runs {
        let _ = writeln!(out, "{}", size_row(run));
    }
    if let Some(last) = sizes.runs.last() {
        print_shares(out, &last.stages);
    }
}

fn size_row(run: &SizeRun) -> String {
    let none = || "–".to_owned();
    let windows = run.windows.as_ref();
    let best = windows.map_or_else(none, |w| count(w.peak));
    let spread = windows.filter(|w| w.count > 2);
    let spread = spread.map_or_else(none, |w| format!("±{:.1} %", 100.0 * w.spread));
    let peak = run.share_of_peak.map_or_else(none, |share| format!("{:.1} %", 100.0 * share));
    let memory = run.memory.map_or_else(none, |memory| format!("{:.1} MiB", memory.peak_mib));
    let (rows, rate) = (count(run.rows as f64), count(run.vectors_per_second));
    format!(
        "{rows:>10} {:>9.2} {rate:>11} {best:>11} {spread:>8} {peak:>8} {memory:>9}",
        run.seconds
    )
}

fn print_text(out: &mut String, run: &TextRun) {
    let _ = writeln!(
        out,
        "\n{}: {} texts, {} tokens",
        run.file,
        count(run.texts as f64),
        count(run.tokens as f64)
    );
    line(out, "texts/s", &count(run.texts_per_second));
    line(out, "tokens/s", &count(run.tokens_per_second));
    let alone = count(run.tokeniser_tokens_per_second);
    line(out, "tokeniser", &format!("{alone} tokens/s on one thread"));
    print_shares(out, &run.stages);
}

fn print_latency(out: &mut String, runs: &[LatencyRun]) {
    let _ = writeln!(out, "\none text at a time, in ms");
    let _ = writeln!(
        out,
        "{:>8} {:>9} {:>9} {:>9} {:>9} {:>7} {:>8}",
        "tokens", "p50", "p90", "p99", "max", "runs", "of peak"
    );
    for run in runs {
        let LatencyRun { tokens, runs, p50_ms, p90_ms, p99_ms, max_ms, bound_ms } = run;
        let share = bound_ms.map_or("-".into(), |bound| format!("{:.1} %", 100.0 * bound / p50_ms));
        let _ = writeln!(
            out,
            "{tokens:>8} {p50_ms:>9.3} {p90_ms:>9.3} {p99_ms:>9.3} {max_ms:>9.3} {runs:>7} {share:>8}"
        );
    }
}

fn print_soak(out: &mut String, soak: &SoakRun) {
    let _ = writeln!(out, "\nsoak of {:.0} s", soak.run.seconds);
    let _ = writeln!(out, "{}", size_row(&soak.run));
    line(out, "memory", &format!("{:+.1} MiB after the first tenth", soak.growth_mib));
}

fn print_shares(out: &mut String, shares: &Shares) {
    let Shares { tokenise, pack, encode, head, other } = shares;
    let percent = |share: &f64| format!("{:.1} %", 100.0 * share);
    let stages = format!(
        "tokenise {}, pack {}, encode {}, head {}, other {}",
        percent(tokenise),
        percent(pack),
        percent(encode),
        percent(head),
        percent(other)
    );
    line(out, "time", &stages);
}

/// A number with thousands set apart, to three digits or whole.
pub(crate) fn count(value: f64) -> String {
    if value < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn counts() {
        let cases = [
            (1.25, "1.2"),
            (99.96, "100.0"),
            (100.4, "100"),
            (1234.0, "1,234"),
            (1e6, "1,000,000"),
        ];
        for (value, text) in cases {
            assert_eq!(count(value), text);
        }
    }
}
