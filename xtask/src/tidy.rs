//! The rules of the tree that no other tool checks.
//!
//! Each rule is a sentence of ARCHITECTURE.md turned into code; a finding names the file and the
//! rule. The limits are ratchets: they may fall, and rise only with a reason in the commit.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Longest line of source, in characters; lines with strings and rows of tables aside.
const LINE_CHARS_MAX: usize = 100;
/// Longest source file, in lines.
const FILE_LINES_MAX: usize = 620;
/// Largest committed file, in bytes, outside the folders of data below.
const FILE_BYTES_MAX: u64 = 400_000;
/// Folders that hold data.
const DATA: [&str; 3] = ["models/", "bench/record/", "crates/fletcher-backend/src/cuda/kernels/"];

/// Which workspace crates a crate may depend on.
const EDGES: &[(&str, &[&str])] = &[
    (
        "fletcher",
        &["fletcher-backend", "fletcher-core", "fletcher-hub", "fletcher-io", "fletcher-server"],
    ),
    ("fletcher-backend", &["fletcher-core", "fletcher-kernels"]),
    ("fletcher-core", &[]),
    ("fletcher-hub", &["fletcher-core"]),
    ("fletcher-io", &[]),
    ("fletcher-kernels", &[]),
    ("fletcher-server", &["fletcher-core"]),
    ("xtask", &[]),
];

/// Files that branch on properties and so may not know an architecture's or a device's name.
const NAMELESS: &[(&str, &[&str])] = &[
    ("crates/fletcher-core/src/encoder.rs", &["bert", "modernbert", "cuda", "avx"]),
    ("crates/fletcher-core/src/embedder.rs", &["bert", "cuda", "avx"]),
];

/// Checks all rules.
#[expect(clippy::print_stderr, reason = "a developer's tool talks to a terminal")]
pub(crate) fn run(root: &Path) -> Result<()> {
    let files = tracked(root)?;
    let mut findings = Vec::new();
    for file in &files {
        check_size(root, file, &mut findings)?;
        if file.ends_with(".rs") {
            let text = std::fs::read_to_string(root.join(file)).with_context(|| file.clone())?;
            check_source(file, &text, &mut findings);
        }
    }
    check_edges(root, &mut findings)?;
    if !crate::bench_table::is_current(root)? {
        findings
            .push("README.md: the table is not the records'; run cargo xtask bench-table".into());
    }
    crate::cubins::check(root, &mut findings)?;
    for finding in &findings {
        eprintln!("{finding}");
    }
    match findings.len() {
        0 => Ok(()),
        count => bail!("{count} findings"),
    }
}

/// The files that git tracks or would add, and that exist.
fn tracked(root: &Path) -> Result<Vec<String>> {
    let args = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let output = Command::new("git").args(args).current_dir(root).output().context("git")?;
    if !output.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    }
    let list = String::from_utf8(output.stdout)?;
    let exists = |file: &&str| root.join(file).is_file();
    Ok(list.lines().filter(exists).map(str::to_owned).collect())
}

fn check_size(root: &Path, file: &str, findings: &mut Vec<String>) -> Result<()> {
    let size = std::fs::metadata(root.join(file)).with_context(|| file.to_owned())?.len();
    if size > FILE_BYTES_MAX && !DATA.iter().any(|folder| file.starts_with(folder)) {
        findings.push(format!("{file}: {size} bytes; data belongs in {}", DATA.join(" or ")));
    }
    Ok(())
}

fn check_source(file: &str, text: &str, findings: &mut Vec<String>) {
    if !text.trim_start().starts_with("//!") {
        findings.push(format!("{file}: begins without a module doc that says why it exists"));
    }
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        findings.push(format!("{file}: {lines} lines, more than {FILE_LINES_MAX}"));
    }
    for (number, line) in text.lines().enumerate() {
        let length = line.chars().count();
        // A string is not broken for width, nor can a row of a table be.
        let unbreakable = line.contains('"') || line.trim_start().starts_with("//! |");
        if length > LINE_CHARS_MAX && !unbreakable {
            findings.push(format!("{file}:{}: {length} columns", number + 1));
        }
    }
    if let Some((_, names)) = NAMELESS.iter().find(|(path, _)| *path == file) {
        let code = text.split("#[cfg(test)]").next().unwrap_or(text).to_lowercase();
        let found = names.iter().filter(|name| code.contains(**name));
        findings.extend(found.map(|name| format!("{file}: names `{name}`")));
    }
}

/// Compares the dependencies between workspace crates, dev-dependencies aside, with [`EDGES`].
fn check_edges(root: &Path, findings: &mut Vec<String>) -> Result<()> {
    let args = ["metadata", "--no-deps", "--format-version", "1", "--offline"];
    let output = Command::new(env!("CARGO")).args(args).current_dir(root).output()?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = EDGES.iter().find(|(from, _)| *from == name) else {
            findings.push(format!("{name}: a crate that xtask's EDGES does not know"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let to = dependency["name"].as_str().unwrap_or_default();
            let ours = EDGES.iter().any(|(crate_name, _)| *crate_name == to);
            let normal = dependency["kind"].is_null();
            if ours && normal && !allowed.contains(&to) {
                findings.push(format!("{name}: may not depend on {to}"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(file: &str, text: &str) -> Vec<String> {
        let mut findings = Vec::new();
        check_source(file, text, &mut findings);
        findings
    }

    #[test]
    fn rules_find_what_they_forbid() {
        assert_eq!(findings("a.rs", "//! Why.\nfn f() {}\n"), Vec::<String>::new());
        assert_eq!(findings("a.rs", "fn f() {}\n").len(), 1);
        assert_eq!(findings("a.rs", &format!("//! {}\n", "x".repeat(100))).len(), 1);
        assert_eq!(findings("a.rs", &format!("//! Why.\n{}", "\n".repeat(700))).len(), 1);
        let named = "//! Why.\nfn f() { if model == \"bert\" {} }\n";
        assert_eq!(findings("crates/fletcher-core/src/encoder.rs", named).len(), 1);
    }

    #[test]
    fn the_tree_is_tidy() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        run(&root).expect("findings are printed above");
    }
}
