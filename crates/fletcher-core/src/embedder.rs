//! The engine's front: texts in, vectors out, in the caller's order.
//!
//! An [`Embedder`] is a model on a device, or on several, with its workers. In a call, workers
//! tokenise slices of texts and take blocks of rows of like length through the whole encoder, each
//! in its own arena, as soon as there are enough rows; the vectors are put back in order at the
//! end. Nothing waits inside a block, and a text's vector does not depend on which block, batch or
//! worker it went through.

mod engine;
mod run;
mod scratches;
mod stages;

pub use engine::DeviceStatus;
pub use stages::{Clock, StageTimes};

use std::sync::atomic::AtomicUsize;

use rayon::prelude::*;

use self::engine::{Engine, Replica, Replicas};
use self::run::{Block, RowIds, Run};
use self::scratches::Scratches;
use self::stages::{Stage, StageClock};
use crate::backend::{Backend, BackendError, PoolOp};
use crate::encoder::Encoder;
use crate::error::ModelError;
use crate::model::Model;
use crate::names::Loader;
use crate::pack::PackedBatch;
use crate::text::{Overlong, TextError, TokenIds};

/// Up to this many texts are tokenised on the calling thread: spreading them over threads costs
/// more than it saves.
pub const INLINE_TEXTS: usize = 4;

/// How to set an [`Embedder`] up.
#[derive(Debug, Clone, Copy, Default)]
pub struct EmbedderConfig {
    /// Worker threads; 0 lets the backend say.
    pub threads: usize,
    /// Tokens per block; 0 lets the backend say. A longer text gets a block of its own.
    pub batch_tokens: usize,
    /// Most bytes to take of a GPU's memory; 0 for all there are.
    pub device_memory: usize,
    /// Have room for blocks that may not wait until a worker is free, on devices where that is of
    /// use: see [`Embedder::urgent_blocks`].
    pub urgent: bool,
}

/// How to embed one call's texts.
#[derive(Debug, Clone, Default)]
pub struct EmbedOptions {
    /// What to put before each text.
    pub prompt: Prompt,
    /// What to do with a text that is longer than the model allows.
    pub overlong: Overlong,
}

/// What to put before each text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Prompt {
    /// The model's default prompt, if it has one.
    #[default]
    Default,
    /// The model's prompt of this name.
    Named(String),
    /// This text; empty for none.
    Text(String),
}

/// Texts as rows of token ids, ready for the encoder.
#[derive(Debug)]
pub struct TokenRows {
    /// The ids of each text, or why it has none.
    pub rows: Vec<Result<TokenIds, TextError>>,
    /// Leading tokens of every row that pooling leaves out, because they are the prompt's.
    pub skip: usize,
}

/// One row of a block, for [`Embedder::embed_block`].
#[derive(Debug, Clone, Copy)]
pub struct BlockRow<'a> {
    /// Its token ids: not empty, each below the vocabulary.
    pub ids: &'a [u32],
    /// Leave out the normalisation at the end of the model, if there is one.
    pub unnormalized: bool,
}

/// What became of one text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Embedding {
    /// Tokens that the encoder saw.
    pub tokens: usize,
    /// Whether the text was cut to the model's maximum.
    pub truncated: bool,
}

/// Why one text has no vector. The others of the call do.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    /// The text could not be tokenised within the limits.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The tokenizer made no token of the text, not even special ones.
    #[error("the text has no tokens")]
    NoTokens,
    /// A component of the vector is NaN or infinite.
    #[error("the model's vector for this text is not finite")]
    NotFinite,
}

/// Why a call as a whole failed.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// The model has no prompt of that name.
    #[error("the model has no prompt named `{name}`; it has: {known}")]
    UnknownPrompt {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// The device failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// The vectors of one call, in the order of its texts.
#[derive(Debug)]
pub struct Embeddings {
    /// Length of a vector.
    pub dim: usize,
    /// `rows.len() * dim` values; a failed row's are 0.
    pub values: Vec<f32>,
    /// What became of each text.
    pub rows: Vec<Result<Embedding, RowError>>,
}

impl Embeddings {
    /// The vector of a row, if it has one.
    pub fn vector(&self, row: usize) -> Option<&[f32]> {
        let done = self.rows.get(row)?.is_ok();
        done.then(|| &self.values[row * self.dim..(row + 1) * self.dim])
    }
}

/// A model on a device, ready to embed. Calls may come from many threads at once.
pub struct Embedder {
    model: Model,
    replicas: Replicas,
    /// Arenas beside the workers' own.
    urgent_blocks: usize,
    workers: rayon::ThreadPool,
    block_tokens: usize,
    least_tokens: usize,
    /// Calls that are being done.
    calls: AtomicUsize,
    scratches: Scratches,
    clock: StageClock,
}

impl std::fmt::Debug for Embedder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Embedder").field("model", &self.model.name()).finish_non_exhaustive()
    }
}

impl Embedder {
    /// Uploads a model to a device and plans its workers' arenas.
    ///
    /// # Errors
    /// When the weights do not fit the configuration or the device.
    pub fn new<B: Backend>(
        model: Model,
        backend: B,
        config: EmbedderConfig,
    ) -> Result<Self, ModelError> {
        Self::replicated(model, vec![backend], config)
    }

    /// Uploads a model to several devices, which share the rows of each call: every device takes
    /// the next block when it has time for one. A device that fails is left out from then on and
    /// its block goes to another; see [`Self::devices`].
    ///
    /// # Errors
    /// When the weights do not fit the configuration or a device.
    ///
    /// # Panics
    /// If there is no device.
    pub fn replicated<B: Backend>(
        model: Model,
        backends: Vec<B>,
        config: EmbedderConfig,
    ) -> Result<Self, ModelError> {
        let spec = model.spec().clone();
        let architecture = model.parsed.architecture;
        let loader = Loader::new(&model.checkpoint, architecture.name, architecture.names)?;
        let count = backends.len();
        let threads = match config.threads {
            0 => backends.iter().map(Backend::threads).max().unwrap_or(1),
            threads => threads,
        };
        // A device that no worker belongs to would do nothing.
        let threads = threads.max(count);
        let preferred = match config.batch_tokens {
            0 => backends.iter().map(|backend| backend.preferred_tokens(&spec)).min().unwrap_or(1),
            tokens => tokens,
        };
        let arena_tokens = preferred.max(model.max_tokens());
        let least_tokens = backends.iter().map(Backend::least_tokens).max().unwrap_or(1);
        let urgent = match config.urgent {
            true => backends.iter().map(Backend::urgent_arenas).min().unwrap_or(0),
            false => 0,
        };
        let load = |backend: B| -> Result<Box<dyn Engine>, ModelError> {
            let own = (threads / count).min(backend.arenas(&spec)).max(1);
            let arenas = (0..own + urgent)
                .map(|_| backend.plan(&spec, arena_tokens))
                .collect::<Result<Vec<_>, _>>()?;
            let encoder = Encoder::load(backend, spec.clone(), &loader, model.max_tokens())?;
            Ok(Box::new(Replica::new(encoder, arenas)))
        };
        let replicas = backends.into_iter().map(load).collect::<Result<Vec<_>, _>>()?;
        let workers = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("fletcher-{index}"))
            .build()
            .map_err(|e| BackendError::Device { device: "cpu".into(), message: e.to_string() })?;
        Ok(Self {
            model,
            replicas: Replicas::new(replicas),
            urgent_blocks: urgent * count,
            workers,
            block_tokens: preferred,
            least_tokens,
            calls: AtomicUsize::new(0),
            scratches: Scratches::new(threads),
            clock: StageClock::default(),
        })
    }

    /// The devices, what each has done so far, and which were lost.
    pub fn devices(&self) -> Vec<DeviceStatus> {
        self.replicas.status()
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Length of a vector.
    pub fn dim(&self) -> usize {
        self.model.head.dim()
    }

    /// Tokens that one block should have.
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// A block is not made smaller than this, in tokens, only to give every worker one.
    pub fn least_tokens(&self) -> usize {
        self.least_tokens
    }

    /// Blocks that can be computed at the same time.
    pub fn concurrent_blocks(&self) -> usize {
        self.replicas.arenas() - self.urgent_blocks
    }

    /// Blocks that can be computed beside those, by workers numbered after theirs, each taking
    /// time from the others. For what may not wait until one of them is free.
    pub fn urgent_blocks(&self) -> usize {
        self.urgent_blocks
    }

    /// Worker threads.
    pub fn threads(&self) -> usize {
        self.workers.current_num_threads()
    }

    /// Measures the time that workers spend in each stage from here on.
    pub fn set_clock(&mut self, clock: Clock) {
        self.clock = StageClock::new(clock);
    }

    /// What all calls so far have spent in each stage, summed over the threads; all 0 without a
    /// clock.
    pub fn stage_times(&self) -> StageTimes {
        self.clock.times()
    }

    /// Embeds texts; each row fails or succeeds on its own.
    ///
    /// # Errors
    /// When the prompt is unknown or the device fails; then no row has a vector.
    pub fn embed<S: AsRef<str> + Sync>(
        &self,
        texts: &[S],
        options: &EmbedOptions,
    ) -> Result<Embeddings, EmbedError> {
        let (prompt, skip) = self.prompted(options)?;
        let text = |row: usize| texts[row].as_ref();
        Ok(Run::of_texts(self, &text, texts.len(), prompt, options.overlong).finish(skip)?)
    }

    /// The first half of [`Self::embed`] alone: texts to rows of token ids.
    ///
    /// # Errors
    /// When the prompt is unknown.
    pub fn tokenize<S: AsRef<str> + Sync>(
        &self,
        texts: &[S],
        options: &EmbedOptions,
    ) -> Result<TokenRows, EmbedError> {
        let (prompt, skip) = self.prompted(options)?;
        let encode = |text: &S| {
            let text = text.as_ref();
            self.scratches.with(|s| self.model.text.encode_with(text, prompt, options.overlong, s))
        };
        let rows = match texts.len() <= INLINE_TEXTS {
            true => texts.iter().map(encode).collect(),
            false => self.workers.install(|| texts.par_iter().map(encode).collect()),
        };
        Ok(TokenRows { rows, skip })
    }

    /// The vectors of one block of rows, computed on the calling thread: for callers that have
    /// a queue and threads of their own. Such threads are best as many as
    /// [`Self::concurrent_blocks`] and [`Self::urgent_blocks`], each with a number of its own, and
    /// a block best has about [`Self::block_tokens`] tokens.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// If a row is empty or longer than the model allows, or an id is out of range.
    pub fn embed_block(
        &self,
        worker: usize,
        rows: &[BlockRow<'_>],
        skip: usize,
    ) -> Result<Vec<Result<Vec<f32>, RowError>>, BackendError> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let (limit, vocabulary) = (self.model.max_tokens(), self.model.spec().vocabulary);
        assert!(rows.iter().all(|row| row.ids.len() <= limit), "a row is too long");
        let known = |row: &BlockRow<'_>| row.ids.iter().all(|&id| (id as usize) < vocabulary);
        assert!(rows.iter().all(known), "an id is out of range");
        let batch = PackedBatch::new(rows.iter().map(|row| row.ids));
        let pooled = self.replicas.encode(Some(worker), &batch, &self.model.head.pool_ops(skip))?;
        let finish = |(pooled, row): (&[f32], &BlockRow<'_>)| {
            let vector = match row.unnormalized {
                true => self.model.head.finish_unnormalized(pooled.to_vec()),
                false => self.model.head.finish(pooled.to_vec()),
            };
            match vector.iter().all(|value| value.is_finite()) {
                true => Ok(vector),
                false => Err(RowError::NotFinite),
            }
        };
        Ok(pooled.chunks_exact(pooled.len() / rows.len()).zip(rows).map(finish).collect())
    }

    /// Embeds sequences of token ids as they are, special tokens included.
    ///
    /// # Errors
    /// When the device fails.
    pub fn embed_ids<S: AsRef<[u32]>>(&self, sequences: &[S]) -> Result<Embeddings, EmbedError> {
        let rows = sequences.iter().map(AsRef::as_ref);
        Ok(Run::of_ids(self, rows.map(|ids| self.check_ids(ids).map(|()| ids))).finish(0)?)
    }

    /// Whether the model can take a caller's own token ids as a row.
    ///
    /// # Errors
    /// When there are too many, or one is not in the vocabulary.
    pub fn check_ids(&self, ids: &[u32]) -> Result<(), TextError> {
        let (limit, vocabulary) = (self.model.max_tokens(), self.model.spec().vocabulary);
        if ids.len() > limit {
            return Err(TextError::Overlong { tokens: ids.len(), limit });
        }
        match ids.iter().find(|&&id| id as usize >= vocabulary) {
            Some(&id) => Err(TextError::UnknownId { id, vocabulary }),
            None => Ok(()),
        }
    }

    /// The encoder's state for every token of the sequences, before pooling.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// If a sequence is empty or longer than the model allows, or an id is out of range.
    pub fn hidden(&self, sequences: &[&[u32]]) -> Result<Vec<f32>, BackendError> {
        let vocabulary = self.model.spec().vocabulary;
        assert!(sequences.iter().all(|ids| ids.len() <= self.model.max_tokens()));
        assert!(sequences.iter().all(|ids| ids.iter().all(|&id| (id as usize) < vocabulary)));
        let mut hidden = Vec::new();
        for ids in sequences {
            hidden.extend(self.replicas.hidden(&PackedBatch::new([*ids]))?);
        }
        Ok(hidden)
    }

    /// Takes a block of rows through the encoder and the head.
    fn run_block(
        &self,
        worker: Option<usize>,
        rows: Vec<RowIds<'_>>,
        pools: &[PoolOp],
    ) -> Result<Block, BackendError> {
        let pack = || PackedBatch::new(rows.iter().map(RowIds::ids));
        let batch = self.clock.measure(Stage::Pack, pack);
        let pooled =
            self.clock.measure(Stage::Encode, || self.replicas.encode(worker, &batch, pools))?;
        let finish = || self.model.head.finish_rows(pooled, rows.len());
        let values = self.clock.measure(Stage::Head, finish);
        Ok(Block { rows: rows.iter().map(RowIds::row).collect(), values })
    }

    /// The text of a call's prompt, and how many tokens of each row it is that pooling skips.
    fn prompted<'a>(&'a self, options: &'a EmbedOptions) -> Result<(&'a str, usize), EmbedError> {
        let prompt = self.prompt_text(&options.prompt)?;
        let skip = match self.model.head.include_prompt() || prompt.is_empty() {
            true => 0,
            false => self.model.text.prompt_tokens(prompt),
        };
        Ok((prompt, skip))
    }

    /// What a prompt puts before each text.
    ///
    /// # Errors
    /// When the model has no prompt of that name.
    pub fn prompt_text<'a>(&'a self, prompt: &'a Prompt) -> Result<&'a str, EmbedError> {
        let prompts = self.model.prompts();
        match prompt {
            Prompt::Default => Ok(prompts.default_text()),
            Prompt::Text(text) => Ok(text),
            Prompt::Named(name) => prompts.by_name.get(name).map(String::as_str).ok_or_else(|| {
                let known: Vec<&str> = prompts.by_name.keys().map(String::as_str).collect();
                let known = match known.is_empty() {
                    true => "none".to_owned(),
                    false => known.join(", "),
                };
                EmbedError::UnknownPrompt { name: name.clone(), known }
            }),
        }
    }
}
