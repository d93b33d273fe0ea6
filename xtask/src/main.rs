//! The developer's commands: `cargo xtask <command>`.

mod bench_table;
mod ci;
mod cubins;
mod proto;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "cargo xtask <command>

  ci           everything that CI checks: format, lints, tests, tidy
  tidy         the rules of the tree that no other tool checks
  proto        makes the code of crates/fletcher-server/proto anew, without protoc
  bench-table  writes the README's table of comparisons from bench/record
  cubins       compiles the NVIDIA kernels (needs nvcc of CUDA 13.0; NVCC names it)
  gpu-test     builds the NVIDIA backend's tests as one binary for a machine with a card
";

#[expect(clippy::print_stderr, reason = "a developer's tool talks to a terminal")]
fn main() -> ExitCode {
    let command = std::env::args().nth(1).unwrap_or_default();
    match run(&command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &str) -> Result<()> {
    match command {
        "bench-table" => bench_table::run(&root()),
        "ci" => ci::run(&root()),
        "proto" => proto::run(&root()),
        "tidy" => tidy::run(&root()),
        "cubins" => cubins::run(&root()),
        "gpu-test" => ci::gpu_test(&root()),
        _ => bail!("{USAGE}"),
    }
}

/// The workspace's root folder.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}
