//! How the copy engine finds tiles of a matrix.

use std::ffi::c_void;

use cudarc::driver::sys as cu;
use fletcher_core::backend::BackendError;

use super::device::Device;
use super::kernels::Format;

/// An opaque parameter of kernels.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
pub(super) struct TensorMap([u64; 16]);

/// A matrix on the card, rows end to end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix {
    pub(super) address: u64,
    pub(super) rows: usize,
    /// Elements of a row, a multiple of eight.
    pub(super) cols: usize,
    pub(super) format: Format,
}

impl Device {
    /// Describes tiles of `tile_rows` rows and 128 bytes, swizzled; zeros outside of the matrix.
    pub(super) fn tensor_map(
        &self,
        matrix: Matrix,
        tile_rows: usize,
    ) -> Result<TensorMap, BackendError> {
        let bytes = matrix.format.bytes();
        let sizes = [matrix.cols as u64, matrix.rows as u64];
        let strides = [(bytes * matrix.cols) as u64];
        self.encode(matrix, sizes, strides, [(128 / bytes) as u32, tile_rows as u32])
    }

    /// Describes such tiles of two matrices, one behind the other on the card and in a copy.
    pub(super) fn tensor_map_of_halves(
        &self,
        matrix: Matrix,
        tile_rows: usize,
    ) -> Result<TensorMap, BackendError> {
        let bytes = matrix.format.bytes();
        let sizes = [matrix.cols as u64, matrix.rows as u64, 2];
        let row = (bytes * matrix.cols) as u64;
        let tile = [(128 / bytes) as u32, tile_rows as u32, 2];
        self.encode(matrix, sizes, [row, row * matrix.rows as u64], tile)
    }

    /// Describes `tiles` such tiles beside each other, one copied behind the other: by row and tile
    /// instead of by row and column. The matrix has whole tiles, of 16-bit elements.
    pub(super) fn tensor_map_of_tiles(
        &self,
        matrix: Matrix,
        tile_rows: usize,
        tiles: usize,
    ) -> Result<TensorMap, BackendError> {
        assert!(matrix.cols.is_multiple_of(64), "the last tile is not whole");
        let sizes = [64, matrix.rows as u64, matrix.cols as u64 / 64];
        let strides = [2 * matrix.cols as u64, 128];
        self.encode(matrix, sizes, strides, [64, tile_rows as u32, tiles as u32])
    }

    /// Strides are those between rows and between tiles; elements lie end to end.
    fn encode<const RANK: usize, const STRIDES: usize>(
        &self,
        matrix: Matrix,
        sizes: [u64; RANK],
        strides: [u64; STRIDES],
        tile: [u32; RANK],
    ) -> Result<TensorMap, BackendError> {
        use cu::CUtensorMapDataType_enum as kind;
        const { assert!(STRIDES + 1 == RANK) };
        self.enter()?;
        let mut map = cu::CUtensorMap { opaque: [0; 16] };
        let kind = match matrix.format {
            Format::F16 => kind::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            Format::Bf16 => kind::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            Format::F32 => kind::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        };
        // SAFETY: writes the map from arrays of the rank's length; nothing is read at the address.
        let code = unsafe {
            cu::cuTensorMapEncodeTiled(
                &mut map,
                kind,
                RANK as u32,
                matrix.address as *mut c_void,
                sizes.as_ptr(),
                strides.as_ptr(),
                tile.as_ptr(),
                [1; RANK].as_ptr(),
                cu::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
                cu::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B,
                cu::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                cu::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        self.check(code)?;
        Ok(TensorMap(map.opaque))
    }
}
