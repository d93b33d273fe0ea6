//! The algorithms, each written once over the vector type.

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod elementwise;
pub(crate) mod gemm;
pub(crate) mod mix;
pub(crate) mod norm;
pub(crate) mod quantize;
pub(crate) mod rotary;
pub(crate) mod tile;
