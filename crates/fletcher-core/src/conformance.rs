//! The suite that every backend must pass: [`check`] runs it against [`Reference`].
//!
//! It walks a grid of small specs that between them touch every axis (odd head sizes, windows,
//! gates, relative biases, pre- and post-norm, missing biases) with random weights and ragged
//! batches, and compares the hidden states after each composite and the pooled vectors. A new
//! backend instantiates it in one line of its tests; the golden models are run besides.

mod models;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

pub use self::models::specs;
use self::models::{Random, weights};
use crate::backend::{Backend, BackendError, PoolOp, Pooling};
use crate::encoder::EncoderWeights;
use crate::pack::PackedBatch;
use crate::reference::Reference;
use crate::spec::EncoderSpec;

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
        let ids = ids(&spec, &LENGTHS);
        let batch = pack(&ids, &LENGTHS);
        let expected = remembered(&TRACES, name.to_owned(), || {
            trace(&Reference, &weights(&Reference, &spec)?, &batch)
        })?;
        let found = trace(backend, &weights(backend, &spec)?, &batch)?;
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
    let expected = remembered(&RESULTS, format!("{spec:?} {lengths:?}"), || {
        results(&Reference, &weights(&Reference, spec)?, &batch)
    })?;
    Ok(worst_difference(&expected, &results(backend, &weights(backend, spec)?, &batch)?))
}

/// What the reference found, which takes it long and is asked for in one format after another.
type Known<T> = LazyLock<Mutex<HashMap<String, Arc<T>>>>;

static TRACES: Known<Trace> = LazyLock::new(Mutex::default);
static RESULTS: Known<Vec<f32>> = LazyLock::new(Mutex::default);

fn remembered<T>(
    known: &Known<T>,
    key: String,
    make: impl FnOnce() -> Result<T, BackendError>,
) -> Result<Arc<T>, BackendError> {
    let lock = || known.lock().unwrap_or_else(PoisonError::into_inner);
    let found = lock().get(&key).cloned();
    if let Some(found) = found {
        return Ok(found);
    }
    let made = Arc::new(make()?);
    lock().insert(key, Arc::clone(&made));
    Ok(made)
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

/// The largest difference, over all poolings, between the vectors of [`Backend::encode_pooled`] and
/// those of the encoder and a pooling: what a backend leaves out of the last layer must not be
/// missed.
///
/// # Errors
/// When the device fails.
pub fn worst_of_pooled<B: Backend>(
    backend: &B,
    spec: &EncoderSpec,
    lengths: &[usize],
) -> Result<f64, BackendError> {
    let ids = ids(spec, lengths);
    let batch = pack(&ids, lengths);
    let model = weights(backend, spec)?;
    let mut arena = backend.plan(spec, batch.tokens())?;
    let mut worst = 0.0_f64;
    for op in pool_ops() {
        backend.encode(&mut arena, &model, &batch)?;
        let mut expected = vec![f32::NAN; batch.rows() * spec.hidden];
        backend.pool(&mut arena, op, &batch, &mut expected)?;
        let found = encoded_and_pooled(backend, &mut arena, &model, op, &batch)?;
        worst = worst.max(worst_difference(&expected, &found));
    }
    Ok(worst)
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
    let model = Random::spoiling().weights(backend, &spec)?;
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
    let one = |op| {
        let mut vectors = vec![f32::NAN; batch.rows() * width];
        b.pool(arena, op, batch, &mut vectors)?;
        Ok((op, vectors))
    };
    pool_ops().map(one).collect()
}

/// [`Backend::encode_pooled`]'s vectors.
fn encoded_and_pooled<B: Backend>(
    b: &B,
    arena: &mut B::Arena,
    model: &EncoderWeights<B>,
    op: PoolOp,
    batch: &PackedBatch,
) -> Result<Vec<f32>, BackendError> {
    let mut vectors = vec![f32::NAN; batch.rows() * model.spec.hidden];
    b.encode_pooled(arena, model, op, batch, &mut vectors)?;
    Ok(vectors)
}

/// Every pooling, of whole sequences and behind a prompt.
fn pool_ops() -> impl Iterator<Item = PoolOp> {
    use Pooling::{Cls, LastToken, Max, Mean, MeanSqrtLen, WeightedMean};
    let modes = [Cls, Max, Mean, MeanSqrtLen, WeightedMean, LastToken];
    modes.into_iter().flat_map(|mode| [0, 3].map(|skip| PoolOp { mode, skip }))
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
    for mode in [Pooling::Cls, Pooling::LastToken, Pooling::Mean] {
        let op = PoolOp { mode, skip: 3 };
        let vectors = encoded_and_pooled(b, &mut arena, model, op, batch)?;
        trace.push((format!("encoder with {mode:?}"), vectors));
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
