//! fletcher-backend.
