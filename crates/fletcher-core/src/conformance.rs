//! The suite that every backend must pass: [`check`] runs it against [`Reference`].
//!
//! It walks a grid of small specs that between them touch every axis (odd head sizes, windows,
//! gates, relative biases, pre- and post-norm, missing biases) with random weights and ragged
//! batches, and compares the hidden states after each composite and the pooled vectors. A new
//! backend instantiates it in one line of its tests; the golden models are run besides.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use bytes::Bytes;

use crate::backend::{Backend, BackendError, EmbeddingSource, LinearSource, PoolOp, Pooling};
use crate::encoder::{EncoderWeights, LayerWeights};
use crate::pack::PackedBatch;
use crate::reference::Reference;
use crate::spec::{
    Activation, Biases, EncoderSpec, FeedForward, LayerSpec, NormPlacement, NormSpec, Position,
};
use crate::weights::{StoredDtype, Tensor};

/// Positions that the rotary and relative tables cover.
const POSITIONS: usize = 96;
/// Sequence lengths of the ragged batch: single tokens, odd ones, and the longest.
const LENGTHS: [usize; 9] = [1, 2, 3, 7, 16, 17, 33, 64, POSITIONS];

/// Compares `backend` with the reference on the whole grid.
///
/// # Errors
/// When the device fails.
///
/// # Panics
/// When a state differs by more than `tolerance` (hidden states are of order 1).
pub fn check<B: Backend>(backend: &B, tolerance: f64) -> Result<(), BackendError> {
    for (name, spec) in specs() {
        let (ours, oracle) = (weights(backend, &spec)?, weights(&Reference, &spec)?);
        let ids = ids(&spec, &LENGTHS);
        let batch = pack(&ids, &LENGTHS);
        let expected = trace(&Reference, &oracle, &batch)?;
        let found = trace(backend, &ours, &batch)?;
        for ((step, expected), (_, found)) in expected.iter().zip(&found) {
            let worst = worst_difference(expected, found);
            assert!(worst <= tolerance, "{name}: {step} differs by {worst:e}");
        }
    }
    Ok(())
}

/// A spec like BERT's with random weights, for [`worst_of`]: the shapes that a backend has kernels
/// of its own for, or long sequences.
pub fn bert_like(
    hidden: usize,
    heads: usize,
    intermediate: usize,
    max_tokens: usize,
) -> EncoderSpec {
    let (_, bert) = specs().swap_remove(0);
    EncoderSpec { hidden, heads, head_dim: hidden / heads, intermediate, max_tokens, ..bert }
}

/// The largest difference between a backend's last states or pooled vectors and the reference's,
/// over sequences of these lengths.
///
/// # Errors
/// When the device fails.
pub fn worst_of<B: Backend>(
    backend: &B,
    spec: &EncoderSpec,
    lengths: &[usize],
) -> Result<f64, BackendError> {
    let ids = ids(spec, lengths);
    let batch = pack(&ids, lengths);
    let expected = expected(spec, lengths)?;
    Ok(worst_difference(&expected, &results(backend, &weights(backend, spec)?, &batch)?))
}

/// The reference's results, which take it long, and which are asked for in one format after
/// another.
fn expected(spec: &EncoderSpec, lengths: &[usize]) -> Result<Arc<Vec<f32>>, BackendError> {
    type Known = HashMap<String, Arc<Vec<f32>>>;
    static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let key = format!("{spec:?} {lengths:?}");
    let found = known().get(&key).cloned();
    if let Some(found) = found {
        return Ok(found);
    }
    let ids = ids(spec, lengths);
    let model = weights(&Reference, spec)?;
    let found = Arc::new(results(&Reference, &model, &pack(&ids, lengths))?);
    known().insert(key, Arc::clone(&found));
    Ok(found)
}

/// The largest difference between the last states of sequences of these lengths in one batch and in
/// a batch each: where there are too many tokens for the reference.
///
/// # Errors
/// When the device fails.
pub fn worst_of_parts<B: Backend>(
    backend: &B,
    spec: &EncoderSpec,
    lengths: &[usize],
) -> Result<f64, BackendError> {
    let ids = ids(spec, lengths);
    let model = weights(backend, spec)?;
    let mut arena = backend.plan(spec, ids.len())?;
    let found = last_states(backend, &mut arena, &model, &pack(&ids, lengths))?;
    let mut expected = Vec::with_capacity(found.len());
    let mut rest = &ids[..];
    for &length in lengths {
        let (sequence, after) = rest.split_at(length);
        expected.extend(last_states(backend, &mut arena, &model, &pack(sequence, &[length]))?);
        rest = after;
    }
    Ok(worst_difference(&expected, &found))
}

/// Encodes sequences of these lengths time and again on four arenas at once, and compares every
/// result with the first: what one arena has in flight may not reach another's.
///
/// # Errors
/// When the device fails.
///
/// # Panics
/// When two results differ.
pub fn repeats<B: Backend>(
    backend: &B,
    spec: &EncoderSpec,
    lengths: &[usize],
) -> Result<(), BackendError> {
    let ids = ids(spec, lengths);
    let batch = pack(&ids, lengths);
    let model = weights(backend, spec)?;
    let expected = results(backend, &model, &batch)?;
    std::thread::scope(|scope| {
        let one = || {
            for _ in 0..8 {
                let found = results(backend, &model, &batch)?;
                let worst = worst_difference(&expected, &found);
                assert!(worst == 0.0, "differs by {worst:e} the next time");
            }
            Ok(())
        };
        let threads = [(); 4].map(|()| scope.spawn(one));
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

/// Encodes sequences of these lengths twice, once with a token in the `spoiled` one whose values do
/// not fit the backend's format: that sequence must have no finite result then, and every other one
/// the same to the bit. For formats as narrow as f16, and states at least 128 wide.
///
/// # Errors
/// When the device fails.
///
/// # Panics
/// When it is not so.
pub fn isolates<B: Backend>(
    backend: &B,
    spec: &EncoderSpec,
    lengths: &[usize],
    spoiled: usize,
) -> Result<(), BackendError> {
    // The token's state is all in its first column, which the values weigh with 10,000: 65,504 is
    // f16's largest number.
    let spoiling = spec.vocabulary;
    let spec = EncoderSpec { vocabulary: spec.vocabulary + 1, ..spec.clone() };
    let model = Random { spoils: true, ..Random::new() }.weights(backend, &spec)?;
    let start: usize = lengths[..spoiled].iter().sum();
    let mut ids = ids(&EncoderSpec { vocabulary: spoiling, ..spec.clone() }, lengths);
    let mut arena = backend.plan(&spec, ids.len())?;
    let expected = last_states(backend, &mut arena, &model, &pack(&ids, lengths))?;
    assert!(expected.iter().all(|value| value.is_finite()), "the other tokens do not fit either");
    ids[start + lengths[spoiled] / 2] = spoiling as u32;
    let found = last_states(backend, &mut arena, &model, &pack(&ids, lengths))?;
    let rows = start..start + lengths[spoiled];
    let states = found.chunks_exact(spec.hidden).zip(expected.chunks_exact(spec.hidden));
    for (token, (found, expected)) in states.enumerate() {
        match rows.contains(&token) {
            true => assert!(
                !found.iter().all(|value| value.is_finite()),
                "token {token} of the spoiled sequence has a result"
            ),
            false => assert!(found == expected, "token {token} is another sequence's and differs"),
        }
    }
    Ok(())
}

/// What every pooling makes of an encoded batch, then the states.
fn results<B: Backend>(
    b: &B,
    model: &EncoderWeights<B>,
    batch: &PackedBatch,
) -> Result<Vec<f32>, BackendError> {
    let d = model.spec.hidden;
    let mut arena = b.plan(&model.spec, batch.tokens())?;
    b.encode(&mut arena, model, batch)?;
    let mut found = Vec::new();
    for (op, mut vectors) in pooled(b, &mut arena, d, batch)? {
        if op.mode == Pooling::MeanSqrtLen {
            // It grows with the sequence, and so do its errors: compared as the mean that it is of.
            for (vector, sequence) in vectors.chunks_exact_mut(d).zip(batch.sequences()) {
                vector.iter_mut().for_each(|value| *value /= (sequence.len() as f32).sqrt());
            }
        }
        found.extend(vectors);
    }
    found.extend(last_states(b, &mut arena, model, batch)?);
    Ok(found)
}

/// The states of an encoded batch's tokens.
fn last_states<B: Backend>(
    b: &B,
    arena: &mut B::Arena,
    model: &EncoderWeights<B>,
    batch: &PackedBatch,
) -> Result<Vec<f32>, BackendError> {
    b.encode(arena, model, batch)?;
    let mut hidden = vec![f32::NAN; batch.tokens() * model.spec.hidden];
    b.download_hidden(arena, batch, &mut hidden)?;
    Ok(hidden)
}

/// The vectors of every pooling.
fn pooled<B: Backend>(
    b: &B,
    arena: &mut B::Arena,
    width: usize,
    batch: &PackedBatch,
) -> Result<Vec<(PoolOp, Vec<f32>)>, BackendError> {
    use Pooling::{Cls, LastToken, Max, Mean, MeanSqrtLen, WeightedMean};
    let mut all = Vec::new();
    for mode in [Cls, Max, Mean, MeanSqrtLen, WeightedMean, LastToken] {
        for skip in [0, 3] {
            let op = PoolOp { mode, skip };
            let mut vectors = vec![f32::NAN; batch.rows() * width];
            b.pool(arena, op, batch, &mut vectors)?;
            all.push((op, vectors));
        }
    }
    Ok(all)
}

fn ids(spec: &EncoderSpec, lengths: &[usize]) -> Vec<u32> {
    let count = lengths.iter().sum::<usize>();
    (0..count).map(|i| (i * 7919 % spec.vocabulary) as u32).collect()
}

fn pack(ids: &[u32], lengths: &[usize]) -> PackedBatch {
    let mut rest = ids;
    PackedBatch::new(lengths.iter().map(|&length| {
        let (sequence, tail) = rest.split_at(length);
        rest = tail;
        sequence
    }))
}

fn worst_difference(expected: &[f32], found: &[f32]) -> f64 {
    let differences = expected.iter().zip(found).map(|(a, b)| f64::from((a - b).abs()));
    // NaN must fail, and `max` would swallow it.
    differences.fold(0.0, |worst: f64, e| if e.is_nan() { f64::INFINITY } else { worst.max(e) })
}

type Trace = Vec<(String, Vec<f32>)>;

/// The hidden state after each composite, then each pooling.
fn trace<B: Backend>(
    b: &B,
    model: &EncoderWeights<B>,
    batch: &PackedBatch,
) -> Result<Trace, BackendError> {
    let mut arena = b.plan(&model.spec, batch.tokens())?;
    let mut trace = Vec::new();
    let mut snapshot = |b: &B, arena: &mut B::Arena, step: String| {
        let mut hidden = vec![f32::NAN; batch.tokens() * model.spec.hidden];
        b.download_hidden(arena, batch, &mut hidden)?;
        trace.push((step, hidden));
        Ok::<_, BackendError>(())
    };
    b.embed(&mut arena, &model.embedding, batch)?;
    snapshot(b, &mut arena, "embed".into())?;
    b.embedding_norm_op(&mut arena, model)?;
    snapshot(b, &mut arena, "embedding norm".into())?;
    for (index, layer) in model.layers.iter().enumerate() {
        b.attention_block(&mut arena, model, layer, batch)?;
        snapshot(b, &mut arena, format!("attention {index}"))?;
        b.feed_forward_block(&mut arena, model, layer)?;
        snapshot(b, &mut arena, format!("feed-forward {index}"))?;
    }
    for (PoolOp { mode, skip }, vectors) in pooled(b, &mut arena, model.spec.hidden, batch)? {
        trace.push((format!("{mode:?} skipping {skip}"), vectors));
    }
    // Last, because a fused layer need not leave the same intermediate states.
    b.embed(&mut arena, &model.embedding, batch)?;
    b.embedding_norm_op(&mut arena, model)?;
    for layer in &model.layers {
        b.layer(&mut arena, model, layer, batch)?;
    }
    let mut hidden = vec![f32::NAN; batch.tokens() * model.spec.hidden];
    b.download_hidden(&mut arena, batch, &mut hidden)?;
    trace.push(("layers".into(), hidden));
    // Again from the start, because a fused encoder may do its work only when it knows what for.
    b.encode(&mut arena, model, batch)?;
    let mut hidden = vec![f32::NAN; batch.tokens() * model.spec.hidden];
    b.download_hidden(&mut arena, batch, &mut hidden)?;
    trace.push(("encoder".into(), hidden));
    b.encode(&mut arena, model, batch)?;
    for (PoolOp { mode, skip }, vectors) in pooled(b, &mut arena, model.spec.hidden, batch)? {
        trace.push((format!("encoder, {mode:?} skipping {skip}"), vectors));
    }
    Ok(trace)
}

/// The step between embedding and layers, written once for the two uses above.
trait EmbeddingNorm: Backend {
    fn embedding_norm_op(
        &self,
        arena: &mut Self::Arena,
        model: &EncoderWeights<Self>,
    ) -> Result<(), BackendError> {
        use crate::backend::{NormOp, Slot};
        let (input, output) = (Slot::Hidden, Slot::Hidden);
        self.norm(arena, NormOp { norm: &model.embedding_norm, input, output })
    }
}

impl<B: Backend> EmbeddingNorm for B {}

/// One spec per combination that some architecture has or that has bitten somebody.
fn specs() -> Vec<(&'static str, EncoderSpec)> {
    let layer = LayerSpec { window: None, rotary_theta: 10_000.0, attention_norm: true };
    let bert = EncoderSpec {
        vocabulary: 50,
        hidden: 32,
        heads: 2,
        head_dim: 16,
        intermediate: 64,
        layers: vec![layer.clone(); 2],
        max_tokens: POSITIONS,
        position: Position::Learned { offset: 0 },
        token_types: true,
        norm: NormSpec { eps: 1e-12, placement: NormPlacement::Post },
        feed_forward: FeedForward { gated: false, activation: Activation::GeluErf },
        biases: Biases { attention: true, feed_forward: true, norm: true },
    };
    let activation = |activation| EncoderSpec {
        feed_forward: FeedForward { gated: false, activation },
        ..bert.clone()
    };
    let gated = |activation| EncoderSpec {
        feed_forward: FeedForward { gated: true, activation },
        intermediate: 101,
        ..bert.clone()
    };
    let bare = Biases { attention: false, feed_forward: false, norm: false };
    let local = LayerSpec { window: Some(5), rotary_theta: 100.0, attention_norm: true };
    vec![
        ("bert", bert.clone()),
        (
            "odd sizes",
            EncoderSpec { hidden: 78, heads: 3, head_dim: 26, intermediate: 101, ..bert.clone() },
        ),
        (
            "one wide head",
            EncoderSpec { hidden: 130, heads: 1, head_dim: 130, intermediate: 7, ..bert.clone() },
        ),
        (
            "two heads of 64",
            EncoderSpec { hidden: 128, head_dim: 64, intermediate: 192, ..bert.clone() },
        ),
        ("gelu tanh", activation(Activation::GeluTanh)),
        ("relu", activation(Activation::Relu)),
        ("silu", activation(Activation::Silu)),
        ("offset", EncoderSpec { position: Position::Learned { offset: 2 }, ..bert.clone() }),
        (
            "relative",
            EncoderSpec {
                position: Position::RelativeBuckets { offset: 2, buckets: 8, max_distance: 20 },
                token_types: false,
                ..bert.clone()
            },
        ),
        (
            "rotary, gated",
            EncoderSpec {
                position: Position::Rotary,
                feed_forward: FeedForward { gated: true, activation: Activation::Silu },
                biases: Biases { norm: true, ..bare },
                ..bert.clone()
            },
        ),
        ("gated relu", gated(Activation::Relu)),
        ("gated gelu tanh", gated(Activation::GeluTanh)),
        (
            "pre-norm, windows",
            EncoderSpec {
                position: Position::Rotary,
                layers: vec![LayerSpec { attention_norm: false, ..layer }, local.clone(), local],
                norm: NormSpec { eps: 1e-5, placement: NormPlacement::Pre },
                feed_forward: FeedForward { gated: true, activation: Activation::GeluErf },
                intermediate: 35,
                biases: bare,
                ..bert
            },
        ),
    ]
}

/// Deterministic weights, uploaded directly.
fn weights<B: Backend>(b: &B, spec: &EncoderSpec) -> Result<EncoderWeights<B>, BackendError> {
    Random::new().weights(b, spec)
}

/// A linear congruential generator (Knuth's MMIX constants): the suite needs no quality, only the
/// same numbers everywhere.
struct Random {
    state: u64,
    /// Whether the vocabulary's last token has values that f16 does not hold.
    spoils: bool,
}

impl Random {
    fn new() -> Self {
        Self { state: 42, spoils: false }
    }

    fn weights<B: Backend>(
        mut self,
        b: &B,
        spec: &EncoderSpec,
    ) -> Result<EncoderWeights<B>, BackendError> {
        let random = &mut self;
        let d = spec.hidden;
        let embedding = b.upload_embedding(EmbeddingSource {
            word: random.words(spec.vocabulary, d),
            position: (spec.position.learned_offset())
                .map(|offset| random.tensor(&[offset + spec.max_tokens, d])),
            token_type: spec.token_types.then(|| random.tensor(&[2, d])),
            position_offset: spec.position.learned_offset().unwrap_or(0),
        })?;
        let relative_bias = match spec.position {
            Position::RelativeBuckets { .. } => {
                let table: Vec<Vec<f32>> =
                    (0..spec.heads).map(|_| random.values(2 * spec.max_tokens - 1)).collect();
                Some(b.upload_relative_bias(&table, spec.max_tokens)?)
            }
            _ => None,
        };
        let embedding_norm = random.norm(b, spec)?;
        let final_norm = match spec.norm.placement {
            NormPlacement::Pre => Some(random.norm(b, spec)?),
            NormPlacement::Post => None,
        };
        let layers = (spec.layers.iter())
            .map(|layer| random.layer(b, spec, layer))
            .collect::<Result<Vec<_>, _>>()?;
        let spec = spec.clone();
        Ok(EncoderWeights { spec, embedding, embedding_norm, relative_bias, layers, final_norm })
    }

    /// Uniform in -1..1.
    fn next(&mut self) -> f32 {
        self.state = self.state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next()).collect()
    }

    fn words(&mut self, vocabulary: usize, d: usize) -> Tensor {
        let mut values = self.values(vocabulary * d);
        if self.spoils {
            values[(vocabulary - 1) * d] = 6e4;
        }
        Self::tensor_of(&values, &[vocabulary, d])
    }

    fn tensor(&mut self, shape: &[usize]) -> Tensor {
        let values = self.values(shape.iter().product());
        Self::tensor_of(&values, shape)
    }

    fn tensor_of(values: &[f32], shape: &[usize]) -> Tensor {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor {
            file: "conformance".into(),
            name: "random".into(),
            dtype: StoredDtype::F32,
            shape: shape.to_vec(),
            bytes: Bytes::from(bytes),
        }
    }

    fn norm<B: Backend>(&mut self, b: &B, spec: &EncoderSpec) -> Result<B::Norm, BackendError> {
        let scale: Vec<f32> = self.values(spec.hidden).iter().map(|v| 1.0 + 0.3 * v).collect();
        let bias = spec.biases.norm.then(|| self.values(spec.hidden));
        b.upload_norm(&scale, bias.as_deref(), spec.norm.eps)
    }

    /// A matrix that keeps sums of order 1, and attention scores away from one-hot.
    fn matrix(&mut self, rows: usize, cols: usize) -> Vec<f32> {
        let scale = 2.0 / (cols as f32).sqrt();
        self.values(rows * cols).iter().map(|v| v * scale).collect()
    }

    fn linear<B: Backend>(
        &mut self,
        b: &B,
        (rows, cols): (usize, usize),
        (with_bias, gated): (bool, bool),
    ) -> Result<B::Linear, BackendError> {
        let weight = self.matrix(rows, cols);
        let bias = with_bias.then(|| self.values(rows));
        b.upload_linear(LinearSource { rows, cols, weight: &weight, bias: bias.as_deref(), gated })
    }

    fn qkv<B: Backend>(
        &mut self,
        b: &B,
        (context, d): (usize, usize),
        with_bias: bool,
    ) -> Result<B::Linear, BackendError> {
        let rows = 3 * context;
        let mut weight = self.matrix(rows, d);
        if self.spoils {
            let values = &mut weight[2 * context * d..];
            values.iter_mut().step_by(16 * d).for_each(|weight| *weight = 1e4);
        }
        let bias = with_bias.then(|| self.values(rows));
        let bias = bias.as_deref();
        b.upload_linear(LinearSource { rows, cols: d, weight: &weight, bias, gated: false })
    }

    fn layer<B: Backend>(
        &mut self,
        b: &B,
        spec: &EncoderSpec,
        layer: &LayerSpec,
    ) -> Result<LayerWeights<B>, BackendError> {
        let (d, context, inner) = (spec.hidden, spec.context_width(), spec.intermediate);
        let gated = spec.feed_forward.gated;
        let up_rows = if gated { 2 * inner } else { inner };
        let (attention, feed_forward) = (spec.biases.attention, spec.biases.feed_forward);
        Ok(LayerWeights {
            qkv: self.qkv(b, (context, d), attention)?,
            attention_out: self.linear(b, (d, context), (attention, false))?,
            attention_norm: match layer.attention_norm {
                true => Some(self.norm(b, spec)?),
                false => None,
            },
            up: self.linear(b, (up_rows, d), (feed_forward, gated))?,
            down: self.linear(b, (d, inner), (feed_forward, false))?,
            feed_forward_norm: self.norm(b, spec)?,
            rotary: match spec.position {
                Position::Rotary => {
                    let tables =
                        b.upload_rotary(layer.rotary_theta, spec.head_dim, spec.max_tokens)?;
                    Some(Arc::new(tables))
                }
                _ => None,
            },
            window: layer.window,
        })
    }
}
