//! The NVIDIA kernels as machine code: made here, committed, and checked by tidy.
//!
//! `cargo xtask cubins` compiles `kernels/*.cu` with nvcc (CUDA 13.0: newer ones would need newer
//! drivers) for every architecture, and writes beside them one bundle per source and `cubins.tsv`:
//! the hashes of what went in and came out, and each kernel's registers, stack and spills as ptxas
//! reported them. A machine without nvcc can build and test everything else; what it checks of the
//! kernels is that the bundles are those of these sources and that nothing hot spills.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

const FOLDER: &str = "crates/fletcher-backend/src/cuda/kernels";
const REPORT: &str = "cubins.tsv";
/// A bundle's source and the architectures it is compiled for. Code for `sm_80` also runs on the
/// later 8.x, that for `sm_100` on 10.x and that for `sm_120` on 12.x.
const BUNDLES: [(&str, &[&str]); 9] = [
    ("feedforward", &["90a"]),
    ("flash_attention", &["90a"]),
    ("fused", &["80", "90a", "100", "120"]),
    ("general", &["80", "90a", "100", "120"]),
    ("hopper", &["90a"]),
    ("hopper_f32", &["90a"]),
    ("layers", &["90a"]),
    ("rowwise", &["90a"]),
    ("self_attention", &["90a"]),
];
/// Compiler flags besides the architectures.
const FLAGS: [&str; 5] = ["-fatbin", "-std=c++17", "-O3", "--compress-mode=size", "-Xptxas=-v"];
/// Kernels that may spill, and how many bytes: a ratchet.
const SPILLS: [(&str, u32); 12] = [
    // The walk from one piece of work to the next, once for 64 keys.
    ("attention_32_f32", 52),
    ("attention_64_f32", 108),
    ("attention_128_f32", 64),
    ("attention_plain_f32", 4),
    // Around the norms, once for 128 rows; none in the loops of products.
    ("feedforward_", 180),
    ("fused_1_", 64),
    ("hopper_apart_", 12),
    ("hopper_gate_turns192_", 8),
    ("hopper_norm_", 8),
    ("hopper_rotate_turns192_", 8),
    ("rowwise_", 160),
    ("self_attention", 32),
];

/// Compiles all bundles and writes the report.
#[expect(clippy::print_stderr, reason = "a developer's tool talks to a terminal")]
#[expect(clippy::disallowed_methods, reason = "a developer's tool; not the program")]
pub(crate) fn run(root: &Path) -> Result<()> {
    let folder = root.join(FOLDER);
    let nvcc = std::env::var_os("NVCC").unwrap_or_else(|| "nvcc".into());
    let mut resources = Vec::new();
    for (name, architectures) in BUNDLES {
        eprintln!("{name}: sm_{}", architectures.join(", sm_"));
        let mut command = Command::new(&nvcc);
        command.current_dir(&folder).args(FLAGS).args(["-o", &format!("{name}.fatbin")]);
        for architecture in architectures {
            command.arg(format!("-gencode=arch=compute_{architecture},code=sm_{architecture}"));
        }
        let output = command
            .arg(format!("{name}.cu"))
            .output()
            .with_context(|| format!("cannot start {}; NVCC names it", nvcc.to_string_lossy()))?;
        let log = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            bail!("{name}.cu:\n{log}");
        }
        // ptxas says so where it found that it must wait for each product of a warpgroup.
        if let Some(line) = log.lines().find(|line| line.contains("serialized")) {
            bail!("{name}.cu: {line}");
        }
        resources.extend(read_resources(&log));
    }
    resources.sort();
    let mut report = String::from("# Made by `cargo xtask cubins`.\n");
    for (file, hash) in hashes(&folder)? {
        writeln!(report, "{file}\t{hash}")?;
    }
    report.push_str("# kernel\tarchitecture\tregisters\tstack bytes\tspilled bytes\n");
    for (kernel, architecture, numbers) in &resources {
        let [registers, stack, spilled] = numbers;
        writeln!(report, "{kernel}\t{architecture}\t{registers}\t{stack}\t{spilled}")?;
    }
    std::fs::write(folder.join(REPORT), report)?;
    Ok(())
}

/// Kernel, architecture, and registers, stack and spills.
type Resources = (String, String, [u32; 3]);

/// Reads ptxas's report.
fn read_resources(log: &str) -> Vec<Resources> {
    let number = |line: &str, before: &str| -> Option<u32> {
        line.split(before).next()?.split_whitespace().next_back()?.parse().ok()
    };
    let mut found: Vec<Resources> = Vec::new();
    for line in log.lines() {
        let quoted: Vec<&str> = line.split('\'').collect();
        if let (true, [_, kernel, _, architecture, _]) =
            (line.contains("entry function"), &quoted[..])
        {
            found.push(((*kernel).to_owned(), (*architecture).to_owned(), [0; 3]));
        } else if let Some((_, _, numbers)) = found.last_mut() {
            if let (Some(stack), Some(spilled)) =
                (number(line, " bytes stack frame"), number(line, " bytes spill stores"))
            {
                (numbers[1], numbers[2]) = (stack, spilled);
            } else if line.contains("Used ") {
                numbers[0] = number(line, " registers").unwrap_or(0);
            }
        }
    }
    found
}

/// Hashes of sources and bundles.
fn hashes(folder: &Path) -> Result<BTreeMap<String, String>> {
    let mut hashes = BTreeMap::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name != REPORT {
            let digest = Sha256::digest(std::fs::read(&path)?);
            let hex = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            hashes.insert(name, hex);
        }
    }
    Ok(hashes)
}

/// Tidy's rule: bundles of these sources, and no spills in hot kernels.
pub(crate) fn check(root: &Path, findings: &mut Vec<String>) -> Result<()> {
    let folder = root.join(FOLDER);
    let path = folder.join(REPORT);
    let report = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let rows = report.lines().filter(|line| !line.starts_with('#'));
    let rows: Vec<Vec<&str>> = rows.map(|line| line.split('\t').collect()).collect();
    for (file, hash) in hashes(&folder)? {
        if !rows.iter().any(|row| row[..] == [&file, &hash]) {
            findings.push(format!("{FOLDER}/{file}: not as compiled; run `cargo xtask cubins`"));
        }
    }
    for row in &rows {
        let [kernel, architecture, _, _, spilled] = row[..] else { continue };
        let allowed = SPILLS.iter().find(|(name, _)| kernel.starts_with(name));
        if spilled.parse::<u32>()? > allowed.map_or(0, |(_, bytes)| *bytes) {
            findings.push(format!("{kernel} for {architecture}: spills {spilled} bytes"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_read() {
        let log = "\
ptxas info    : Compiling entry function 'norm_f16' for 'sm_90a'
ptxas info    : Function properties for norm_f16
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers
";
        let expected = ("norm_f16".to_owned(), "sm_90a".to_owned(), [40, 8, 4]);
        assert_eq!(read_resources(log), [expected]);
    }
}
