//! Where a GPU's time goes, by its own clock: for tuning, not for production, since a query after
//! each kernel keeps neighbours from overlapping.

use std::sync::{Mutex, PoisonError};

use fletcher_core::backend::BackendError;

use super::device::Gpu;

/// What a device needs to be profiled.
pub(super) const FEATURES: wgpu::Features =
    wgpu::Features::TIMESTAMP_QUERY.union(wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES);
/// Kernels of one batch that are timed; those behind them are not.
const KERNELS_MAX: usize = 400;

/// The time that one kernel took over all batches.
#[derive(Debug, Clone, PartialEq)]
pub struct KernelTime {
    /// Which kernel, over which shape.
    pub name: String,
    /// How often it ran.
    pub calls: u64,
    /// Seconds on the device.
    pub seconds: f64,
    /// Floating-point operations of matrix products.
    pub operations: f64,
    /// Bytes of activations that it read and wrote.
    pub bytes: f64,
}

/// What a launch does, for the profile.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Work {
    pub(super) operations: f64,
    pub(super) bytes: f64,
}

/// The sums of a device.
#[derive(Debug, Default)]
pub(super) struct Profile(Mutex<Vec<KernelTime>>);

impl Profile {
    /// The sums so far, the longest first; they start again from nothing.
    pub(super) fn take(&self) -> Vec<KernelTime> {
        let mut times = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        times.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        times
    }

    fn add(&self, name: &str, seconds: f64, work: Work) {
        let mut times = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = times.iter().position(|time| time.name == name).unwrap_or_else(|| {
            let name = name.to_owned();
            times.push(KernelTime { name, calls: 0, seconds: 0.0, operations: 0.0, bytes: 0.0 });
            times.len() - 1
        });
        let time = &mut times[at];
        time.calls += 1;
        time.seconds += seconds;
        time.operations += work.operations;
        time.bytes += work.bytes;
    }
}

/// The queries of one arena's batch.
pub(super) struct Timer {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    returned: wgpu::Buffer,
    timed: Vec<(String, Work)>,
}

impl Timer {
    pub(super) fn new(gpu: &Gpu) -> Result<Self, BackendError> {
        use wgpu::BufferUsages as Usage;
        let count = KERNELS_MAX as u32 + 1;
        let queries = gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("kernels"),
            ty: wgpu::QueryType::Timestamp,
            count,
        });
        let bytes = count as usize * size_of::<u64>();
        Ok(Self {
            queries,
            resolved: gpu.buffer("times", bytes, Usage::QUERY_RESOLVE | Usage::COPY_SRC)?,
            returned: gpu.buffer("times", bytes, Usage::MAP_READ | Usage::COPY_DST)?,
            timed: Vec::new(),
        })
    }

    /// Notes the time at the start of a batch.
    pub(super) fn begin(&mut self, pass: &mut wgpu::ComputePass<'_>) {
        self.timed.clear();
        pass.write_timestamp(&self.queries, 0);
    }

    /// Notes the time after a kernel.
    pub(super) fn after(&mut self, pass: &mut wgpu::ComputePass<'_>, name: String, work: Work) {
        if self.timed.len() < KERNELS_MAX {
            self.timed.push((name, work));
            pass.write_timestamp(&self.queries, self.timed.len() as u32);
        }
    }

    /// Records that the times come back with the batch.
    pub(super) fn resolve(&self, encoder: &mut wgpu::CommandEncoder) {
        let count = self.timed.len() as u32 + 1;
        encoder.resolve_query_set(&self.queries, 0..count, &self.resolved, 0);
        let bytes = u64::from(count) * size_of::<u64>() as u64;
        encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.returned, 0, bytes);
    }

    /// Adds a finished batch's times to the device's.
    pub(super) fn collect(&self, gpu: &Gpu, profile: &Profile) -> Result<(), BackendError> {
        self.returned.slice(..).map_async(wgpu::MapMode::Read, |_| {});
        let waited = gpu.device.poll(wgpu::PollType::wait_indefinitely());
        waited.map_err(|e| gpu.failure(e.to_string()))?;
        let period = f64::from(gpu.queue.get_timestamp_period()) * 1e-9;
        {
            let view =
                self.returned.get_mapped_range(..).map_err(|e| gpu.failure(e.to_string()))?;
            let ticks: Vec<u64> = view
                .chunks_exact(size_of::<u64>())
                .map(|b| u64::from_ne_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
                .collect();
            for ((name, work), pair) in self.timed.iter().zip(ticks.windows(2)) {
                profile.add(name, pair[1].saturating_sub(pair[0]) as f64 * period, *work);
            }
        }
        self.returned.unmap();
        Ok(())
    }
}
