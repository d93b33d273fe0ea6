//! fletcher-io.
