//! What an encoder *is*, as data: the closed axes along which encoder architectures differ.
//!
//! An architecture (`architectures/`) turns a `config.json` into an [`EncoderSpec`]; the one
//! forward pass (`encoder.rs`) and every backend branch on these properties and never on a name.
//! An axis is added only when a second architecture needs it.

/// Limits on what a `config.json` may ask for, so that an absurd file is refused before anything
/// is allocated. They are far above every published encoder.
pub mod limits {
    /// Most layers.
    pub const LAYERS: usize = 512;
    /// Widest hidden or intermediate size.
    pub const WIDTH: usize = 1 << 17;
    /// Largest vocabulary.
    pub const VOCABULARY: usize = 1 << 24;
    /// Longest sequence in tokens.
    pub const POSITIONS: usize = 1 << 20;
    /// Largest rotary table, in positions times columns of a head: 131,072 tokens of 512 columns.
    pub const ROTARY_VALUES: usize = 1 << 26;
}

/// Everything that the forward pass needs to know about a model besides its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderSpec {
    /// Rows of the word-embedding table.
    pub vocabulary: usize,
    /// Width of a token's hidden state.
    pub hidden: usize,
    /// Attention heads; each attends over `head_dim` of the `heads * head_dim` columns.
    pub heads: usize,
    /// Columns of one head; `hidden / heads` in every architecture so far.
    pub head_dim: usize,
    /// Width of the feed-forward network after its activation.
    pub intermediate: usize,
    /// One entry per layer, first to last.
    pub layers: Vec<LayerSpec>,
    /// Longest sequence, in tokens and with the special ones, that the positions allow.
    pub max_tokens: usize,
    /// How a token learns where it stands.
    pub position: Position,
    /// Whether the embedding adds a token-type row (always row 0: one segment).
    pub token_types: bool,
    /// The kind of normalisation and where it stands.
    pub norm: NormSpec,
    /// The feed-forward network.
    pub feed_forward: FeedForward,
    /// Which linear layers and norms carry a bias.
    pub biases: Biases,
}

/// What differs from layer to layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerSpec {
    /// A token sees the tokens at most this far away on either side; `None`: all of its sequence.
    pub window: Option<usize>,
    /// Base of the rotary frequencies; read only with [`Position::Rotary`].
    pub rotary_theta: f64,
    /// Whether a norm stands before attention in a pre-norm model (ModernBERT's first layer has
    /// none, because its embedding is normalised already).
    pub attention_norm: bool,
}

/// How a token learns where it stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Position {
    /// A learned table; the token at place `i` of its sequence reads row `i + offset`, with
    /// RoBERTa's exception told at [`learned_rows`].
    Learned {
        /// Row of a sequence's first token.
        offset: usize,
    },
    /// Rotary embedding of the whole head, halves rotated against each other (Su et al. 2021).
    Rotary,
    /// A learned bias per head and bucketed distance, added to the attention scores and shared by
    /// all layers, beside a learned table with `offset` (MPNet; buckets as in T5).
    RelativeBuckets {
        /// Row of a sequence's first token in the learned table.
        offset: usize,
        /// Rows of the bias table.
        buckets: usize,
        /// Distance from which on all share the last bucket.
        max_distance: usize,
    },
}

/// The kind of normalisation and where it stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormSpec {
    /// Added to the variance.
    pub eps: f64,
    /// Before each block with a final norm, or after each block's residual sum.
    pub placement: NormPlacement,
}

/// Where a layer normalises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormPlacement {
    /// `h + block(norm(h))`, and a norm at the very end.
    Pre,
    /// `norm(h + block(h))`.
    Post,
}

/// The feed-forward network between its two projections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeedForward {
    /// `act(gate(x)) * up(x)` instead of `act(up(x))`.
    pub gated: bool,
    /// Applied element by element.
    pub activation: Activation,
}

/// An element-wise function. A name is a promise: none of these is computed by another's formula.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x/2 * (1 + erf(x/sqrt 2))`: exact GELU.
    GeluErf,
    /// GELU's tanh approximation, for checkpoints that were trained with it.
    GeluTanh,
    /// `x * sigmoid(x)`.
    Silu,
    /// `max(x, 0)`.
    Relu,
    /// `tanh(x)`.
    Tanh,
    /// `x`.
    Identity,
}

/// Which parameters come with a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Biases {
    /// Query, key, value and output projections.
    pub attention: bool,
    /// Both projections of the feed-forward network.
    pub feed_forward: bool,
    /// The norms.
    pub norm: bool,
}

impl EncoderSpec {
    /// Columns of the fused query/key/value projection.
    pub fn qkv_width(&self) -> usize {
        3 * self.heads * self.head_dim
    }

    /// Columns of the attention's output before its projection.
    pub fn context_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Floating-point operations (a multiply-add is two) to encode one sequence of `tokens`.
    pub fn flops(&self, tokens: usize) -> f64 {
        let layers = self.layers.iter();
        layers.map(|layer| self.layer_flops(layer, tokens, tokens)).sum()
    }

    /// The same when the last state of one token is all that is wanted: of the last layer, the
    /// others take part with keys and values alone.
    pub fn flops_of_one(&self, tokens: usize) -> f64 {
        let Some(last) = self.layers.last() else { return 0.0 };
        self.flops(tokens) - self.layer_flops(last, tokens, tokens)
            + self.layer_flops(last, tokens, 1)
    }

    /// Of a layer, when so many of the tokens ask.
    fn layer_flops(&self, layer: &LayerSpec, tokens: usize, queries: usize) -> f64 {
        let (t, q) = (tokens as f64, queries as f64);
        let (d, i) = (self.hidden as f64, self.intermediate as f64);
        let up = if self.feed_forward.gated { 2.0 } else { 1.0 };
        let context = self.context_width() as f64;
        let seen = layer.window.map_or(t, |w| t.min(2.0 * w as f64 + 1.0));
        let keys_values = t * 2.0 * d * context;
        2.0 * (keys_values + q * (2.0 * d * context + (up + 1.0) * d * i + 2.0 * seen * context))
    }
}

/// The rows of a learned position table that a sequence reads.
///
/// Where counting starts behind a padding index (`offset - 1`), that index is also the padding
/// token's id, and the reference neither counts such a token nor gives it a place: a text that
/// spells `<pad>` out shifts all that follows.
pub fn learned_rows(ids: &[u32], offset: usize) -> impl Iterator<Item = usize> {
    let padding = offset.checked_sub(1);
    let mut next = offset;
    ids.iter().map(move |&id| {
        if padding == Some(id as usize) {
            return id as usize;
        }
        next += 1;
        next - 1
    })
}

/// Cosine and sine of every rotary angle: `positions x head_dim / 2` pairs.
///
/// Frequencies and angles are rounded to f32 on the way exactly where `transformers` rounds them:
/// at position 8,000 that rounding moves an angle by up to 2e-4, so a table of "better" angles
/// would give other vectors than the model was trained with. Every backend uses this table.
pub fn rotary_table(theta: f64, head_dim: usize, positions: usize) -> Vec<(f32, f32)> {
    let half = head_dim / 2;
    let frequencies: Vec<f32> = (0..half)
        .map(|i| {
            let exponent = (2 * i) as f32 / head_dim as f32;
            1.0 / theta.powf(f64::from(exponent)) as f32
        })
        .collect();
    (0..positions * half)
        .map(|at| (at / half) as f32 * frequencies[at % half])
        .map(|angle| (f64::from(angle).cos() as f32, f64::from(angle).sin() as f32))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The headline shape needs 54.5 MFLOP for 64 tokens, the figure that the benchmarks quote.
    #[test]
    fn bert_tiny_flops() {
        let layer = LayerSpec { window: None, rotary_theta: 0.0, attention_norm: true };
        let spec = EncoderSpec {
            vocabulary: 30522,
            hidden: 128,
            heads: 2,
            head_dim: 64,
            intermediate: 512,
            layers: vec![layer; 2],
            max_tokens: 512,
            position: Position::Learned { offset: 0 },
            token_types: true,
            norm: NormSpec { eps: 1e-12, placement: NormPlacement::Post },
            feed_forward: FeedForward { gated: false, activation: Activation::GeluErf },
            biases: Biases { attention: true, feed_forward: true, norm: true },
        };
        assert!((spec.flops(64) / 1e6 - 54.5).abs() < 0.1, "{}", spec.flops(64));
        // One layer whole; of the other keys and values, 32,768 multiply-adds a token.
        let one = spec.flops_of_one(64) / 1e6;
        assert!((one - (27.3 + 4.2 + 0.4)).abs() < 0.1, "{one}");
    }
}
