//! Bars for a person at a terminal; silence for a pipe.

use std::sync::Mutex;
use std::time::Instant;

use fletcher_hub::Progress;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};

use crate::config;

/// Shows one bar per downloaded file.
pub(crate) struct DownloadBar {
    bar: Mutex<ProgressBar>,
}

impl DownloadBar {
    pub(crate) fn new() -> Self {
        Self { bar: Mutex::new(ProgressBar::hidden()) }
    }

    fn bar(&self) -> ProgressBar {
        self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

impl Progress for DownloadBar {
    fn start(&self, file: &str, total_bytes: Option<u64>) {
        let bar = match config::is_interactive() {
            true => ProgressBar::new(total_bytes.unwrap_or(0)).with_style(style(
                "{prefix} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} eta {eta}",
            )),
            false => ProgressBar::hidden(),
        };
        bar.set_prefix(file.to_owned());
        *self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = bar;
    }

    fn advance(&self, bytes: u64) {
        self.bar().inc(bytes);
    }

    fn finish(&self) {
        self.bar().finish();
    }

    #[expect(clippy::print_stderr, reason = "notices are for the person at standard error")]
    fn notice(&self, message: &str) {
        self.bar().suspend(|| eprintln!("note: {message}"));
    }
}

/// Rows, tokens and the time left of a bulk run.
pub(crate) struct EmbedBar {
    bar: ProgressBar,
    start: Instant,
    rows: u64,
    tokens: u64,
}

impl EmbedBar {
    /// `total` is what [`Self::advance`]'s position runs to: rows, or bytes where the number of
    /// rows is not known in advance; `None` for a pipe.
    pub(crate) fn new(total: Option<u64>) -> Self {
        let bar = match (config::is_interactive(), total) {
            (false, _) => ProgressBar::hidden(),
            (true, Some(total)) => {
                ProgressBar::new(total).with_style(style("{bar:30} {percent:>3}% {msg} eta {eta}"))
            }
            (true, None) => ProgressBar::new_spinner().with_style(style("{spinner} {msg}")),
        };
        Self { bar, start: Instant::now(), rows: 0, tokens: 0 }
    }

    pub(crate) fn advance(&mut self, position: u64, rows: u64, tokens: u64) {
        self.rows += rows;
        self.tokens += tokens;
        let seconds = self.start.elapsed().as_secs_f64().max(1e-3);
        let per_second = |count: u64| HumanCount((count as f64 / seconds) as u64);
        self.bar.set_position(position);
        self.bar.set_message(format!(
            "{} rows, {} rows/s, {} tokens/s",
            HumanCount(self.rows),
            per_second(self.rows),
            per_second(self.tokens)
        ));
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
