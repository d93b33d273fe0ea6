//! What CI runs, as one command that a developer runs too.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The steps in the order in which they fail fastest.
const STEPS: &[(&str, &[&str])] = &[
    ("format", &["fmt", "--all", "--check"]),
    ("tidy", &["xtask", "tidy"]),
    (
        "lints",
        &["clippy", "--workspace", "--all-targets", "--locked", "--quiet", "--", "-D", "warnings"],
    ),
    ("tests", &["test", "--workspace", "--locked", "--quiet"]),
];

/// Runs every step and stops at the first that fails.
#[expect(clippy::print_stderr, reason = "a developer's tool talks to a terminal")]
pub(crate) fn run(root: &Path) -> Result<()> {
    for (name, args) in STEPS {
        eprintln!("── {name}: cargo {}", args.join(" "));
        let status = Command::new(env!("CARGO"))
            .args(*args)
            .current_dir(root)
            .status()
            .with_context(|| format!("cannot start cargo for {name}"))?;
        if !status.success() {
            bail!("{name} failed");
        }
    }
    Ok(())
}

/// Builds the NVIDIA backend's tests as one binary. It needs the driver and `tests/golden` below
/// its working directory, and nothing else.
#[expect(clippy::print_stdout, reason = "a developer's tool talks to a terminal")]
pub(crate) fn gpu_test(root: &Path) -> Result<()> {
    let args =
        ["test", "--release", "--locked", "--no-run", "-p", "fletcher-backend", "--test", "cuda"];
    let output = Command::new(env!("CARGO"))
        .args(args)
        .arg("--message-format=json")
        .current_dir(root)
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("the tests do not build");
    }
    let messages = String::from_utf8(output.stdout)?;
    let binary = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "cuda")
        .find_map(|message| message["executable"].as_str().map(str::to_owned))
        .context("cargo names no binary")?;
    let to = root.join("target/gpu-test");
    std::fs::copy(&binary, &to).with_context(|| binary.clone())?;
    println!("{}", to.display());
    Ok(())
}
