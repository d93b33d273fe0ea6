//! One file per command: it wires the crates together and decides nothing else.

pub(crate) mod bench;
pub(crate) mod embed;
pub(crate) mod info;
pub(crate) mod serve;
pub(crate) mod verify;
