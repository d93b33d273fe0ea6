//! The golden checkpoints of `tests/golden/`, as the tests of every backend read them.

use std::path::{Path, PathBuf};

use fletcher_core::model::Model;
use fletcher_hub::ModelFolder;
use safetensors::SafeTensors;

/// One golden folder with what `transformers` and `sentence-transformers` made of it.
pub(crate) struct Golden {
    pub(crate) name: String,
    pub(crate) sequences: Vec<Vec<u32>>,
    /// Every token's last hidden state, sequence after sequence.
    pub(crate) hidden: Vec<f32>,
    /// The final vectors, one per sequence.
    pub(crate) vectors: Vec<f32>,
    /// Texts with their final vectors.
    pub(crate) texts: Vec<(String, Vec<f32>)>,
    folder: PathBuf,
}

impl Golden {
    pub(crate) fn model(&self) -> Model {
        let files = ModelFolder::open(&self.folder).unwrap();
        Model::open(&files, Default::default()).unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }
}

/// All golden folders, sorted by name.
pub(crate) fn all() -> Vec<Golden> {
    // A test binary that was copied to another machine looks below its working directory.
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let root = if built.is_dir() { built } else { PathBuf::from("tests/golden") };
    let mut folders: Vec<PathBuf> = std::fs::read_dir(&root)
        .unwrap_or_else(|e| panic!("{}: {e}", root.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("golden.safetensors").exists())
        .collect();
    folders.sort();
    assert!(folders.len() >= 12, "the golden checkpoints are missing");
    folders.into_iter().map(read).collect()
}

fn read(folder: PathBuf) -> Golden {
    let bytes = std::fs::read(folder.join("golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let words = |name: &str| -> Vec<u32> {
        let data = file.tensor(name).unwrap().data().to_vec();
        data.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let floats = |name: &str| words(name).into_iter().map(f32::from_bits).collect();
    let (ids, offsets) = (words("ids"), words("cu_seqlens"));
    let text = std::fs::read_to_string(folder.join("reference.jsonl")).unwrap();
    let reference = |line: &str| {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let vector = row["embedding"].as_array().unwrap().iter();
        let vector = vector.map(|v| v.as_f64().unwrap() as f32).collect();
        (row["text"].as_str().unwrap().to_owned(), vector)
    };
    Golden {
        name: folder.file_name().unwrap().to_str().unwrap().to_owned(),
        sequences: offsets
            .windows(2)
            .map(|pair| ids[pair[0] as usize..pair[1] as usize].to_vec())
            .collect(),
        hidden: floats("hidden"),
        vectors: floats("vectors"),
        texts: text.lines().map(reference).collect(),
        folder,
    }
}

/// The largest absolute difference; infinite if any value is NaN.
pub(crate) fn max_abs(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| f64::from((a - b).abs()))
        .fold(0.0, |worst: f64, e| if e.is_nan() { f64::INFINITY } else { worst.max(e) })
}
