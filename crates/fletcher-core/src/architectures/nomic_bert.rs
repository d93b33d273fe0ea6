//! NomicBERT v1 and v1.5 (Nussbaum et al. 2024, arXiv:2402.01613).
//!
//! Differs from BERT by rotary positions, a SwiGLU feed-forward network and the lack of biases in
//! its matrices. Checkpoints come under two namings: the original one, with GPT-2's configuration
//! keys (`n_embd`, `rotary_emb_base`), and that of `transformers` 5 (`modeling_nomic_bert.py`).

use serde_json::{Value, json};

use super::Architecture;
use crate::config::Config;
use crate::error::ModelError;
use crate::names::{AttentionNames, FeedForwardNames, LayerNames, TensorNames};
use crate::spec::{
    Activation, Biases, EncoderSpec, FeedForward, LayerSpec, NormPlacement, NormSpec, Position,
    limits,
};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "NomicBERT",
    model_types: &["nomic_bert"],
    parse,
    names: &[NATIVE, ORIGINAL],
};

fn parse(config: &Config) -> Result<EncoderSpec, ModelError> {
    let original = config.get("n_embd").is_some();
    refuse_variants(config)?;
    let hidden = config.size(&["n_embd", "hidden_size"], limits::WIDTH)?;
    let heads = config.size(&["n_head", "num_attention_heads"], limits::WIDTH)?;
    let layers = config.size(&["n_layer", "num_hidden_layers"], limits::LAYERS)?;
    let rotary_theta = match config.object("rope_parameters") {
        Some(rope) => default_rotary(&rope, 1000.0)?,
        None => config.positive_or("rotary_emb_base", if original { 10_000.0 } else { 1000.0 })?,
    };
    let activation = match config.text("activation_function")? {
        Some("swiglu") => Activation::Silu,
        Some("geglu") => Activation::GeluErf,
        Some(_) => return Err(config.bad("activation_function", "swiglu or geglu")),
        None => config.activation("hidden_act", Activation::Silu)?,
    };
    let eps_key = if original { "layer_norm_epsilon" } else { "layer_norm_eps" };
    let eps = config.positive_or(eps_key, if original { 1e-5 } else { 1e-12 })?;
    let layer = LayerSpec { window: None, rotary_theta, attention_norm: true };
    Ok(EncoderSpec {
        vocabulary: config.vocabulary()?,
        hidden,
        heads,
        head_dim: config.head_dim("num_attention_heads", hidden, heads)?,
        intermediate: config.size(&["n_inner", "intermediate_size"], limits::WIDTH)?,
        layers: vec![layer; layers],
        max_tokens: config.size(&["n_positions", "max_position_embeddings"], limits::POSITIONS)?,
        position: Position::Rotary,
        token_types: config.count_or("type_vocab_size", 2, limits::VOCABULARY)? > 0,
        norm: NormSpec { eps, placement: NormPlacement::Post },
        feed_forward: FeedForward { gated: true, activation },
        biases: Biases { attention: false, feed_forward: false, norm: true },
    })
}

/// The original configuration has switches for networks that no published checkpoint is.
fn refuse_variants(config: &Config) -> Result<(), ModelError> {
    let fixed: [(&str, Value); 10] = [
        ("prenorm", json!(false)),
        ("parallel_block", json!(false)),
        ("causal", json!(false)),
        ("use_rms_norm", json!(false)),
        ("qkv_proj_bias", json!(false)),
        ("mlp_fc1_bias", json!(false)),
        ("mlp_fc2_bias", json!(false)),
        ("rotary_emb_interleaved", json!(false)),
        ("num_experts", json!(0)),
        ("scale_attn_by_inverse_layer_idx", json!(false)),
    ];
    for (key, value) in &fixed {
        config.only(key, value)?;
    }
    for (key, expected) in [("rotary_emb_fraction", 1.0), ("rotary_scaling_factor", 1.0)] {
        if config.positive_or(key, expected)? != expected {
            return Err(config.bad(key, format!("{expected} or absent")));
        }
    }
    match config.get("rotary_emb_scale_base") {
        Some(_) => Err(config.bad("rotary_emb_scale_base", "absent")),
        None => Ok(()),
    }
}

/// The base of plain rotary parameters; scaled ones would silently compute something else.
pub(super) fn default_rotary(rope: &Config, default: f64) -> Result<f64, ModelError> {
    rope.only("rope_type", &json!("default"))?;
    if rope.positive_or("partial_rotary_factor", 1.0)? != 1.0 {
        return Err(rope.bad("partial_rotary_factor", "1 or absent"));
    }
    rope.positive_or("rope_theta", default)
}

const ORIGINAL: TensorNames = TensorNames {
    word: "embeddings.word_embeddings",
    position: None,
    token_type: Some("embeddings.token_type_embeddings"),
    embedding_norm: "emb_ln",
    relative_bias: None,
    final_norm: None,
    layer: LayerNames {
        attention: AttentionNames::Fused { qkv: "encoder.layers.{i}.attn.Wqkv" },
        attention_out: "encoder.layers.{i}.attn.out_proj",
        attention_norm: "encoder.layers.{i}.norm1",
        // fc12 is the gate: y = fc11(x) * act(fc12(x)).
        feed_forward: FeedForwardNames::GateAndUp {
            gate: "encoder.layers.{i}.mlp.fc12",
            up: "encoder.layers.{i}.mlp.fc11",
        },
        down: "encoder.layers.{i}.mlp.fc2",
        feed_forward_norm: "encoder.layers.{i}.norm2",
    },
};

const NATIVE: TensorNames = TensorNames {
    word: "embeddings.word_embeddings",
    position: None,
    token_type: Some("embeddings.token_type_embeddings"),
    embedding_norm: "embeddings.LayerNorm",
    relative_bias: None,
    final_norm: None,
    layer: LayerNames {
        attention: AttentionNames::Split {
            query: "layers.{i}.self_attn.q_proj",
            key: "layers.{i}.self_attn.k_proj",
            value: "layers.{i}.self_attn.v_proj",
        },
        attention_out: "layers.{i}.self_attn.o_proj",
        attention_norm: "layers.{i}.post_attention_layernorm",
        feed_forward: FeedForwardNames::GateAndUp {
            gate: "layers.{i}.mlp.gate_proj",
            up: "layers.{i}.mlp.up_proj",
        },
        down: "layers.{i}.mlp.down_proj",
        feed_forward_norm: "layers.{i}.post_mlp_layernorm",
    },
};
