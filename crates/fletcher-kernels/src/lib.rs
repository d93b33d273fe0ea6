//! fletcher-kernels.
