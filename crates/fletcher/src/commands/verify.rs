//! `fletcher verify`: does this model give here the vectors that it gave elsewhere?
//!
//! Every reference text is embedded alone and again in one call of mixed lengths, because the two
//! differ in engines that pad; both are held against the stored vectors.

use std::fmt::{Display, Write as _};

use fletcher_core::embedder::{EmbedOptions, Embedder};
use fletcher_io::{ReferenceRow, SourceInput};

use crate::args::VerifyArgs;
use crate::config::{self, ModelConfig};
use crate::failure::Failure;
use crate::model;
use crate::output::print;

pub(crate) fn run(args: VerifyArgs) -> Result<(), Failure> {
    let input = SourceInput::Path(args.reference.clone());
    let rows = fletcher_io::read_reference(input, None)?;
    if rows.is_empty() {
        let path = args.reference.display();
        return Err(Failure::input(format!("{path}: no reference rows")));
    }
    let embedder = model::load(&ModelConfig::resolve(&args.model))?;
    let dim = embedder.dim();
    if let Some(at) = rows.iter().position(|row| row.vector.len() != dim) {
        return Err(Failure::input(format!(
            "{}, row {}: the vector has {} dimensions, the model's have {dim}",
            args.reference.display(),
            at + 1,
            rows[at].vector.len(),
        )));
    }
    let options = config::embed_options(&args.text);
    let alone = embed_alone(&embedder, &rows, &options)?;
    let mixed = embed_mixed(&embedder, &rows, &options)?;
    let mut text = String::new();
    let mut line = |name: &str, value: &dyn Display| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<12} {value}");
    };
    line("model", &embedder.model().name());
    line("fingerprint", &embedder.model().fingerprint());
    line("texts", &rows.len());
    let mut passed = true;
    for (name, vectors) in [("alone", &alone), ("mixed batch", &mixed)] {
        let comparison = Comparison::of(&rows, vectors);
        line(name, &comparison);
        passed &= comparison.max_abs <= args.tolerance && comparison.min_cosine >= args.min_cosine;
    }
    let invariant = alone.iter().zip(&mixed).all(|(a, b)| same_bits(a, b));
    line("invariant", &if invariant { "yes, bit for bit" } else { "no" });
    if passed {
        text.push_str("verified\n");
    }
    let printed = print(&text);
    match passed {
        true => printed,
        // Also if whoever reads our output has left: the exit code is the answer.
        false => Err(Failure::work(format!(
            "the vectors are not those of {}: tolerance {:e}, least cosine {}",
            args.reference.display(),
            args.tolerance,
            args.min_cosine
        ))),
    }
}

fn embed_alone(
    embedder: &Embedder,
    rows: &[ReferenceRow],
    options: &EmbedOptions,
) -> Result<Vec<Vec<f32>>, Failure> {
    let mut vectors = Vec::with_capacity(rows.len());
    for (index, row) in rows.iter().enumerate() {
        vectors.extend(embed(embedder, std::slice::from_ref(row), index, options)?);
    }
    Ok(vectors)
}

fn embed_mixed(
    embedder: &Embedder,
    rows: &[ReferenceRow],
    options: &EmbedOptions,
) -> Result<Vec<Vec<f32>>, Failure> {
    embed(embedder, rows, 0, options)
}

/// Embeds rows, of which the first is number `first` (from 0) of the file.
fn embed(
    embedder: &Embedder,
    rows: &[ReferenceRow],
    first: usize,
    options: &EmbedOptions,
) -> Result<Vec<Vec<f32>>, Failure> {
    let texts: Vec<&str> = rows.iter().map(|row| row.text.as_str()).collect();
    let embeddings = embedder.embed(&texts, options)?;
    let vector = |(row, result): (usize, &Result<_, fletcher_core::embedder::RowError>)| match (
        result,
        embeddings.vector(row),
    ) {
        (Ok(_), Some(vector)) => Ok(vector.to_vec()),
        (Err(error), _) => Err(Failure::input(format!("row {}: {error}", first + row + 1))),
        (Ok(_), None) => Err(Failure::work("a finished row without a vector")),
    };
    embeddings.rows.iter().enumerate().map(vector).collect()
}

/// How far vectors are from their references.
struct Comparison {
    max_abs: f64,
    min_cosine: f64,
    mean_cosine: f64,
}

impl Comparison {
    fn of(rows: &[ReferenceRow], vectors: &[Vec<f32>]) -> Self {
        let mut max_abs = 0.0f64;
        let mut cosines = Vec::with_capacity(rows.len());
        for (row, vector) in rows.iter().zip(vectors) {
            for (a, b) in row.vector.iter().zip(vector) {
                let difference = (f64::from(*a) - f64::from(*b)).abs();
                // NaN would vanish in `max`.
                max_abs = if difference.is_nan() { f64::INFINITY } else { max_abs.max(difference) };
            }
            cosines.push(cosine(&row.vector, vector));
        }
        Self {
            max_abs,
            min_cosine: cosines.iter().copied().fold(1.0, f64::min),
            mean_cosine: cosines.iter().sum::<f64>() / cosines.len() as f64,
        }
    }
}

impl Display for Comparison {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { max_abs, min_cosine, mean_cosine } = self;
        write!(f, "max-abs {max_abs:.2e}  cosine min {min_cosine:.9} mean {mean_cosine:.9}")
    }
}

/// Two zero vectors count as equal, a zero against another vector as orthogonal.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |x: &[f32], y: &[f32]| {
        x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>()
    };
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    match norms > 0.0 {
        true => dot(a, b) / norms,
        false if a == b => 1.0,
        false => 0.0,
    }
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}
