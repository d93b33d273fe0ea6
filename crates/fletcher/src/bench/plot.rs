//! Plots as SVG text: lines over a linear or logarithmic axis, and horizontal bars in parts.
//!
//! Written out by hand, because two kinds of plot with colours from the page's style sheet are
//! less code than the configuration of a plotting library.

use std::fmt::Write as _;

use crate::bench::table::count;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 46.0;

/// Lines through points.
pub(crate) struct Lines<'a> {
    pub(crate) x_label: &'a str,
    pub(crate) y_label: &'a str,
    pub(crate) log: Log,
    pub(crate) series: Vec<Series<'a>>,
}

/// Axes on which powers of ten are equally far apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Log {
    None,
    X,
    Both,
}

pub(crate) struct Series<'a> {
    pub(crate) name: &'a str,
    pub(crate) points: Vec<(f64, f64)>,
    /// Whether each point is marked and labelled with its value.
    pub(crate) marked: bool,
}

/// One horizontal bar, of parts with lengths and labels.
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) parts: Vec<(f64, String)>,
}

impl Lines<'_> {
    pub(crate) fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let x_of = |x: f64| if self.log != Log::None { x.max(1e-9).log10() } else { x };
        let xs = || points().map(|&(x, _)| x_of(x));
        let (x_min, x_max) = (xs().fold(f64::MAX, f64::min), xs().fold(f64::MIN, f64::max));
        let x_span = if x_max > x_min { x_max - x_min } else { 1.0 };
        let y_of = |y: f64| if self.log == Log::Both { y.max(1e-9).log10() } else { y };
        let y_ticks = self.y_ticks();
        let (y_min, y_max) = match y_ticks[..] {
            [first, .., last] => (y_of(first), y_of(last)),
            _ => (0.0, 1.0),
        };
        let px = |x: f64| LEFT + (x_of(x) - x_min) / x_span * (WIDTH - LEFT - RIGHT);
        let py = |y: f64| {
            HEIGHT - BOTTOM - (y_of(y) - y_min) / (y_max - y_min) * (HEIGHT - TOP - BOTTOM)
        };

        let mut svg = open(HEIGHT);
        for value in y_ticks {
            let y = py(value);
            let _ = write!(
                svg,
                r#"<line class="grid" x1="{LEFT}" x2="{}" y1="{y:.1}" y2="{y:.1}"/>"#,
                WIDTH - RIGHT
            );
            text(&mut svg, (LEFT - 8.0, y + 4.0), "end", &short(value));
        }
        for value in self.x_ticks(x_min, x_max) {
            text(&mut svg, (px(value), HEIGHT - BOTTOM + 18.0), "middle", &short(value));
        }
        text(&mut svg, (LEFT + (WIDTH - LEFT - RIGHT) / 2.0, HEIGHT - 8.0), "middle", self.x_label);
        let _ = write!(
            svg,
            r#"<text transform="translate(16 {:.0}) rotate(-90)" text-anchor="middle">{}</text>"#,
            TOP + (HEIGHT - TOP - BOTTOM) / 2.0,
            escape(self.y_label)
        );
        for (number, series) in self.series.iter().enumerate() {
            let path: Vec<String> =
                series.points.iter().map(|&(x, y)| format!("{:.1},{:.1}", px(x), py(y))).collect();
            let _ =
                write!(svg, r#"<polyline class="line c{number}" points="{}"/>"#, path.join(" "));
            for &(x, y) in series.points.iter().filter(|_| series.marked) {
                let (cx, cy) = (px(x), py(y));
                let _ = write!(
                    svg,
                    r#"<circle class="dot c{number}" cx="{cx:.1}" cy="{cy:.1}" r="4"/>"#
                );
                let lift = if number == 0 { 20.0 } else { -10.0 };
                let anchor = match () {
                    () if cx > WIDTH - RIGHT - 30.0 => "end",
                    () if cx < LEFT + 30.0 => "start",
                    () => "middle",
                };
                text(&mut svg, (cx, cy + lift), anchor, &count(y));
            }
        }
        svg.push_str("</svg>");
        let names = self.series.iter().map(|series| series.name);
        svg + &legend(names)
    }

    /// At least two; the first and the last are the ends of the axis.
    fn y_ticks(&self) -> Vec<f64> {
        let ys = || self.series.iter().flat_map(|series| &series.points).map(|&(_, y)| y);
        let largest = ys().fold(0.0, f64::max) * 1.08;
        if self.log == Log::Both {
            let power = |y: f64| y.clamp(1e-6, 1e12).log10();
            let first = power(ys().fold(f64::MAX, f64::min)).floor() as i32;
            let last = (power(largest).ceil() as i32).max(first + 1);
            return (first..=last).map(|power| 10f64.powi(power)).collect();
        }
        let step = tick(largest);
        let steps = (largest / step).ceil().max(1.0) as usize;
        (0..=steps).map(|index| index as f64 * step).collect()
    }

    fn x_ticks(&self, min: f64, max: f64) -> Vec<f64> {
        if self.log != Log::None {
            let mut ticks: Vec<f64> =
                self.series.iter().flat_map(|s| &s.points).map(|p| p.0).collect();
            ticks.sort_by(f64::total_cmp);
            ticks.dedup();
            return ticks;
        }
        let step = tick(max - min);
        let first = (min / step).ceil() as i64;
        (first..=(max / step).floor() as i64).map(|index| index as f64 * step).collect()
    }
}

/// Bars below each other; `parts` names the parts for the legend. Lengths are shares of `full`.
pub(crate) fn bars(bars: &[Bar], parts: &[&str], full: f64) -> String {
    const BAR: f64 = 40.0;
    let left = 96.0;
    let height = BAR * bars.len() as f64 + 8.0;
    let mut svg = open(height);
    for (row, bar) in bars.iter().enumerate() {
        let y = row as f64 * BAR + 6.0;
        text(&mut svg, (left - 10.0, y + 18.0), "end", &bar.name);
        let room = WIDTH - RIGHT - left;
        let _ = write!(
            svg,
            r#"<rect class="track" x="{left}" y="{y}" width="{room}" height="28" rx="3"/>"#
        );
        let mut x = left;
        for (number, (length, label)) in bar.parts.iter().enumerate() {
            let width = (length / full).clamp(0.0, 1.0) * room;
            let _ = write!(
                svg,
                r#"<rect class="part c{number}" x="{x:.1}" y="{y}" width="{width:.1}" height="28" rx="3"><title>{}</title></rect>"#,
                escape(label)
            );
            // A label that does not fit in its part is left to the pointer.
            if width > 7.5 * label.chars().count() as f64 {
                let _ = write!(
                    svg,
                    r#"<text class="inside" x="{:.1}" y="{}" text-anchor="middle">{}</text>"#,
                    x + width / 2.0,
                    y + 18.0,
                    escape(label)
                );
            } else if bar.parts.len() == 1 {
                text(&mut svg, (x + width + 6.0, y + 18.0), "start", label);
            }
            x += width;
        }
    }
    svg.push_str("</svg>");
    svg + &legend(parts.iter().copied())
}

fn open(height: f64) -> String {
    format!(r#"<svg viewBox="0 0 {WIDTH} {height}" role="img">"#)
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, content: &str) {
    let content = escape(content);
    let _ = write!(svg, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{content}</text>"#);
}

fn legend<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    if names.len() < 2 {
        return String::new();
    }
    let entry = |(number, name): (usize, &&str)| {
        format!(r#"<span><i class="c{number}"></i>{}</span>"#, escape(name))
    };
    let entries: String = names.iter().enumerate().map(entry).collect();
    format!(r#"<p class="legend">{entries}</p>"#)
}

/// The distance of about five ticks over `span`: 1, 2 or 5 times a power of ten.
fn tick(span: f64) -> f64 {
    let rough = (span / 5.0).max(1e-9);
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= rough);
    factor.unwrap_or(10.0) * power
}

/// A number for an axis.
fn short(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{}M", trim(v / 1e6)),
        v if v >= 1e3 => format!("{}K", trim(v / 1e3)),
        v if v > 0.0 && v < 0.01 => format!("{v:e}"),
        v => trim(v),
    }
}

fn trim(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Text as HTML and SVG want it.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        let cases = [(10.0, 2.0), (9.0, 2.0), (4.9, 1.0), (0.3, 0.1), (4_321.0, 1_000.0)];
        for (span, step) in cases {
            assert!((tick(span) - step).abs() < 1e-9, "{span}: {}", tick(span));
        }
    }

    #[test]
    fn a_plot_holds_its_labels_and_survives_odd_input() {
        let series = |points| vec![Series { name: "a<b", points, marked: true }];
        for log in [Log::None, Log::X, Log::Both] {
            for points in [vec![], vec![(5.0, 0.0)], vec![(1.0, 2.0), (10.0, 3.0)]] {
                let plot = Lines { x_label: "x", y_label: "y", log, series: series(points) };
                let svg = plot.svg();
                assert!(
                    svg.starts_with("<svg") && !svg.contains("NaN") && !svg.contains("inf"),
                    "{svg}"
                );
            }
        }
        let bar = Bar { name: "n".into(), parts: vec![(0.5, "50 %".into())] };
        assert!(bars(&[bar], &["p"], 1.0).contains("50 %"));
    }
}
