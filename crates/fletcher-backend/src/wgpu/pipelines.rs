//! Compiled kernels, each made when first asked for and kept.

use std::sync::{Mutex, PoisonError};

use fletcher_core::backend::BackendError;

use super::device::Gpu;
use super::shader::{self, Kernel};

/// The pipelines of a device. A model needs about a dozen, so they are looked up by a scan.
#[derive(Debug, Default)]
pub(super) struct Pipelines(Mutex<Vec<(Kernel, wgpu::ComputePipeline)>>);

impl Pipelines {
    /// The kernel's pipeline, compiled if it is not there yet.
    pub(super) fn get(
        &self,
        gpu: &Gpu,
        kernel: Kernel,
    ) -> Result<wgpu::ComputePipeline, BackendError> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, pipeline)) = known.iter().find(|(of, _)| *of == kernel) {
            return Ok(pipeline.clone());
        }
        let pipeline = gpu.guard("a kernel", 0, || compile(gpu, kernel))?;
        known.push((kernel, pipeline.clone()));
        Ok(pipeline)
    }
}

fn compile(gpu: &Gpu, kernel: Kernel) -> wgpu::ComputePipeline {
    compile_text(gpu, &shader::text(kernel, gpu.target), &format!("{kernel:?}"))
}

/// Compiles a kernel's text.
pub(super) fn compile_text(gpu: &Gpu, text: &str, label: &str) -> wgpu::ComputePipeline {
    let descriptor = wgpu::ShaderModuleDescriptor {
        label: Some(label),
        source: wgpu::ShaderSource::Wgsl(text.into()),
    };
    // SAFETY: the text is ours. Every index is below a bound that the host checked when it planned
    // the arena and the dispatch (slots and weights are padded to whole tiles), and every loop is
    // bounded by such a number.
    let module = unsafe { gpu.device.create_shader_module_trusted(descriptor, runtime_checks()) };
    gpu.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(label),
        layout: Some(&gpu.layouts.pipeline),
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions {
            constants: &[],
            zero_initialize_workgroup_memory: ZERO_WORKGROUP_MEMORY,
        },
        cache: None,
    })
}

/// Every kernel writes its workgroup memory before it reads it.
pub(super) const ZERO_WORKGROUP_MEMORY: bool = false;

/// No clamped indices, and no 64-bit counter in every loop.
pub(super) fn runtime_checks() -> wgpu::ShaderRuntimeChecks {
    wgpu::ShaderRuntimeChecks::unchecked()
}
