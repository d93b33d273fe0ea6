//! A GPU as the rest of this folder sees it: found by name, opened with what the kernels need,
//! and with every failure turned into a [`BackendError`].

use std::fmt;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fletcher_core::backend::{BackendError, Precision};
use wgpu::util::{BufferInitDescriptor, DeviceExt};

use super::profile::{self, Profile};
use super::shader::{Element, Target};

/// What the kernels cannot do without.
const REQUIRED: [(wgpu::Features, &str); 2] = [
    (wgpu::Features::SUBGROUP, "subgroup operations"),
    (wgpu::Features::IMMEDIATES, "immediates (push constants)"),
];
/// Bytes of immediates: the largest parameter block of a kernel.
const IMMEDIATE_BYTES: u32 = 32;
/// Storage buffers of a kernel: two of activations, the batch, three of weights.
const STORAGE_BUFFERS: u32 = 6;
/// Workgroup memory of the largest plain kernel; every GPU API promises more.
const WORKGROUP_BYTES: u32 = 21 << 10;
/// Threads of the largest plain workgroup.
const WORKGROUP_THREADS: u32 = 256;
/// Sides of the cooperative tiles for which there are kernels, the better ones first.
const TILES: [u32; 2] = [16, 8];

/// A wait asks the device this long without a pause, and after that with pauses of the second.
const BUSY_WAIT: Duration = Duration::from_micros(300);
const PAUSE: Duration = Duration::from_micros(40);

/// Which API a device is reached through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// Vulkan, on Linux and Windows.
    Vulkan,
    /// Metal, on Apple's machines.
    Metal,
}

impl Api {
    fn backends(self) -> wgpu::Backends {
        match self {
            Api::Vulkan => wgpu::Backends::VULKAN,
            Api::Metal => wgpu::Backends::METAL,
        }
    }
}

impl fmt::Display for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Api::Vulkan => "vulkan",
            Api::Metal => "metal",
        })
    }
}

/// An opened device with what all its arenas share.
pub(super) struct Gpu {
    /// As in `fletcher info`.
    pub(super) name: String,
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) target: Target,
    /// Side of the cooperative tiles that the adapter lists for this element, if it lists any.
    pub(super) tile: Option<u32>,
    /// Whether this is a program that plays a GPU on the CPU.
    pub(super) software: bool,
    pub(super) layouts: Layouts,
    /// Bound where a kernel's parameter is absent.
    pub(super) nothing: wgpu::Buffer,
    /// The kernels' times, where they are wanted.
    pub(super) profile: Option<Profile>,
    /// The first failure that no call of ours was waiting for.
    failed: Arc<Mutex<Option<String>>>,
}

/// The two groups of bindings that every kernel has.
pub(super) struct Layouts {
    /// Input, output and the batch's description.
    pub(super) rows: wgpu::BindGroupLayout,
    /// Up to three read-only buffers.
    pub(super) parameters: wgpu::BindGroupLayout,
    pub(super) pipeline: wgpu::PipelineLayout,
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The API's adapters: hardware first, in the driver's order.
fn adapters(api: Api) -> Vec<wgpu::Adapter> {
    // Without the debug flags that wgpu sets in debug builds: validation layers are a tool to
    // install, not a thing to depend on.
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: api.backends(),
        flags: wgpu::InstanceFlags::empty(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let mut adapters = pollster::block_on(instance.enumerate_adapters(api.backends()));
    adapters.sort_by_key(|adapter| adapter.get_info().device_type == wgpu::DeviceType::Cpu);
    adapters
}

/// What `fletcher info` says of an API's adapters, in the order of their numbers.
pub(super) fn describe(api: Api) -> Result<Vec<String>, String> {
    let adapters = adapters(api);
    match adapters.len() {
        0 => Err(absence(api)),
        _ => Ok(adapters.iter().map(describe_adapter).collect()),
    }
}

fn absence(api: Api) -> String {
    match api {
        Api::Vulkan if cfg!(target_os = "macos") => "Apple's machines have `metal`".to_owned(),
        Api::Vulkan => "no Vulkan loader (libvulkan.so.1) or no driver that it finds".to_owned(),
        Api::Metal if cfg!(target_os = "macos") => "no Metal device".to_owned(),
        Api::Metal => "only on Apple's machines".to_owned(),
    }
}

fn describe_adapter(adapter: &wgpu::Adapter) -> String {
    let (info, limits) = (adapter.get_info(), adapter.limits());
    let kind = match info.device_type {
        wgpu::DeviceType::Cpu => "software, only by name",
        wgpu::DeviceType::IntegratedGpu => "integrated GPU",
        wgpu::DeviceType::DiscreteGpu => "GPU",
        wgpu::DeviceType::VirtualGpu => "virtual GPU",
        wgpu::DeviceType::Other => "unknown kind",
    };
    let driver = [info.driver.as_str(), info.driver_info.as_str()].join(" ");
    let name = format!("{} ({kind}, {})", info.name, driver.trim());
    let missing = missing(adapter, Element::F32);
    if !missing.is_empty() {
        return format!("{name}: cannot be used: lacks {}", missing.join(", "));
    }
    let tile = |element, label: &str| match listed_tile(adapter, element) {
        Some(tile) => format!("{label} with {tile}x{tile}x{tile} cooperative matrices"),
        None => format!("{label} with plain kernels"),
    };
    let f16 = match missing_f16(adapter) {
        false => tile(Element::F16, "f16"),
        true => "no f16".to_owned(),
    };
    // Of the features, those that kernels use; an adapter without the first two cannot be used.
    let lanes = match (info.subgroup_min_size, info.subgroup_max_size) {
        (least, most) if least == most => least.to_string(),
        (least, most) => format!("{least} to {most}"),
    };
    let mut features = format!("subgroups of {lanes}, immediates");
    if !missing_f16(adapter) {
        features.push_str(", f16");
    }
    if listed_tile(adapter, Element::F16).or(listed_tile(adapter, Element::F32)).is_some() {
        features.push_str(", cooperative matrices");
    }
    format!(
        "{name}: {}, {f16}; uses {features}; limits: buffers of {} MiB, workgroups of {} threads \
         and {} KiB, {} workgroups a dimension",
        tile(Element::F32, "f32"),
        limits.max_storage_buffer_binding_size.min(limits.max_buffer_size) >> 20,
        limits.max_compute_invocations_per_workgroup,
        limits.max_compute_workgroup_storage_size >> 10,
        limits.max_compute_workgroups_per_dimension,
    )
}

fn missing_f16(adapter: &wgpu::Adapter) -> bool {
    !adapter.features().contains(wgpu::Features::SHADER_F16)
}

/// What the adapter lacks to be used at all.
fn missing(adapter: &wgpu::Adapter, element: Element) -> Vec<&'static str> {
    let (features, limits) = (adapter.features(), adapter.limits());
    let mut missing: Vec<&str> = (REQUIRED.iter())
        .filter(|(feature, _)| !features.contains(*feature))
        .map(|(_, name)| *name)
        .collect();
    if element == Element::F16 && missing_f16(adapter) {
        missing.push("f16 arithmetic");
    }
    let limit = [
        (limits.max_immediate_size >= IMMEDIATE_BYTES, "room for immediates"),
        (limits.max_storage_buffers_per_shader_stage >= STORAGE_BUFFERS, "storage buffers"),
        (limits.max_compute_workgroup_storage_size >= WORKGROUP_BYTES, "workgroup memory"),
        (limits.max_compute_invocations_per_workgroup >= WORKGROUP_THREADS, "workgroup threads"),
    ];
    missing.extend(limit.iter().filter(|(enough, _)| !enough).map(|(_, name)| *name));
    missing
}

/// The best cooperative tile that the adapter lists. One that it does not list may run all the
/// same and compute wrong numbers, without an error (seen on NVIDIA's driver).
fn listed_tile(adapter: &wgpu::Adapter, element: Element) -> Option<u32> {
    if !adapter.features().contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
        return None;
    }
    let of = match element {
        Element::F32 => wgpu::CooperativeScalarType::F32,
        Element::F16 => wgpu::CooperativeScalarType::F16,
    };
    let listed = adapter.cooperative_matrix_properties();
    TILES.into_iter().find(|&tile| {
        listed.iter().any(|shape| {
            (shape.m_size, shape.n_size, shape.k_size) == (tile, tile, tile)
                && shape.ab_type == of
                && shape.cr_type == wgpu::CooperativeScalarType::F32
        })
    })
}

impl Gpu {
    /// Opens the adapter of that number.
    pub(super) fn open(
        api: Api,
        index: usize,
        precision: Precision,
        profiled: bool,
    ) -> Result<Self, BackendError> {
        let device_name = match api {
            Api::Vulkan => format!("vulkan:{index}"),
            Api::Metal => "metal".to_owned(),
        };
        let absent = |reason: String| BackendError::Absent { device: device_name.clone(), reason };
        let mut adapters = adapters(api);
        if adapters.is_empty() {
            return Err(absent(absence(api)));
        }
        if index >= adapters.len() {
            let highest = adapters.len() - 1;
            return Err(absent(format!("the last adapter is number {highest}")));
        }
        let adapter = adapters.swap_remove(index);
        let no_precision = |has| {
            let device = format!("{device_name} ({})", adapter.get_info().name);
            Err(BackendError::NoPrecision { device, precision, has })
        };
        let element = match precision {
            Precision::Auto | Precision::F32 => Element::F32,
            Precision::F16 if missing_f16(&adapter) => return no_precision("f32"),
            Precision::F16 => Element::F16,
            Precision::Bf16 | Precision::Int8 => return no_precision("f32, f16"),
        };
        let missing = missing(&adapter, element);
        if !missing.is_empty() {
            let adapter = adapter.get_info().name;
            return Err(absent(format!("{adapter} lacks {}", missing.join(", "))));
        }
        if profiled && !adapter.features().contains(profile::FEATURES) {
            return Err(absent("it has no clock that kernels could be timed by".into()));
        }
        Self::request(&device_name, &adapter, element, profiled)
    }

    fn request(
        device_name: &str,
        adapter: &wgpu::Adapter,
        element: Element,
        profiled: bool,
    ) -> Result<Self, BackendError> {
        let info = adapter.get_info();
        let name = format!("{device_name} ({})", info.name);
        let tile = listed_tile(adapter, element);
        let mut features = REQUIRED.iter().fold(wgpu::Features::empty(), |all, (f, _)| all | *f);
        if element == Element::F16 {
            features |= wgpu::Features::SHADER_F16;
        }
        if tile.is_some() {
            features |= wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
        }
        if profiled {
            features |= profile::FEATURES;
        }
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("fletcher"),
            required_features: features,
            required_limits: adapter.limits(),
            // SAFETY: the experimental feature in use is cooperative matrices, in kernels whose
            // text is ours, whose shapes the adapter lists, and whose results are compared with
            // the CPU's before the first use.
            experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .map_err(|e| BackendError::Absent { device: name.clone(), reason: e.to_string() })?;
        let failed = Arc::new(Mutex::new(None));
        let note = failed.clone();
        let first = move |message: String| {
            let mut failed = note.lock().unwrap_or_else(PoisonError::into_inner);
            failed.get_or_insert(message);
        };
        let also = first.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| first(error.to_string())));
        // Of what is asked of a lost device, wgpu itself does not complain.
        device.set_device_lost_callback(move |reason, message| {
            also(format!("the device is lost: {reason:?} {message}").trim_end().to_owned());
        });
        let layouts = layouts(&device);
        let nothing = device.create_buffer_init(&BufferInitDescriptor {
            label: Some("nothing"),
            contents: &[0; 16],
            usage: wgpu::BufferUsages::STORAGE,
        });
        let software = info.device_type == wgpu::DeviceType::Cpu;
        let memory = adapter.limits().max_compute_workgroup_storage_size;
        let target = Target { element, lanes: 0, memory };
        let profile = profiled.then(Profile::default);
        Ok(Self { name, device, queue, target, tile, software, layouts, nothing, profile, failed })
    }

    /// Waits for an answer that the device's callbacks send.
    ///
    /// Never inside the driver: whoever waits there holds a lock of wgpu's for as long, and the
    /// other workers cannot submit their batches meanwhile.
    pub(super) fn wait<T>(&self, answer: &Receiver<T>) -> Result<T, BackendError> {
        let started = Instant::now();
        loop {
            let polled = self.device.poll(wgpu::PollType::Poll);
            match answer.try_recv() {
                Ok(answer) => return self.check().map(|()| answer),
                Err(TryRecvError::Disconnected) => {
                    self.check()?;
                    return Err(self.failure("the device dropped a batch"));
                }
                Err(TryRecvError::Empty) => self.check()?,
            }
            polled.map_err(|e| self.failure(e.to_string()))?;
            match started.elapsed() < BUSY_WAIT && !self.software {
                true => std::hint::spin_loop(),
                false => std::thread::sleep(PAUSE),
            }
        }
    }

    /// A failure as the backend reports it.
    pub(super) fn failure(&self, message: impl Into<String>) -> BackendError {
        BackendError::Device { device: self.name.clone(), message: message.into() }
    }

    /// The first failure that came unasked: a lost device, or a command that was refused.
    pub(super) fn check(&self) -> Result<(), BackendError> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.as_ref().map_or(Ok(()), |message| Err(self.failure(message.as_str())))
    }

    /// Runs `work` and turns what it makes the device complain about into an error.
    pub(super) fn guard<R>(
        &self,
        what: &'static str,
        needed_bytes: usize,
        work: impl FnOnce() -> R,
    ) -> Result<R, BackendError> {
        use wgpu::ErrorFilter::{Internal, OutOfMemory, Validation};
        let internal = self.device.push_error_scope(Internal);
        let validation = self.device.push_error_scope(Validation);
        let memory = self.device.push_error_scope(OutOfMemory);
        let result = work();
        let memory = pollster::block_on(memory.pop());
        let validation = pollster::block_on(validation.pop());
        let internal = pollster::block_on(internal.pop());
        match memory.or(validation).or(internal) {
            Some(error) => Err(self.refusal(what, needed_bytes, &error)),
            None => self.check().map(|()| result),
        }
    }

    /// What the device said of a piece of work, as the backend reports it.
    pub(super) fn refusal(
        &self,
        what: &'static str,
        needed_bytes: usize,
        error: &wgpu::Error,
    ) -> BackendError {
        match error {
            wgpu::Error::OutOfMemory { .. } => {
                BackendError::OutOfMemory { device: self.name.clone(), what, needed_bytes }
            }
            error => self.failure(format!("{what}: {error}")),
        }
    }

    /// An empty buffer that kernels read and write, zeroed.
    pub(super) fn buffer(
        &self,
        what: &'static str,
        bytes: usize,
        usage: wgpu::BufferUsages,
    ) -> Result<wgpu::Buffer, BackendError> {
        self.check_size(what, bytes)?;
        let descriptor = wgpu::BufferDescriptor {
            label: Some(what),
            size: bytes.max(16) as u64,
            usage,
            mapped_at_creation: false,
        };
        self.guard(what, bytes, || self.device.create_buffer(&descriptor))
    }

    /// A buffer of weights.
    pub(super) fn upload(
        &self,
        what: &'static str,
        contents: &[u8],
    ) -> Result<wgpu::Buffer, BackendError> {
        self.check_size(what, contents.len())?;
        // Not a buffer that is mapped when it is made: mapping panics on a device that is lost.
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        let buffer = self.buffer(what, contents.len(), usage)?;
        self.guard(what, contents.len(), || self.queue.write_buffer(&buffer, 0, contents))?;
        Ok(buffer)
    }

    /// Refuses what no binding could show to a kernel.
    fn check_size(&self, what: &'static str, bytes: usize) -> Result<(), BackendError> {
        let limits = self.device.limits();
        let most = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        if bytes as u64 <= most {
            return Ok(());
        }
        let size = format!("{what} take {bytes} bytes, and the device's buffers hold {most}");
        Err(self.failure(size))
    }

    /// Binds a kernel's read-only parameters.
    pub(super) fn parameters(&self, buffers: &[&wgpu::Buffer]) -> wgpu::BindGroup {
        let at = |index: usize| buffers.get(index).copied().unwrap_or(&self.nothing);
        self.bind(&self.layouts.parameters, [at(0), at(1), at(2)])
    }

    /// Binds a kernel's input, output and description of the batch.
    pub(super) fn rows(
        &self,
        input: &wgpu::Buffer,
        output: &wgpu::Buffer,
        batch: &wgpu::Buffer,
    ) -> wgpu::BindGroup {
        self.bind(&self.layouts.rows, [input, output, batch])
    }

    fn bind(&self, layout: &wgpu::BindGroupLayout, buffers: [&wgpu::Buffer; 3]) -> wgpu::BindGroup {
        let entries: Vec<_> = (0u32..)
            .zip(buffers)
            .map(|(binding, buffer)| wgpu::BindGroupEntry {
                binding,
                resource: buffer.as_entire_binding(),
            })
            .collect();
        self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout,
            entries: &entries,
        })
    }
}

fn layouts(device: &wgpu::Device) -> Layouts {
    let entry = |binding, read_only| wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Storage { read_only },
            has_dynamic_offset: false,
            min_binding_size: None,
        },
        count: None,
    };
    let layout = |label, written| {
        let entries: Vec<_> = (0..3).map(|binding| entry(binding, binding != written)).collect();
        device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(label),
            entries: &entries,
        })
    };
    let (rows, parameters) = (layout("rows", 1), layout("parameters", u32::MAX));
    let pipeline = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: Some("kernel"),
        bind_group_layouts: &[Some(&rows), Some(&parameters)],
        immediate_size: IMMEDIATE_BYTES,
    });
    Layouts { rows, parameters, pipeline }
}
