//! From pooled states to final vectors: the modules of a sentence-transformers model that stand
//! behind its Transformer (`modules.json`), and the caller's own wishes.
//!
//! One row is one vector, and rows never see each other. The arithmetic is tiny beside the
//! encoder's, so it is plain Rust here for every device, accumulated in f64.

use serde_json::Value;

use crate::backend::{PoolOp, Pooling};
use crate::config::Config;
use crate::error::ModelError;
use crate::model::ModelFiles;
use crate::reference::activate;
use crate::spec::{Activation, limits};
use crate::weights::Checkpoint;

/// The caller's changes to what the model folder says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeadOptions {
    /// Pool like this instead of as `1_Pooling` says.
    pub pooling: Option<Pooling>,
    /// Force or suppress L2 normalisation instead of following `modules.json`.
    pub normalize: Option<bool>,
    /// Keep only this many leading columns (Matryoshka), normalised again if the vectors were.
    pub dimensions: Option<usize>,
}

/// Pooling and everything behind it.
#[derive(Debug)]
pub struct Head {
    poolings: Vec<Pooling>,
    include_prompt: bool,
    stages: Vec<Stage>,
    dim: usize,
}

#[derive(Debug)]
enum Stage {
    Dense { weight: Vec<f32>, bias: Option<Vec<f32>>, rows: usize, activation: Activation },
    LayerNorm { scale: Vec<f32>, bias: Vec<f32> },
    Normalize,
    Truncate { dim: usize },
}

/// One entry of `modules.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Module {
    /// Last part of the module's Python type: `Pooling`, `Dense` …
    pub(crate) kind: String,
    /// Its folder inside the model's; empty for the model's own.
    pub(crate) path: String,
}

/// Reads `modules.json`; a folder without one is a bare Transformer, which sentence-transformers
/// completes with mean pooling and nothing else.
pub(crate) fn modules(files: &dyn ModelFiles) -> Result<Vec<Module>, ModelError> {
    const FILE: &str = "modules.json";
    let module = |kind: &str, path: &str| Module { kind: kind.into(), path: path.into() };
    let Some(bytes) = files.read(FILE)? else {
        return Ok(vec![module("Transformer", ""), module("Pooling", "1_Pooling")]);
    };
    let list: Value = serde_json::from_slice(&bytes)
        .map_err(|e| ModelError::Json { file: FILE.into(), message: e.to_string() })?;
    let entry = |value: &Value| {
        let path = value.get("path")?.as_str()?;
        let kind = value.get("type")?.as_str()?.rsplit('.').next()?;
        Some(module(kind, path.trim_matches('/')))
    };
    let parsed =
        list.as_array().and_then(|list| list.iter().map(entry).collect::<Option<Vec<_>>>());
    parsed.filter(|modules| !modules.is_empty()).ok_or_else(|| ModelError::BadValue {
        file: FILE.into(),
        key: "(the file)".into(),
        found: "something else".into(),
        expected: "a list of modules, each with `type` and `path`".into(),
    })
}

impl Head {
    /// Reads the modules behind the Transformer; `hidden` is the width of the encoder's states.
    ///
    /// # Errors
    /// When a module is unknown, incomplete or of the wrong shape.
    pub fn open(
        files: &dyn ModelFiles,
        hidden: usize,
        options: HeadOptions,
    ) -> Result<Self, ModelError> {
        let modules = modules(files)?;
        let mut head = Self {
            poolings: vec![Pooling::Mean],
            include_prompt: true,
            stages: vec![],
            dim: hidden,
        };
        for (index, module) in modules.iter().enumerate() {
            match (index, module.kind.as_str()) {
                (0, "Transformer") => {}
                (1, "Pooling") => head.read_pooling(files, &module.path, hidden)?,
                (2.., "Dense") => head.read_dense(files, &module.path)?,
                (2.., "LayerNorm") => head.read_layer_norm(files, &module.path)?,
                (2.., "Normalize") => head.stages.push(Stage::Normalize),
                _ => {
                    return Err(ModelError::UnsupportedModule {
                        file: "modules.json".into(),
                        module: format!("{} at place {index}", module.kind),
                    });
                }
            }
        }
        head.apply_options(options, hidden)?;
        Ok(head)
    }

    fn apply_options(&mut self, options: HeadOptions, hidden: usize) -> Result<(), ModelError> {
        if let Some(pooling) = options.pooling {
            if self.poolings.len() > 1 && self.stages.iter().any(Stage::has_fixed_width) {
                return Err(self.refuse_option("pooling", "a Dense module follows a concatenation"));
            }
            self.dim = if self.dim == hidden * self.poolings.len() { hidden } else { self.dim };
            self.poolings = vec![pooling];
        }
        match options.normalize {
            Some(true) if !self.normalized() => self.stages.push(Stage::Normalize),
            Some(false) => self.stages.retain(|stage| !matches!(stage, Stage::Normalize)),
            _ => {}
        }
        if let Some(dim) = options.dimensions {
            if dim == 0 || dim > self.dim {
                let expected = format!("from 1 to the model's {}", self.dim);
                return Err(ModelError::BadValue {
                    file: "options".into(),
                    key: "dimensions".into(),
                    found: dim.to_string(),
                    expected,
                });
            }
            let normalized = self.normalized();
            self.stages.push(Stage::Truncate { dim });
            if normalized {
                self.stages.push(Stage::Normalize);
            }
            self.dim = dim;
        }
        Ok(())
    }

    fn refuse_option(&self, key: &str, why: &str) -> ModelError {
        ModelError::BadValue {
            file: "options".into(),
            key: key.into(),
            found: "given".into(),
            expected: format!("auto, because {why}"),
        }
    }

    /// Length of the final vectors.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Whether the final vectors have unit length.
    pub fn normalized(&self) -> bool {
        matches!(self.stages.last(), Some(Stage::Normalize))
    }

    /// The poolings, concatenated in this order.
    pub fn poolings(&self) -> &[Pooling] {
        &self.poolings
    }

    /// Whether a prompt's tokens take part in the pooling.
    pub fn include_prompt(&self) -> bool {
        self.include_prompt
    }

    /// What the backend is to do for a batch whose texts all begin with `prompt_tokens`.
    pub fn pool_ops(&self, prompt_tokens: usize) -> Vec<PoolOp> {
        let skip = if self.include_prompt { 0 } else { prompt_tokens };
        self.poolings.iter().map(|&mode| PoolOp { mode, skip }).collect()
    }

    /// Turns one row of pooled states (the poolings one after the other) into a final vector.
    pub fn finish(&self, mut row: Vec<f32>) -> Vec<f32> {
        for stage in &self.stages {
            row = stage.apply(row);
        }
        row
    }

    /// As [`Self::finish`] for `rows` rows, one after the other.
    pub fn finish_rows(&self, mut pooled: Vec<f32>, rows: usize) -> Vec<f32> {
        let width = pooled.len().checked_div(rows).unwrap_or(0);
        if width == 0 {
            return pooled;
        }
        match &self.stages[..] {
            [] => {}
            // By far the most common head needs no row of its own.
            [Stage::Normalize] => pooled.chunks_exact_mut(width).for_each(normalize),
            _ => {
                pooled = pooled.chunks_exact(width).flat_map(|r| self.finish(r.to_vec())).collect()
            }
        }
        pooled
    }

    /// As [`Self::finish`], but without a normalisation at the very end.
    pub fn finish_unnormalized(&self, mut row: Vec<f32>) -> Vec<f32> {
        let stages = match self.stages.split_last() {
            Some((Stage::Normalize, before)) => before,
            _ => &self.stages,
        };
        for stage in stages {
            row = stage.apply(row);
        }
        row
    }

    /// One line that pins everything that shapes the vectors; part of the fingerprint.
    pub fn describe(&self) -> String {
        let stages: Vec<String> = self.stages.iter().map(Stage::describe).collect();
        format!("{:?} prompt:{} {}", self.poolings, self.include_prompt, stages.join(" "))
    }

    fn read_pooling(
        &mut self,
        files: &dyn ModelFiles,
        path: &str,
        hidden: usize,
    ) -> Result<(), ModelError> {
        let file = format!("{path}/config.json");
        let Some(bytes) = files.read(&file)? else {
            // A bare Transformer has no pooling folder and gets the default.
            return match files.read("modules.json")? {
                Some(_) => Err(ModelError::MissingFile { file }),
                None => Ok(()),
            };
        };
        let config = Config::parse(&file, &bytes)?;
        let width = config
            .size(&["word_embedding_dimension", "embedding_dimension"], limits::WIDTH)
            .unwrap_or(hidden);
        if width != hidden {
            return Err(config.bad("word_embedding_dimension", format!("{hidden}, as the model's")));
        }
        self.poolings = poolings(&config)?;
        self.include_prompt = config.flag_or("include_prompt", true)?;
        self.dim = hidden * self.poolings.len();
        Ok(())
    }

    fn read_dense(&mut self, files: &dyn ModelFiles, path: &str) -> Result<(), ModelError> {
        let config = module_config(files, path)?;
        let rows = config.size(&["out_features"], limits::WIDTH)?;
        let cols = config.size(&["in_features"], limits::WIDTH)?;
        if cols != self.dim {
            return Err(config.bad("in_features", format!("{}, what comes in", self.dim)));
        }
        if config.flag_or("use_residual", false)? {
            return Err(config.bad("use_residual", "false"));
        }
        for key in ["module_input_name", "module_output_name"] {
            config.only(key, &Value::from("sentence_embedding"))?;
        }
        let activation = match config.text("activation_function")?.map(short_name) {
            None | Some("Tanh") => Activation::Tanh,
            Some("Identity") => Activation::Identity,
            Some("ReLU") => Activation::Relu,
            Some("GELU") => Activation::GeluErf,
            Some("SiLU") => Activation::Silu,
            Some(_) => {
                return Err(config.bad("activation_function", "Tanh, Identity, ReLU, GELU or SiLU"));
            }
        };
        let checkpoint = Checkpoint::open(&files.weights(path)?)?;
        let weight = parameter(&checkpoint, "linear.weight", &[rows, cols])?;
        let bias = match config.flag_or("bias", true)? {
            true => Some(parameter(&checkpoint, "linear.bias", &[rows])?),
            false => None,
        };
        self.stages.push(Stage::Dense { weight, bias, rows, activation });
        self.dim = rows;
        Ok(())
    }

    fn read_layer_norm(&mut self, files: &dyn ModelFiles, path: &str) -> Result<(), ModelError> {
        let checkpoint = Checkpoint::open(&files.weights(path)?)?;
        let scale = parameter(&checkpoint, "norm.weight", &[self.dim])?;
        let bias = parameter(&checkpoint, "norm.bias", &[self.dim])?;
        self.stages.push(Stage::LayerNorm { scale, bias });
        Ok(())
    }
}

/// Scales a vector to unit length.
pub fn normalize(row: &mut [f32]) {
    // Eight sums and one division: a chain of sums, or a division each, takes as long as a tenth of
    // a small batch on a card.
    let mut squares = [0.0; 8];
    let chunks = row.chunks_exact(squares.len());
    for (square, &x) in squares.iter_mut().zip(chunks.remainder()) {
        *square += f64::from(x).powi(2);
    }
    for chunk in chunks {
        for (square, &x) in squares.iter_mut().zip(chunk) {
            *square += f64::from(x).powi(2);
        }
    }
    // The floor is the one of torch.nn.functional.normalize.
    let factor = 1.0 / squares.iter().sum::<f64>().sqrt().max(1e-12);
    row.iter_mut().for_each(|x| *x = (f64::from(*x) * factor) as f32);
}

fn module_config(files: &dyn ModelFiles, path: &str) -> Result<Config, ModelError> {
    let file = format!("{path}/config.json");
    let bytes = files.read(&file)?.ok_or(ModelError::MissingFile { file: file.clone() })?;
    Config::parse(&file, &bytes)
}

fn short_name(python_type: &str) -> &str {
    python_type.rsplit('.').next().unwrap_or(python_type)
}

fn parameter(checkpoint: &Checkpoint, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
    let found = checkpoint.find(&[name.to_owned()])?;
    let tensor = found.ok_or_else(|| ModelError::MissingTensor {
        files: checkpoint.files(),
        tensor: name.to_owned(),
        architecture: "sentence-transformers module".to_owned(),
    })?;
    tensor.expect_shape(shape)?.to_f32()
}

/// `pooling_mode` (sentence-transformers 6: a name or a list of names) or the older flags, whose
/// order of concatenation is the one of this table.
fn poolings(config: &Config) -> Result<Vec<Pooling>, ModelError> {
    const FLAGS: [(&str, Pooling); 6] = [
        ("pooling_mode_cls_token", Pooling::Cls),
        ("pooling_mode_max_tokens", Pooling::Max),
        ("pooling_mode_mean_tokens", Pooling::Mean),
        ("pooling_mode_mean_sqrt_len_tokens", Pooling::MeanSqrtLen),
        ("pooling_mode_weightedmean_tokens", Pooling::WeightedMean),
        ("pooling_mode_lasttoken", Pooling::LastToken),
    ];
    let by_name = |value: &Value| match value.as_str()? {
        "cls" => Some(Pooling::Cls),
        "max" => Some(Pooling::Max),
        "mean" => Some(Pooling::Mean),
        "mean_sqrt_len_tokens" => Some(Pooling::MeanSqrtLen),
        "weightedmean" => Some(Pooling::WeightedMean),
        "lasttoken" => Some(Pooling::LastToken),
        _ => None,
    };
    if let Some(value) = config.get("pooling_mode") {
        let named = match value {
            Value::Array(list) => list.iter().map(by_name).collect::<Option<Vec<_>>>(),
            other => by_name(other).map(|mode| vec![mode]),
        };
        return named
            .filter(|modes| !modes.is_empty())
            .ok_or_else(|| config.bad("pooling_mode", "names of sentence-transformers' poolings"));
    }
    let mut modes = Vec::new();
    for (key, mode) in FLAGS {
        if config.flag_or(key, false)? {
            modes.push(mode);
        }
    }
    if modes.is_empty() {
        modes.push(Pooling::Mean);
    }
    Ok(modes)
}

impl Stage {
    fn has_fixed_width(&self) -> bool {
        matches!(self, Stage::Dense { .. } | Stage::LayerNorm { .. })
    }

    fn describe(&self) -> String {
        let sum = |values: &[f32]| {
            use sha2::{Digest, Sha256};
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            crate::fingerprint::hex(&Sha256::digest(bytes)[..8])
        };
        match self {
            Stage::Dense { weight, bias, activation, .. } => {
                let bias = bias.as_deref().map_or("none".into(), sum);
                format!("dense:{}:{bias}:{activation:?}", sum(weight))
            }
            Stage::LayerNorm { scale, bias } => format!("norm:{}:{}", sum(scale), sum(bias)),
            Stage::Normalize => "normalize".into(),
            Stage::Truncate { dim } => format!("truncate:{dim}"),
        }
    }

    fn apply(&self, mut row: Vec<f32>) -> Vec<f32> {
        match self {
            Stage::Dense { weight, bias, rows, activation } => (0..*rows)
                .map(|r| {
                    let weights = &weight[r * row.len()..(r + 1) * row.len()];
                    let dot: f64 =
                        weights.iter().zip(&row).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                    let bias = bias.as_ref().map_or(0.0, |bias| f64::from(bias[r]));
                    activate(*activation, dot + bias) as f32
                })
                .collect(),
            Stage::LayerNorm { scale, bias } => {
                let n = row.len() as f64;
                let mean = row.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
                let variance = row.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
                let factor = 1.0 / (variance + 1e-5).sqrt();
                for (x, (g, b)) in row.iter_mut().zip(scale.iter().zip(bias)) {
                    *x = ((f64::from(*x) - mean) * factor * f64::from(*g) + f64::from(*b)) as f32;
                }
                row
            }
            Stage::Normalize => {
                normalize(&mut row);
                row
            }
            Stage::Truncate { dim } => {
                row.truncate(*dim);
                row
            }
        }
    }
}
