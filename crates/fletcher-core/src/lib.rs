//! fletcher-core.
