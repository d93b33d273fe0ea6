//! Where the encoder runs: one folder per device, one row each in [`registry`].

pub mod cpu;
pub mod cuda;
pub mod registry;
pub mod wgpu;

pub use registry::{DeviceChoice, DeviceReport, devices};
