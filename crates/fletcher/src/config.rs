//! Arguments and environment become one configuration; below this file nothing asks the world.

use std::io::IsTerminal;

use fletcher_backend::DeviceChoice;
use fletcher_core::Pooling;
use fletcher_core::backend::Precision;
use fletcher_core::embedder::{EmbedOptions, EmbedderConfig, Prompt};
use fletcher_core::head::HeadOptions;
use fletcher_core::text::Overlong;
use fletcher_hub::HubConfig;

use crate::args::{ModelArgs, OverlongArg, PoolingArg, TextArgs};

/// How to find, open and run a model.
#[derive(Debug)]
pub(crate) struct ModelConfig {
    pub(crate) model: String,
    pub(crate) hub: HubConfig,
    pub(crate) head: HeadOptions,
    pub(crate) device: DeviceChoice,
    pub(crate) precision: Precision,
    pub(crate) embedder: EmbedderConfig,
}

impl ModelConfig {
    pub(crate) fn resolve(args: &ModelArgs) -> Self {
        let pooling = match args.pooling {
            PoolingArg::Auto => None,
            PoolingArg::Mean => Some(Pooling::Mean),
            PoolingArg::Cls => Some(Pooling::Cls),
            PoolingArg::Last => Some(Pooling::LastToken),
            PoolingArg::Max => Some(Pooling::Max),
        };
        let normalize = args.no_normalize.then_some(false);
        Self {
            model: args.model.clone(),
            hub: hub(),
            head: HeadOptions { pooling, normalize, dimensions: args.dimensions },
            device: args.device,
            precision: args.precision,
            embedder: EmbedderConfig {
                threads: args.threads.unwrap_or_else(threads),
                batch_tokens: args.batch_tokens.unwrap_or(0),
                device_memory: args.device_memory.map_or(0, |mib| mib.saturating_mul(1 << 20)),
                urgent: false,
            },
        }
    }
}

/// Where models come from, by the variables that Python's `huggingface_hub` reads.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
pub(crate) fn hub() -> HubConfig {
    HubConfig::from_vars(|name| std::env::var(name).ok())
}

/// A variable of the environment.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
pub(crate) fn variable(name: &std::ffi::OsStr) -> Option<std::ffi::OsString> {
    std::env::var_os(name)
}

/// Keeps Mesa's layer that picks a default GPU from asking the desktop where there is none: it
/// writes a line to standard error then, into the program's own. We number adapters ourselves.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
pub(crate) fn quiet_vulkan_drivers() {
    if cfg!(target_os = "linux") && std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: called first in `main`, before there is a second thread that could read the
        // environment meanwhile.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}

/// CPUs this process may use: the standard library takes the least of the CPU set and the cgroup
/// quota, so that a container of two CPUs on a host of 128 gets two threads.
pub(crate) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// What is done to each text.
pub(crate) fn embed_options(args: &TextArgs) -> EmbedOptions {
    let prompt = match (&args.prompt, &args.prefix) {
        (Some(name), _) => Prompt::Named(name.clone()),
        (None, Some(text)) => Prompt::Text(text.clone()),
        (None, None) => Prompt::Default,
    };
    let overlong = match args.overlong {
        OverlongArg::Truncate => Overlong::Truncate,
        OverlongArg::Error => Overlong::Error,
    };
    EmbedOptions { prompt, overlong }
}

/// Whether a person is looking at standard error.
pub(crate) fn is_interactive() -> bool {
    std::io::stderr().is_terminal()
}

/// The command as it was typed, for records; folders in it are cut to their last part, because
/// where they were on this machine means nothing elsewhere.
pub(crate) fn command_line() -> String {
    let last = |arg: String| match std::path::Path::new(&arg).file_name() {
        Some(name) if arg.starts_with(['/', '.']) => name.to_string_lossy().into_owned(),
        _ => arg,
    };
    std::env::args().map(last).collect::<Vec<_>>().join(" ")
}
