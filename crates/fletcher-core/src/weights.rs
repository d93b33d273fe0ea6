//! Named tensors out of safetensors files, without copying them.
//!
//! A [`Checkpoint`] indexes one or more files handed over as bytes (mapped or embedded); a
//! [`Tensor`] is a view that keeps those bytes alive. Nothing is converted until asked for.
//! Format: <https://github.com/huggingface/safetensors#format>.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};

use crate::error::ModelError;

/// Number formats in which weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoredDtype {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    Bf16,
}

impl StoredDtype {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            StoredDtype::F32 => 4,
            StoredDtype::F16 | StoredDtype::Bf16 => 2,
        }
    }

    /// The name used by the file format.
    pub fn name(self) -> &'static str {
        match self {
            StoredDtype::F32 => "F32",
            StoredDtype::F16 => "F16",
            StoredDtype::Bf16 => "BF16",
        }
    }
}

/// A tensor's bytes with their meaning. Cloning shares the bytes.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// The weight file, for messages.
    pub file: Arc<str>,
    /// The tensor's full name in that file.
    pub name: Arc<str>,
    /// Number format.
    pub dtype: StoredDtype,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// `shape`'s product times the format's size, little-endian; not necessarily aligned.
    pub bytes: Bytes,
}

impl Tensor {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// Checks the shape.
    ///
    /// # Errors
    /// [`ModelError::Shape`] when it differs.
    pub fn expect_shape(self, expected: &[usize]) -> Result<Self, ModelError> {
        if self.shape == expected {
            return Ok(self);
        }
        Err(ModelError::Shape {
            file: self.file.to_string(),
            tensor: self.name.to_string(),
            found: self.shape,
            expected: expected.to_vec(),
        })
    }

    /// Widens elements `start .. start + out.len()` to f32, which every stored format fits in
    /// exactly.
    ///
    /// # Panics
    /// If the range leaves the tensor.
    pub fn read_f32(&self, start: usize, out: &mut [f32]) {
        let size = self.dtype.size();
        let bytes = &self.bytes[start * size..(start + out.len()) * size];
        match self.dtype {
            StoredDtype::F32 => {
                for (value, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                    *value = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                }
            }
            StoredDtype::F16 => {
                // Through an array, because the bytes need not be aligned and the CPU converts
                // eight or sixteen at a time.
                let mut halves = [f16::ZERO; 64];
                for (out, bytes) in out.chunks_mut(64).zip(bytes.chunks(128)) {
                    for (half, b) in halves.iter_mut().zip(bytes.chunks_exact(2)) {
                        *half = f16::from_le_bytes([b[0], b[1]]);
                    }
                    halves[..out.len()].convert_to_f32_slice(out);
                }
            }
            StoredDtype::Bf16 => {
                for (value, b) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *value = bf16::from_le_bytes([b[0], b[1]]).to_f32();
                }
            }
        }
    }

    /// All elements, widened to f32.
    ///
    /// # Errors
    /// [`ModelError::NotFinite`] when one is NaN or infinite.
    pub fn to_f32(&self) -> Result<Vec<f32>, ModelError> {
        let mut values = vec![0.0; self.elements()];
        self.read_f32(0, &mut values);
        if values.iter().all(|value| value.is_finite()) {
            return Ok(values);
        }
        Err(ModelError::NotFinite { file: self.file.to_string(), tensor: self.name.to_string() })
    }
}

/// One weight file as handed to the core: its name in the model folder and its bytes.
#[derive(Debug, Clone)]
pub struct WeightFile {
    /// Path inside the folder, for messages.
    pub name: String,
    /// The whole file.
    pub bytes: Bytes,
}

/// All tensors of a model, by name.
#[derive(Debug)]
pub struct Checkpoint {
    tensors: BTreeMap<String, Entry>,
    files: Vec<Arc<str>>,
}

#[derive(Debug)]
struct Entry {
    file: Arc<str>,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Bytes,
}

impl Checkpoint {
    /// Indexes the files.
    ///
    /// # Errors
    /// [`ModelError::Safetensors`] for a truncated or malformed file,
    /// [`ModelError::DuplicateTensor`] when two shards hold the same name.
    pub fn open(files: &[WeightFile]) -> Result<Self, ModelError> {
        let mut tensors = BTreeMap::new();
        let mut names = Vec::new();
        for file in files {
            let name: Arc<str> = file.name.as_str().into();
            names.push(name.clone());
            // Parsed by the format's own crate, which checks that the header's ranges tile the
            // data exactly; the views are then turned into ranges of the shared bytes.
            let parsed = SafeTensors::deserialize(&file.bytes).map_err(|e| {
                ModelError::Safetensors { file: file.name.clone(), message: e.to_string() }
            })?;
            for (tensor, view) in parsed.iter() {
                let entry = Entry {
                    file: name.clone(),
                    dtype: view.dtype(),
                    shape: view.shape().to_vec(),
                    bytes: file.bytes.slice_ref(view.data()),
                };
                let earlier: Option<Entry> = tensors.insert(tensor.to_owned(), entry);
                if let Some(earlier) = earlier {
                    return Err(ModelError::DuplicateTensor {
                        file: file.name.clone(),
                        tensor: tensor.to_owned(),
                        other: earlier.file.to_string(),
                    });
                }
            }
        }
        Ok(Self { tensors, files: names })
    }

    /// Whether a tensor of this name exists.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Number of stored parameters, whatever reads them.
    pub fn parameters(&self) -> usize {
        self.tensors.values().map(|entry| entry.shape.iter().product::<usize>()).sum()
    }

    /// The weight files, for messages.
    pub fn files(&self) -> String {
        self.files.join(", ")
    }

    /// The tensor under the first of `names` that exists.
    ///
    /// # Errors
    /// [`ModelError::Dtype`] when it is stored in a format that is not read.
    pub fn find(&self, names: &[String]) -> Result<Option<Tensor>, ModelError> {
        for name in names {
            if let Some(entry) = self.tensors.get(name) {
                return entry.view(name).map(Some);
            }
        }
        Ok(None)
    }

    /// A hash of every tensor's name, format, shape and bytes: the same however the tensors are
    /// spread over files.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for (name, entry) in &self.tensors {
            hash.update(format!("{name}\0{:?}\0{:?}\0", entry.dtype, entry.shape));
            hash.update(&entry.bytes);
        }
        hash.finalize().into()
    }
}

impl Entry {
    fn view(&self, name: &str) -> Result<Tensor, ModelError> {
        let dtype = match self.dtype {
            Dtype::F32 => StoredDtype::F32,
            Dtype::F16 => StoredDtype::F16,
            Dtype::BF16 => StoredDtype::Bf16,
            other => {
                return Err(ModelError::Dtype {
                    file: self.file.to_string(),
                    tensor: name.to_owned(),
                    dtype: format!("{other:?}"),
                });
            }
        };
        Ok(Tensor {
            file: self.file.clone(),
            name: name.into(),
            dtype,
            shape: self.shape.clone(),
            bytes: self.bytes.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, header: &str, data: &[u8]) -> WeightFile {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        WeightFile { name: name.into(), bytes: bytes.into() }
    }

    const ONE_F16: &str = r#"{"w":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}"#;

    #[test]
    fn tensors_are_widened_exactly() {
        let checkpoint =
            Checkpoint::open(&[file("m", ONE_F16, &[0x00, 0x3c, 0x00, 0xc0])]).unwrap();
        let tensor = checkpoint.find(&["v".into(), "w".into()]).unwrap().unwrap();
        assert_eq!(tensor.to_f32().unwrap(), [1.0, -2.0]);
        assert!(matches!(tensor.expect_shape(&[1, 2]), Err(ModelError::Shape { .. })));
    }

    #[test]
    fn every_half_is_widened_whatever_the_range() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let tensor = Tensor {
            file: "m".into(),
            name: "w".into(),
            dtype: StoredDtype::F16,
            shape: vec![1 << 16],
            bytes: bytes.into(),
        };
        for (start, len) in [(0, 1 << 16), (1, 63), (7, 64), (9, 65), (30_000, 1_000), (5, 0)] {
            let mut values = vec![0.0; len];
            tensor.read_f32(start, &mut values);
            for (at, value) in values.iter().enumerate() {
                let half = f16::from_bits((start + at) as u16);
                assert!(value.to_bits() == half.to_f32().to_bits() || half.is_nan(), "{half}");
            }
        }
    }

    #[test]
    fn malformed_files_are_refused() {
        let truncated = file("m", ONE_F16, &[0, 0]);
        let oversized = WeightFile { name: "m".into(), bytes: vec![0xff; 64].into() };
        let empty = WeightFile { name: "m".into(), bytes: Bytes::new() };
        let nan = Checkpoint::open(&[file("m", ONE_F16, &[0x00, 0x7e, 0, 0])]).unwrap();
        for bad in [truncated, oversized, empty] {
            let error = Checkpoint::open(&[bad]).unwrap_err();
            assert!(matches!(error, ModelError::Safetensors { .. }), "{error}");
        }
        let tensor = nan.find(&["w".into()]).unwrap().unwrap();
        assert!(matches!(tensor.to_f32(), Err(ModelError::NotFinite { .. })));
    }

    #[test]
    fn a_name_in_two_shards_is_refused() {
        let shard = |name| file(name, ONE_F16, &[0; 4]);
        let error = Checkpoint::open(&[shard("a"), shard("b")]).unwrap_err();
        assert!(matches!(error, ModelError::DuplicateTensor { .. }), "{error}");
    }

    #[test]
    fn the_digest_ignores_sharding() {
        let two = r#"{"v":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},"w":{"dtype":"F16","shape":[1],"data_offsets":[2,4]}}"#;
        let v = r#"{"v":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}"#;
        let w = r#"{"w":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}"#;
        let whole = Checkpoint::open(&[file("m", two, &[1, 2, 3, 4])]).unwrap();
        let split = Checkpoint::open(&[file("a", w, &[3, 4]), file("b", v, &[1, 2])]).unwrap();
        assert_eq!(whole.digest(), split.digest());
    }
}
