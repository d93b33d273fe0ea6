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
