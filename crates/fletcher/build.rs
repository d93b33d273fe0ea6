//! Links the program at a fixed address on Linux.
//!
//! A position-independent program of this size carries fifty thousand relocations: 1.2 MB of them
//! are read at every start, and the 0.8 MB of tables that they patch become memory of each
//! process. Go's programs are linked like this too; stack, heap and libraries stay at random
//! addresses.

#[expect(
    clippy::disallowed_methods,
    reason = "cargo tells a build script about the target by variables"
)]
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = |key: &str| std::env::var(format!("CARGO_CFG_TARGET_{key}")).unwrap_or_default();
    if target("OS") == "linux" && target("ENV") == "gnu" {
        println!("cargo::rustc-link-arg-bins=-no-pie");
    }
}
