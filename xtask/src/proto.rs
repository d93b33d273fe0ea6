//! Code for the gRPC contract, made from its text by protox instead of protoc, and committed: a
//! build needs neither, and a reader sees what is served.

use std::path::Path;

use anyhow::{Context, Result};
use prost::Message as _;

const PROTO: &str = "crates/fletcher-server/proto";
const OUT: &str = "crates/fletcher-server/src/grpc/generated";

/// Makes the code and the descriptors (which reflection serves) anew.
pub(crate) fn run(root: &Path) -> Result<()> {
    let made = make(root)?;
    let out = root.join(OUT);
    std::fs::create_dir_all(&out)?;
    for (name, content) in made {
        std::fs::write(out.join(&name), content).with_context(|| name)?;
    }
    Ok(())
}

/// The generated files by name.
fn make(root: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let descriptors = protox::compile(["tei.proto"], [root.join(PROTO)])?;
    let folder = std::env::temp_dir().join(format!("fletcher-proto-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let compiled = tonic_prost_build::configure()
        .out_dir(&folder)
        .build_client(true)
        .build_transport(false)
        .compile_fds(descriptors.clone());
    let code = compiled.context("code").and_then(|()| {
        std::fs::read_to_string(folder.join("tei.v1.rs")).context("the generated file")
    });
    std::fs::remove_dir_all(&folder)?;
    let head = "// Made from proto/tei.proto by `cargo xtask proto`; not edited by hand.\n\n";
    Ok(vec![
        ("tei.rs.in".to_owned(), format!("{head}{}", code?).into_bytes()),
        ("tei.bin".to_owned(), descriptors.encode_to_vec()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_code_is_what_the_contract_says() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for (name, content) in make(&root).unwrap() {
            let committed = std::fs::read(root.join(OUT).join(&name)).unwrap();
            assert!(committed == content, "{name} is out of date: run `cargo xtask proto`");
        }
    }
}
