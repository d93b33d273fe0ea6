//! A report as one self-contained page.

use std::fmt::Write as _;

use crate::bench::plot::{Bar, Lines, Log, Series, bars, escape};
use crate::bench::report::{Report, Sizes};
use crate::bench::table::{self, count};
use crate::bench::workload::{LatencyRun, Shares};

/// Style sheet and all, up to the content.
const HEAD: &str = include_str!("page.html");

/// Fewer lengths than these are no curve.
const LENGTHS_MIN: usize = 4;

/// The whole page.
pub(crate) fn html(report: &Report) -> String {
    let mut page = HEAD.to_owned();
    let (model, machine) = (&report.model, &report.machine);
    // Writing to a string cannot fail.
    let _ = write!(
        page,
        "<h1>{}</h1><p class=facts>{}, {} parameters, on {} in {}, {} threads</p>\
         <p class=facts>{}, {} cores ({}), {}</p><p class=facts><code>{}</code></p>",
        escape(&model.name),
        escape(model.architecture),
        count(model.parameters as f64),
        escape(&report.device),
        escape(&report.precision),
        report.threads,
        escape(&machine.cpu),
        machine.cores,
        escape(&machine.flags.join(" ")),
        report.date,
        escape(&report.command),
    );
    tiles(&mut page, report);
    page.push_str("<div class=cards>");
    if let Some(sizes) = &report.sizes {
        sizes_cards(&mut page, report, sizes);
    }
    if let Some(soak) = &report.soak {
        let rates = windows(&soak.run.rates);
        card(&mut page, "Soak: throughput over time", "One point per second.", &over_time(rates));
        let memory = windows(&soak.resident_mib);
        let series = vec![Series { name: "resident", points: memory, marked: false }];
        let plot = Lines { x_label: "seconds", y_label: "MiB", log: Log::None, series };
        let note = format!("{:+.1} MiB after the first tenth of the time.", soak.growth_mib);
        card(&mut page, "Soak: resident memory", &note, &plot.svg());
    }
    if !report.latency.is_empty() {
        latency_card(&mut page, &report.latency);
    }
    if report.latency.len() >= LENGTHS_MIN {
        lengths_card(&mut page, report);
    }
    stages_card(&mut page, report);
    let tables = format!("<pre>{}</pre>", escape(&table::print(report)));
    let _ = write!(page, r#"<div class="card wide"><h2>All numbers</h2>{tables}</div>"#);
    page.push_str("</div></main></body></html>\n");
    page
}

fn tiles(page: &mut String, report: &Report) {
    let mut tiles: Vec<(String, String)> = Vec::new();
    let last = report.sizes.as_ref().and_then(|sizes| sizes.runs.last());
    if let Some(run) = last {
        let what = format!("vectors/s over {} sequences", count(run.rows as f64));
        tiles.push((count(run.vectors_per_second), what));
        if let Some(share) = run.share_of_peak {
            tiles.push((format!("{:.0} %", 100.0 * share), "of the arithmetic peak".into()));
        }
    }
    if let Some(text) = &report.text {
        tiles.push((count(text.texts_per_second), "texts/s end to end".into()));
    }
    if let Some(run) = report.latency.first() {
        let what = format!("median for one text of {} tokens", run.tokens);
        tiles.push((format!("{:.2} ms", run.p50_ms), what));
    }
    if let Some(idle) = report.idle {
        tiles.push((format!("{:.1} MiB", idle.resident_mib), "resident when idle".into()));
    }
    if let Some(memory) = last.and_then(|run| run.memory) {
        tiles.push((format!("{:.1} MiB", memory.peak_mib), "resident at the peak".into()));
    }
    page.push_str("<div class=tiles>");
    for (value, what) in tiles {
        let _ = write!(page, "<div class=tile><b>{value}</b><span>{}</span></div>", escape(&what));
    }
    page.push_str("</div>");
}

fn card(page: &mut String, title: &str, note: &str, content: &str) {
    let (title, note) = (escape(title), escape(note));
    let _ = write!(page, "<div class=card><h2>{title}</h2>{content}<p>{note}</p></div>");
}

/// Values one second apart.
fn windows(values: &[f64]) -> Vec<(f64, f64)> {
    values.iter().enumerate().map(|(at, &value)| (at as f64 + 1.0, value)).collect()
}

fn over_time(points: Vec<(f64, f64)>) -> String {
    let series = vec![Series { name: "vectors/s", points, marked: false }];
    Lines { x_label: "seconds", y_label: "vectors/s", log: Log::None, series }.svg()
}

fn sizes_cards(page: &mut String, report: &Report, sizes: &Sizes) {
    let rate = |run: &crate::bench::workload::SizeRun| (run.rows as f64, run.vectors_per_second);
    let points = sizes.runs.iter().map(rate).collect();
    let series = vec![Series { name: "vectors/s", points, marked: true }];
    let plot =
        Lines { x_label: "sequences in the data set", y_label: "vectors/s", log: Log::X, series };
    let note = format!("{} tokens a sequence, batches of {}.", sizes.seq_len, sizes.batch_size);
    card(page, "Throughput over data set size", &note, &plot.svg());
    if let Some(run) = sizes.runs.last().filter(|run| run.rates.len() > 1) {
        let note = match &run.windows {
            Some(w) => format!(
                "One point per second of the largest size; median {}, spread ±{:.1} %.",
                count(w.median),
                100.0 * w.spread
            ),
            None => String::new(),
        };
        card(page, "Throughput over time", &note, &over_time(windows(&run.rates)));
    }
    let share = |run: &crate::bench::workload::SizeRun| {
        let share = run.share_of_peak?;
        let label = format!("{:.1} %", 100.0 * share);
        Some(Bar { name: count(run.rows as f64), parts: vec![(share, label)] })
    };
    let shares: Option<Vec<Bar>> = sizes.runs.iter().map(share).collect();
    if let (Some(shares), Some(peak)) = (shares, report.peak) {
        let note = format!(
            "The full width is {} Gop/s, measured with {} threads that only multiply in {}.",
            count(peak.gops),
            report.threads,
            peak.format
        );
        card(page, "Share of the machine's arithmetic peak", &note, &bars(&shares, &[], 1.0));
    }
}

fn latency_card(page: &mut String, runs: &[LatencyRun]) {
    let longest = runs.iter().map(|run| run.p99_ms).fold(0.0, f64::max) * 1.2;
    let bar = |run: &LatencyRun| {
        let steps = [run.p50_ms, run.p90_ms - run.p50_ms, run.p99_ms - run.p90_ms];
        let labels = [run.p50_ms, run.p90_ms, run.p99_ms].map(|ms| format!("{ms:.2}"));
        Bar {
            name: format!("{} tokens", run.tokens),
            parts: steps.into_iter().zip(labels).collect(),
        }
    };
    let all: Vec<Bar> = runs.iter().map(bar).collect();
    let content = bars(&all, &["p50", "p90", "p99"], longest);
    let each = |run: &LatencyRun| {
        format!(
            "{} tokens: p50 {:.3}, p90 {:.3}, p99 {:.3} ms",
            run.tokens, run.p50_ms, run.p90_ms, run.p99_ms
        )
    };
    let note = runs.iter().map(each).collect::<Vec<_>>().join("; ");
    card(page, "Latency of one text, ms", &note, &content);
}

/// Time over length, beside what the arithmetic of the peak would need: linear layers grow with
/// the length, attention with its square.
fn lengths_card(page: &mut String, report: &Report) {
    let runs = &report.latency;
    let points = runs.iter().map(|run| (run.tokens as f64, run.p50_ms)).collect();
    let mut series = vec![Series { name: "median", points, marked: true }];
    let bound = |run: &LatencyRun| Some((run.tokens as f64, run.bound_ms?));
    if let (Some(points), Some(_)) = (runs.iter().map(bound).collect(), report.peak) {
        series.push(Series { name: "at the arithmetic peak", points, marked: false });
    }
    let plot = Lines { x_label: "tokens", y_label: "ms", log: Log::Both, series };
    let note = "One text at a time; every step of either axis is the same factor.";
    card(page, "Time over length", note, &plot.svg());
}

fn stages_card(page: &mut String, report: &Report) {
    let mut all = Vec::new();
    if let Some(run) = report.sizes.as_ref().and_then(|sizes| sizes.runs.last()) {
        all.push(stage_bar("token ids", &run.stages));
    }
    if let Some(run) = &report.text {
        all.push(stage_bar("texts", &run.stages));
    }
    if all.is_empty() {
        return;
    }
    let names = ["encode", "tokenise", "pack", "head", "other"];
    let note = "Of all workers' time; other is waiting, handing over and assembling.";
    card(page, "Share of time per stage", note, &bars(&all, &names, 1.0));
}

fn stage_bar(name: &str, shares: &Shares) -> Bar {
    let Shares { tokenise, pack, encode, head, other } = *shares;
    let parts = [encode, tokenise, pack, head, other].map(|s| (s, format!("{:.1} %", 100.0 * s)));
    Bar { name: name.to_owned(), parts: parts.to_vec() }
}
