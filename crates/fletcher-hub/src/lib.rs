//! fletcher-hub.
