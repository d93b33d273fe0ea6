//! What the server counts, for `/metrics` and the live page.
//!
//! A registry of its own per server, so that tests can run several in one process. Labels are
//! closed sets: no client can make a new series.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use fletcher_core::embedder::DeviceStatus;

use crate::batcher::Lane;

/// Media type of [`Metrics::render`].
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels<const N: usize> = [(&'static str, &'static str); N];
type ByDevice<M> = Family<[(&'static str, String); 1], M>;
type Seconds = Counter<f64, AtomicU64>;

/// All series of one server.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<[(&'static str, String); 3], Counter>,
    request_seconds: Family<Labels<1>, Histogram>,
    rejected: Family<Labels<1>, Counter>,
    rows: Family<Labels<1>, Counter>,
    queue_seconds: Family<Labels<1>, Histogram>,
    device_up: ByDevice<Gauge>,
    device_blocks: ByDevice<Gauge>,
    device_memory_used: ByDevice<Gauge>,
    device_memory_peak: ByDevice<Gauge>,
    /// Tokens that went through the encoder.
    pub tokens: Counter,
    /// Tokens waiting.
    pub queue_tokens: Gauge,
    /// Requests with rows waiting.
    pub queue_requests: Gauge,
    /// Blocks being computed.
    pub busy_workers: Gauge,
    /// Time that blocks took, summed over workers.
    pub busy_seconds: Seconds,
    /// Tokens of a block.
    pub block_tokens: Histogram,
    /// Rows of a block.
    pub block_rows: Histogram,
    /// Time a block took.
    pub block_seconds: Histogram,
    /// Time that tokenising a request took.
    pub tokenize_seconds: Histogram,
    /// Open connections.
    pub connections: Gauge,
    /// Panics that were caught.
    pub panics: Counter,
    /// Texts answered from the cache.
    pub cache_hits: Counter,
    /// Texts that were not in the cache.
    pub cache_misses: Counter,
    /// Texts that waited for another request's computation of the same text.
    pub cache_shared: Counter,
    /// Size of the cache.
    pub cache_bytes: Gauge,
    spans: Family<Labels<1>, Counter>,
    /// Rows acknowledged by the forwarding target.
    pub forward_rows: Counter,
    /// Failed attempts to reach the target.
    pub forward_failures: Counter,
    /// 1 while the target is given a rest after repeated failures.
    pub forward_open: Gauge,
    /// Rows that are safe on disk and not yet acknowledged by the target.
    pub forward_pending_rows: Gauge,
    /// Size of the durable queue.
    pub forward_pending_bytes: Gauge,
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 2.0, 17))
}

fn sizes() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 2.0, 17))
}

impl Metrics {
    /// Registers every series.
    pub fn new(model: &str, fingerprint: &str) -> Self {
        let mut registry = Registry::with_prefix("fletcher");
        let build = [
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("model", model.to_owned()),
            ("fingerprint", fingerprint.to_owned()),
        ];
        registry.register("build", "What is running", Info::new(build.to_vec()));
        let mut m = Self {
            registry: Registry::default(),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(seconds),
            rejected: Family::default(),
            rows: Family::default(),
            queue_seconds: Family::new_with_constructor(seconds),
            device_up: Family::default(),
            device_blocks: Family::default(),
            device_memory_used: Family::default(),
            device_memory_peak: Family::default(),
            tokens: Counter::default(),
            queue_tokens: Gauge::default(),
            queue_requests: Gauge::default(),
            busy_workers: Gauge::default(),
            busy_seconds: Seconds::default(),
            block_tokens: sizes(),
            block_rows: sizes(),
            block_seconds: seconds(),
            tokenize_seconds: seconds(),
            connections: Gauge::default(),
            panics: Counter::default(),
            cache_hits: Counter::default(),
            cache_misses: Counter::default(),
            cache_shared: Counter::default(),
            cache_bytes: Gauge::default(),
            spans: Family::default(),
            forward_rows: Counter::default(),
            forward_failures: Counter::default(),
            forward_open: Gauge::default(),
            forward_pending_rows: Gauge::default(),
            forward_pending_bytes: Gauge::default(),
        };
        let s = || Unit::Seconds;
        let r = &mut registry;
        r.register("requests", "Requests by dialect, route and status", m.requests.clone());
        let help = "Time from head to answer";
        r.register_with_unit("request", help, s(), m.request_seconds.clone());
        r.register("rejected", "Requests refused, by reason", m.rejected.clone());
        r.register("rows", "Texts by outcome", m.rows.clone());
        let help = "Wait of a request's first row, by lane";
        r.register_with_unit("queue", help, s(), m.queue_seconds.clone());
        let help = "1 while the device is used, 0 after it failed and others took over";
        r.register("device_up", help, m.device_up.clone());
        r.register("device_blocks", "Blocks a device encoded", m.device_blocks.clone());
        let help = "Bytes of a device's own memory that are allocated";
        r.register("device_memory_used_bytes", help, m.device_memory_used.clone());
        let help = "The most bytes of a device's own memory that were ever allocated";
        r.register("device_memory_peak_bytes", help, m.device_memory_peak.clone());
        r.register("tokens", "Tokens through the encoder", m.tokens.clone());
        r.register("queue_tokens", "Tokens waiting", m.queue_tokens.clone());
        r.register("queue_requests", "Requests with rows waiting", m.queue_requests.clone());
        r.register("busy_workers", "Blocks being computed", m.busy_workers.clone());
        let help = "Time in the encoder, summed over workers";
        r.register_with_unit("busy", help, s(), m.busy_seconds.clone());
        r.register("block_tokens", "Tokens of a block", m.block_tokens.clone());
        r.register("block_rows", "Texts of a block", m.block_rows.clone());
        r.register_with_unit("block", "Time of a block", s(), m.block_seconds.clone());
        let help = "Time to tokenise a request";
        r.register_with_unit("tokenize", help, s(), m.tokenize_seconds.clone());
        r.register("connections", "Open connections", m.connections.clone());
        r.register("panics", "Panics caught", m.panics.clone());
        r.register("cache_hits", "Texts answered from the cache", m.cache_hits.clone());
        r.register("cache_misses", "Texts not in the cache", m.cache_misses.clone());
        let help = "Texts that waited for the same text of another request";
        r.register("cache_shared", help, m.cache_shared.clone());
        r.register("cache_bytes", "Size of the cache", m.cache_bytes.clone());
        r.register("spans", "Spans for the collector, by outcome", m.spans.clone());
        r.register("forward_rows", "Rows the target acknowledged", m.forward_rows.clone());
        let help = "Failed attempts to reach the target";
        r.register("forward_failures", help, m.forward_failures.clone());
        let help = "1 while the target is given a rest";
        r.register("forward_open", help, m.forward_open.clone());
        let help = "Rows on disk that the target has not acknowledged";
        r.register("forward_pending_rows", help, m.forward_pending_rows.clone());
        let help = "Size of the durable queue";
        r.register("forward_pending_bytes", help, m.forward_pending_bytes.clone());
        m.registry = registry;
        m
    }

    /// Everything in the text format of OpenMetrics.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    /// Takes over what the devices say of themselves.
    pub fn devices(&self, devices: &[DeviceStatus]) {
        for device in devices {
            let label = [("device", device.name.clone())];
            let up = i64::from(device.lost.is_none());
            self.device_up.get_or_create(&label).set(up);
            self.device_blocks.get_or_create(&label).set(device.blocks as i64);
            if let Some(memory) = device.memory {
                self.device_memory_used.get_or_create(&label).set(memory.used as i64);
                self.device_memory_peak.get_or_create(&label).set(memory.peak as i64);
            }
        }
    }

    /// Counts an answered request. `route` is the router's pattern, never the client's path.
    pub fn request(&self, dialect: &'static str, route: &str, status: u16, seconds: f64) {
        let labels = [
            ("dialect", dialect.to_owned()),
            ("route", route.to_owned()),
            ("status", status.to_string()),
        ];
        self.requests.get_or_create(&labels).inc();
        self.request_seconds.get_or_create(&[("dialect", dialect)]).observe(seconds);
    }

    /// Counts a refusal.
    pub fn reject(&self, reason: &'static str) {
        self.rejected.get_or_create(&[("reason", reason)]).inc();
    }

    /// Counts texts by what became of them: `ok`, `error`, `cancelled` or `expired`.
    pub fn count_rows(&self, outcome: &'static str, rows: usize) {
        if rows > 0 {
            self.rows.get_or_create(&[("outcome", outcome)]).inc_by(rows as u64);
        }
    }

    /// Counts spans by what became of them: `sent`, `dropped` or `failed`.
    pub fn spans(&self, outcome: &'static str, count: usize) {
        self.spans.get_or_create(&[("outcome", outcome)]).inc_by(count as u64);
    }

    /// Texts that became vectors.
    pub fn rows_done(&self) -> u64 {
        self.rows.get_or_create(&[("outcome", "ok")]).get()
    }

    /// Requests refused because the queue was full.
    pub fn overloads(&self) -> u64 {
        self.rejected.get_or_create(&[("reason", "overloaded")]).get()
    }

    /// Records how long a request waited for its first row's turn.
    pub fn queued(&self, lane: Lane, seconds: f64) {
        self.queue_seconds.get_or_create(&[("lane", lane.name())]).observe(seconds);
    }
}
