//! `fletcher info`: what this machine, this binary and a model are.

use std::fmt::Write as _;

use fletcher_backend::{DeviceChoice, devices, registry};
use fletcher_core::model::Model;

use crate::args::InfoArgs;
use crate::config::{self, ModelConfig};
use crate::failure::Failure;
use crate::model;
use crate::output::print;

pub(crate) fn run(args: InfoArgs) -> Result<(), Failure> {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<13} {value}");
    };
    line("fletcher", env!("CARGO_PKG_VERSION").to_owned());
    line("threads", format!("{} (CPU set and cgroup quota)", config::threads()));
    for device in devices() {
        let state = match device.found {
            Ok(found) => found,
            Err(reason) => format!("absent: {reason}"),
        };
        line(&format!("device {}", device.name), state);
    }
    line("auto", registry::resolve(DeviceChoice::Auto).to_string());
    let name = args.model.unwrap_or_else(|| model::DEFAULT.to_owned());
    let config = ModelConfig {
        hub: config::hub(),
        head: Default::default(),
        device: DeviceChoice::Auto,
        precision: Default::default(),
        embedder: Default::default(),
        model: name,
    };
    // A model that cannot be opened should not hide what the machine is.
    print(&text)?;
    let opened = model::open(&config)?;
    print(&describe(&opened))
}

fn describe(model: &Model) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<13} {value}");
    };
    let spec = model.spec();
    line("model", model.name().to_owned());
    line("architecture", model.architecture().to_owned());
    line(
        "shape",
        format!(
            "{} layers, hidden {}, {} heads, intermediate {}, vocabulary {}",
            spec.layers.len(),
            spec.hidden,
            spec.heads,
            spec.intermediate,
            spec.vocabulary
        ),
    );
    line("parameters", model.parameters().to_string());
    line("dimensions", model.head().dim().to_string());
    line("max tokens", model.max_tokens().to_string());
    line("pooling", format!("{:?}", model.head().poolings()));
    line("normalized", model.head().normalized().to_string());
    line("similarity", model.similarity().unwrap_or("not stated").to_owned());
    let prompts = model.prompts();
    for (name, text) in &prompts.by_name {
        let default = match prompts.default_name.as_deref() == Some(name) {
            true => " (default)",
            false => "",
        };
        line("prompt", format!("{name}{default}: {text:?}"));
    }
    line("fingerprint", model.fingerprint().to_owned());
    text
}
