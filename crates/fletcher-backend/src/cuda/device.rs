//! The driver's objects with owners: context, memory, streams, kernels. All of this backend's
//! `unsafe` is here.
//!
//! The driver library is opened at run time, so nothing of CUDA is needed to build or to start the
//! program. Every call's result is checked. Every object keeps the [`Device`] alive whose context
//! it belongs to; a thread makes that context current before it calls ([`Device::enter`]).

use std::ffi::{CStr, CString, c_void};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cudarc::driver::sys as cu;
use fletcher_core::backend::BackendError;

/// First driver that takes the cubins: those of CUDA 13.0.
const DRIVER_VERSION_MIN: i32 = 13_000;

/// One card with its primary context.
#[derive(Debug)]
pub(super) struct Device {
    /// `cuda:N`.
    name: String,
    handle: cu::CUdevice,
    context: cu::CUcontext,
    limits: Limits,
    memory_limit: usize,
    used: AtomicUsize,
    peak: AtomicUsize,
}

/// What the card is and has.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    /// As `nvidia-smi` names it.
    pub(super) card: String,
    /// Compute capability: major, minor.
    pub(super) capability: (i32, i32),
    /// Streaming multiprocessors.
    pub(super) multiprocessors: usize,
    /// Shared memory that a block may have, in bytes.
    pub(super) shared_bytes: usize,
    /// The card's memory in bytes.
    pub(super) memory_bytes: usize,
}

// SAFETY: a context handle may be used from any thread (CUDA driver API, "Context Management"); the
// other fields are plain data.
unsafe impl Send for Device {}
// SAFETY: as above; the driver's calls lock what they share.
unsafe impl Sync for Device {}

/// What the driver says of a result code.
fn describe(code: cu::CUresult) -> String {
    let mut text = ptr::null();
    // SAFETY: `text` receives a static string or null for an unknown code.
    unsafe { cu::cuGetErrorString(code, &mut text) };
    if text.is_null() {
        return format!("error {}", code as u32);
    }
    // SAFETY: not null, so a NUL-terminated string that the driver keeps for ever.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    format!("{text} (error {})", code as u32)
}

fn check(code: cu::CUresult) -> Result<(), String> {
    match code {
        cu::CUresult::CUDA_SUCCESS => Ok(()),
        code => Err(describe(code)),
    }
}

/// Whether the system has the driver's library. On Linux every driver has it under the first name;
/// the bindings try 34, all over the system's folders, and whoever has no card would wait for that
/// at each start as long as for half of a small model's vocabulary.
fn is_driver_installed() -> bool {
    match cfg!(target_os = "linux") {
        // It stays open for the bindings, which open it again.
        true => ["libcuda.so.1", "libcuda.so"].iter().any(|name| {
            // SAFETY: loads the system's library of that name, which runs nothing of ours.
            let library = unsafe { libloading::Library::new(*name) };
            library.map(std::mem::forget).is_ok()
        }),
        // SAFETY: as above.
        false => unsafe { cu::is_culib_present() },
    }
}

/// Opens the driver library and asks it for the number of cards.
///
/// # Errors
/// Why there is none to use.
pub(super) fn card_count() -> Result<usize, String> {
    if !is_driver_installed() {
        return Err("the NVIDIA driver (libcuda.so.1 or nvcuda.dll) is not installed".into());
    }
    // SAFETY: the library is there; these two calls exist in every driver.
    unsafe {
        check(cu::cuInit(0)).map_err(|why| format!("the NVIDIA driver does not start: {why}"))?;
        let mut version = 0;
        check(cu::cuDriverGetVersion(&mut version))?;
        if version < DRIVER_VERSION_MIN {
            let (major, minor) = (version / 1000, version % 1000 / 10);
            return Err(format!(
                "the NVIDIA driver is for CUDA {major}.{minor}; version 580 or newer is needed"
            ));
        }
        let mut count = 0;
        check(cu::cuDeviceGetCount(&mut count))?;
        match count {
            0 => Err("the NVIDIA driver sees no card".into()),
            count => Ok(count as usize),
        }
    }
}

impl Limits {
    /// Asks about a card without making a context on it.
    pub(super) fn of(index: usize) -> Result<(cu::CUdevice, Self), String> {
        let count = card_count()?;
        if index >= count {
            let them = if count == 1 { "there is one card" } else { "the cards are" };
            return Err(format!("no card {index}: {them}, counted 0 to {}", count - 1));
        }
        let mut handle = 0;
        let mut name = [0; 128];
        let mut memory_bytes = 0;
        let attribute = |handle, attribute| {
            let mut value = 0;
            // SAFETY: writes one integer.
            check(unsafe { cu::cuDeviceGetAttribute(&mut value, attribute, handle) })?;
            Ok::<_, String>(value)
        };
        // SAFETY: each call writes one value, the name with its terminating NUL.
        unsafe {
            check(cu::cuDeviceGet(&mut handle, index as i32))?;
            check(cu::cuDeviceGetName(name.as_mut_ptr(), name.len() as i32, handle))?;
            check(cu::cuDeviceTotalMem_v2(&mut memory_bytes, handle))?;
        }
        use cu::CUdevice_attribute_enum as a;
        // SAFETY: the driver has written a terminated string.
        let card = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let major = attribute(handle, a::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(handle, a::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let shared = a::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let multiprocessors = attribute(handle, a::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let limits = Self {
            card,
            capability: (major, minor),
            multiprocessors: multiprocessors as usize,
            shared_bytes: attribute(handle, shared)? as usize,
            memory_bytes,
        };
        match limits.capability {
            (8.., _) => Ok((handle, limits)),
            (major, minor) => Err(format!(
                "{} has compute capability {major}.{minor}; 8.0 or newer is needed",
                limits.card
            )),
        }
    }
}

impl Device {
    /// Makes the card's context. At most `memory_limit` bytes will be allocated; 0 for all.
    pub(super) fn open(index: usize, memory_limit: usize) -> Result<Arc<Self>, String> {
        let (handle, limits) = Limits::of(index)?;
        let mut context = ptr::null_mut();
        // SAFETY: writes the handle; released in `drop`.
        check(unsafe { cu::cuDevicePrimaryCtxRetain(&mut context, handle) })?;
        let memory_limit = if memory_limit == 0 { usize::MAX } else { memory_limit };
        Ok(Arc::new(Self {
            name: format!("cuda:{index}"),
            handle,
            context,
            limits,
            memory_limit,
            used: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
        }))
    }

    /// `cuda:N`.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What the card is and has.
    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Bytes allocated now, and the most there ever were.
    pub(super) fn memory_used(&self) -> (usize, usize) {
        (self.used.load(Ordering::Relaxed), self.peak.load(Ordering::Relaxed))
    }

    /// Bytes that may still be allocated.
    pub(super) fn memory_free(&self) -> Result<usize, BackendError> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two integers.
        self.check(unsafe { cu::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok(free.min(self.memory_limit.saturating_sub(self.memory_used().0)))
    }

    /// Makes this card's context the calling thread's.
    pub(super) fn enter(&self) -> Result<(), BackendError> {
        // SAFETY: the context lives as long as `self`.
        self.check(unsafe { cu::cuCtxSetCurrent(self.context) })
    }

    /// An error of this device.
    pub(super) fn error(&self, message: impl Into<String>) -> BackendError {
        BackendError::Device { device: self.name.clone(), message: message.into() }
    }

    pub(super) fn check(&self, code: cu::CUresult) -> Result<(), BackendError> {
        check(code).map_err(|message| self.error(message))
    }

    /// Waits for a copy or fill: they go by the default stream, for which our streams do not wait.
    fn check_done(&self, code: cu::CUresult) -> Result<(), BackendError> {
        self.check(code)?;
        // SAFETY: there is always a default stream.
        self.check(unsafe { cu::cuStreamSynchronize(ptr::null_mut()) })
    }

    /// Allocates on the card.
    pub(super) fn allocate(
        self: &Arc<Self>,
        bytes: usize,
        what: &'static str,
    ) -> Result<DeviceBuffer, BackendError> {
        let bytes = bytes.max(16);
        let out_of_memory =
            || BackendError::OutOfMemory { device: self.name.clone(), what, needed_bytes: bytes };
        self.enter()?;
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let mut buffer = DeviceBuffer { address: 0, bytes, device: self.clone() };
        if used > self.memory_limit {
            return Err(out_of_memory());
        }
        // SAFETY: writes the address; freed in `drop`.
        match unsafe { cu::cuMemAlloc_v2(&mut buffer.address, bytes) } {
            cu::CUresult::CUDA_ERROR_OUT_OF_MEMORY => return Err(out_of_memory()),
            code => self.check(code)?,
        }
        self.peak.fetch_max(used, Ordering::Relaxed);
        // SAFETY: the range was just allocated. What no kernel has written yet reads as zeros.
        self.check_done(unsafe { cu::cuMemsetD8_v2(buffer.address, 0, bytes) })?;
        Ok(buffer)
    }

    /// Allocates page-locked host memory that kernels can reach.
    pub(super) fn allocate_pinned(self: &Arc<Self>, bytes: usize) -> Result<Pinned, BackendError> {
        self.enter()?;
        let bytes = bytes.max(16);
        let mut host = ptr::null_mut();
        let flags = cu::CU_MEMHOSTALLOC_PORTABLE | cu::CU_MEMHOSTALLOC_DEVICEMAP;
        // SAFETY: writes the pointer; freed in `Pinned::drop`.
        match unsafe { cu::cuMemHostAlloc(&mut host, bytes, flags) } {
            cu::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let (device, what) = (self.name.clone(), "page-locked host memory");
                return Err(BackendError::OutOfMemory { device, what, needed_bytes: bytes });
            }
            code => self.check(code)?,
        }
        // SAFETY: `bytes` were just allocated at `host`.
        unsafe { ptr::write_bytes(host.cast::<u8>(), 0, bytes) };
        let mut pinned = Pinned { host: host.cast(), address: 0, bytes, device: self.clone() };
        // SAFETY: `host` is such memory; writes the address.
        self.check(unsafe { cu::cuMemHostGetDevicePointer_v2(&mut pinned.address, host, 0) })?;
        Ok(pinned)
    }

    /// Makes a stream.
    pub(super) fn stream(self: &Arc<Self>) -> Result<Stream, BackendError> {
        self.enter()?;
        let mut stream = ptr::null_mut();
        let flags = cu::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes the handle; destroyed in `drop`.
        self.check(unsafe { cu::cuStreamCreate(&mut stream, flags) })?;
        Ok(Stream { handle: stream, device: self.clone() })
    }

    /// Loads a bundle of cubins, from which the driver takes the card's. `start`: when they begin.
    pub(super) fn load(
        self: &Arc<Self>,
        bundle: &[u8],
        start: Start,
    ) -> Result<Module, BackendError> {
        self.enter()?;
        let mut module = ptr::null_mut();
        // SAFETY: a bundle tells its own length; ours are whole, by the test of their hashes.
        match unsafe { cu::cuModuleLoadData(&mut module, bundle.as_ptr().cast()) } {
            cu::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => {
                let (major, minor) = self.limits.capability;
                Err(self.error(format!("no kernels for compute capability {major}.{minor}")))
            }
            code => {
                self.check(code)?;
                // Only cards since 9.0 know how to wait in a kernel.
                let early = start == Start::Early && self.limits.capability.0 >= 9;
                Ok(Module { handle: module, early, device: self.clone() })
            }
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: retained in `open`. A failure here has nobody to tell and nothing to undo.
        unsafe { cu::cuDevicePrimaryCtxRelease_v2(self.handle) };
    }
}

/// When a kernel begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// When the work before it in its stream is done.
    InTurn,
    /// When all blocks of the kernel before it have begun or ended: it waits for the rest itself
    /// (`wait_for_previous` in the kernels), so that launches and first instructions cost no time.
    Early,
}

/// Memory on the card.
#[derive(Debug)]
pub(super) struct DeviceBuffer {
    address: u64,
    bytes: usize,
    device: Arc<Device>,
}

impl DeviceBuffer {
    /// Its address on the card.
    pub(super) fn address(&self) -> u64 {
        self.address
    }

    /// Copies `bytes` to the start of the buffer and waits.
    pub(super) fn write(&self, bytes: &[u8]) -> Result<(), BackendError> {
        assert!(bytes.len() <= self.bytes, "the copy leaves the buffer");
        self.device.enter()?;
        // SAFETY: both ranges are as long as that.
        let code = unsafe { cu::cuMemcpyHtoD_v2(self.address, bytes.as_ptr().cast(), bytes.len()) };
        self.device.check_done(code)
    }

    /// Copies the first `bytes` of another buffer to `offset` in this one.
    pub(super) fn write_from(
        &self,
        offset: usize,
        from: &DeviceBuffer,
        bytes: usize,
    ) -> Result<(), BackendError> {
        assert!(bytes <= from.bytes && offset + bytes <= self.bytes, "the copy leaves a buffer");
        self.device.enter()?;
        let to = self.address + offset as u64;
        // SAFETY: both ranges lie in their buffers.
        self.device.check_done(unsafe { cu::cuMemcpyDtoD_v2(to, from.address, bytes) })
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        self.device.used.fetch_sub(self.bytes, Ordering::Relaxed);
        if self.address != 0 && self.device.enter().is_ok() {
            // SAFETY: allocated by `allocate` and not freed before; a free waits for kernels.
            unsafe { cu::cuMemFree_v2(self.address) };
        }
    }
}

/// Page-locked host memory.
#[derive(Debug)]
pub(super) struct Pinned {
    host: *mut u8,
    address: u64,
    bytes: usize,
    device: Arc<Device>,
}

// SAFETY: plain memory that any thread may touch; who writes is settled by `&mut`.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Its address for kernels.
    pub(super) fn address(&self) -> u64 {
        self.address
    }

    /// The memory as 4-byte words. The stream that uses it must be idle ([`Stream::wait`]).
    pub(super) fn words(&mut self) -> &mut [u32] {
        // SAFETY: allocated, initialised and page-aligned; borrowed from `&mut self`.
        unsafe { std::slice::from_raw_parts_mut(self.host.cast(), self.bytes / 4) }
    }

    /// The memory as floats; as for [`Self::words`].
    pub(super) fn floats(&self) -> &[f32] {
        // SAFETY: as above, and every bit pattern is an f32.
        unsafe { std::slice::from_raw_parts(self.host.cast(), self.bytes / 4) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.device.enter().is_ok() {
            // SAFETY: allocated by `allocate_pinned`; the owner's stream was dropped, and so waited
            // for, before (fields of `Arena` are in that order).
            unsafe { cu::cuMemFreeHost(self.host.cast()) };
        }
    }
}

/// A queue of work on the card.
#[derive(Debug)]
pub(super) struct Stream {
    handle: cu::CUstream,
    device: Arc<Device>,
}

// SAFETY: a stream handle may be used from any thread.
unsafe impl Send for Stream {}

/// How many blocks of how many threads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    /// Blocks along x and y.
    pub(super) blocks: (usize, usize),
    /// Threads of a block.
    pub(super) threads: usize,
    /// Dynamic shared memory of a block.
    pub(super) shared_bytes: usize,
}

impl Stream {
    /// Queues a kernel whose only parameter is `arguments`.
    ///
    /// # Safety
    /// `A` has the layout of the kernel's parameter; the addresses in it are of buffers on this
    /// card that are as large as the kernel takes them to be, that live until the stream has been
    /// waited for, and that no other stream writes meanwhile.
    pub(super) unsafe fn launch<A: Copy>(
        &self,
        kernel: &Kernel,
        grid: Grid,
        arguments: &A,
    ) -> Result<(), BackendError> {
        if grid.blocks.0 == 0 || grid.blocks.1 == 0 {
            return Ok(());
        }
        let mut parameters = [ptr::from_ref(arguments).cast_mut().cast::<c_void>()];
        let mut early = cu::CUlaunchAttribute {
            id: cu::CUlaunchAttributeID_enum::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            // SAFETY: plain data, for which zeros are a value.
            ..unsafe { std::mem::zeroed() }
        };
        early.value.programmaticStreamSerializationAllowed = 1;
        let launch = cu::CUlaunchConfig {
            gridDimX: grid.blocks.0 as u32,
            gridDimY: grid.blocks.1 as u32,
            gridDimZ: 1,
            blockDimX: grid.threads as u32,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared_bytes as u32,
            hStream: self.handle,
            attrs: &mut early,
            numAttrs: u32::from(kernel.early),
        };
        // SAFETY: the driver copies attribute and parameter; the rest is the caller's.
        let code = unsafe {
            cu::cuLaunchKernelEx(&launch, kernel.handle, parameters.as_mut_ptr(), ptr::null_mut())
        };
        self.device.check(code)
    }

    /// Queues a copy of the first `bytes` of host memory to a buffer.
    ///
    /// # Safety
    /// `from` is not written until the stream has been waited for, and both live until then.
    pub(super) unsafe fn upload(
        &self,
        to: &DeviceBuffer,
        from: &Pinned,
        bytes: usize,
    ) -> Result<(), BackendError> {
        assert!(bytes <= to.bytes && bytes <= from.bytes, "the copy leaves a buffer");
        // SAFETY: the ranges lie in their buffers; the rest is the caller's.
        let code =
            unsafe { cu::cuMemcpyHtoDAsync_v2(to.address, from.host.cast(), bytes, self.handle) };
        self.device.check(code)
    }

    /// Queues a copy of the first `bytes` of a buffer to host memory.
    ///
    /// # Safety
    /// `to` is not touched until the stream has been waited for, and both live until then.
    pub(super) unsafe fn download(
        &self,
        to: &Pinned,
        from: &DeviceBuffer,
        bytes: usize,
    ) -> Result<(), BackendError> {
        assert!(bytes <= to.bytes && bytes <= from.bytes, "the copy leaves a buffer");
        // SAFETY: the ranges lie in their buffers; the rest is the caller's.
        let code =
            unsafe { cu::cuMemcpyDtoHAsync_v2(to.host.cast(), from.address, bytes, self.handle) };
        self.device.check(code)
    }

    /// Waits until all queued work is done, and tells of its failure.
    pub(super) fn wait(&self) -> Result<(), BackendError> {
        // SAFETY: the stream lives as long as `self`.
        self.device.check(unsafe { cu::cuStreamSynchronize(self.handle) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.device.enter().is_ok() {
            // SAFETY: made by `Device::stream`; nothing uses the buffers after the wait.
            unsafe {
                cu::cuStreamSynchronize(self.handle);
                cu::cuStreamDestroy_v2(self.handle);
            }
        }
    }
}

/// Loaded machine code.
#[derive(Debug)]
pub(super) struct Module {
    handle: cu::CUmodule,
    early: bool,
    device: Arc<Device>,
}

/// One kernel of a module that lives as long as the backend.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel {
    handle: cu::CUfunction,
    early: bool,
}

// SAFETY: handles of loaded code may be used from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}
// SAFETY: as above.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

impl Module {
    /// Finds a kernel and allows its blocks `shared_bytes` of dynamic shared memory.
    pub(super) fn kernel(&self, name: &str, shared_bytes: usize) -> Result<Kernel, BackendError> {
        self.device.enter()?;
        let text = CString::new(name).map_err(|e| self.device.error(e.to_string()))?;
        let mut handle = ptr::null_mut();
        // SAFETY: writes the handle, which lives as long as the module.
        let code = unsafe { cu::cuModuleGetFunction(&mut handle, self.handle, text.as_ptr()) };
        check(code).map_err(|why| self.device.error(format!("kernel {name}: {why}")))?;
        let attribute =
            cu::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: a live function; the driver refuses what the card does not have.
        let code = unsafe { cu::cuFuncSetAttribute(handle, attribute, shared_bytes as i32) };
        check(code).map_err(|why| self.device.error(format!("kernel {name}: {why}")))?;
        Ok(Kernel { handle, early: self.early })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.device.enter().is_ok() {
            // SAFETY: loaded by `Device::load`; the backend that launches its kernels is gone.
            unsafe { cu::cuModuleUnload(self.handle) };
        }
    }
}
