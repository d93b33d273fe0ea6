"""Tiny random encoders of each architecture, in the forms that checkpoints in the wild have.

Every parameter gets a value that matters: norms are not the identity, biases are not zero,
attention is not uniform. A forward pass that skips or swaps anything gives visibly different vectors.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, PretrainedConfig, PreTrainedModel


def random_model(config: PretrainedConfig) -> PreTrainedModel:
    """The architecture of `config` in f32, with random parameters from torch's global generator."""
    model = AutoModel.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            parameter.copy_(random_parameter(name, parameter.shape))
    return model


def random_parameter(name: str, shape: torch.Size) -> torch.Tensor:
    """Norm weights around one, biases around zero, matrices that keep the variance."""
    noise = torch.randn(shape)
    if len(shape) == 1:
        return noise * 0.2 + (1.0 if name.endswith("weight") else 0.0)
    if "embeddings" in name or "tok_embeddings" in name:
        return noise * 0.5
    if "relative_attention_bias" in name:
        return noise
    return noise * (1.2 / math.sqrt(shape[1]))


def rewrite_tensors(folder: Path, rewrite) -> None:
    """Replaces `model.safetensors` by what `rewrite` makes of its dictionary."""
    path = folder / "model.safetensors"
    tensors = {name: tensor.contiguous() for name, tensor in rewrite(load_file(path)).items()}
    save_file(dict(sorted(tensors.items())), path, metadata={"format": "pt"})


def rewrite_json(path: Path, rewrite) -> None:
    """Replaces a JSON object by what `rewrite` makes of it."""
    value = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(
        json.dumps(rewrite(value), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def masked_lm_of_2018(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """BERT as the first PyTorch ports saved it: a `bert.` prefix, LayerNorm `gamma` and `beta`, the
    masked-language-model head, the position ids, no pooler."""
    hidden = tensors["embeddings.word_embeddings.weight"].shape[1]
    vocab = tensors["embeddings.word_embeddings.weight"].shape[0]
    positions = tensors["embeddings.position_embeddings.weight"].shape[0]
    old = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): t
        for name, t in tensors.items()
        if not name.startswith("pooler.")
    }
    old["bert.embeddings.position_ids"] = torch.arange(positions)[None, :]
    old["cls.predictions.bias"] = torch.randn(vocab)
    old["cls.predictions.transform.dense.weight"] = torch.randn(hidden, hidden)
    old["cls.predictions.transform.dense.bias"] = torch.randn(hidden)
    old["cls.predictions.transform.LayerNorm.gamma"] = torch.randn(hidden)
    old["cls.predictions.transform.LayerNorm.beta"] = torch.randn(hidden)
    return old


def nomic_original_tensors(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """NomicBERT as nomic-embed-text-v1.5 has it: fused Wqkv, fc11 (value), fc12 (gate), emb_ln."""
    names = {
        "embeddings.LayerNorm": "emb_ln",
        "self_attn.o_proj": "attn.out_proj",
        "mlp.up_proj": "mlp.fc11",
        "mlp.gate_proj": "mlp.fc12",
        "mlp.down_proj": "mlp.fc2",
        "post_attention_layernorm": "norm1",
        "post_mlp_layernorm": "norm2",
    }
    original: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if "self_attn.k_proj" in name or "self_attn.v_proj" in name:
            continue
        if "self_attn.q_proj" in name:
            parts = [
                tensors[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")
            ]
            tensor, name = torch.cat(parts), name.replace("self_attn.q_proj", "attn.Wqkv")
        for new, old in names.items():
            name = name.replace(new, old)
        original[("encoder." if name.startswith("layers.") else "") + name] = tensor
    return original


def nomic_original_config(native: dict) -> dict:
    """The GPT-2-style keys of nomic-embed-text-v1.5's config.json."""
    return {
        "activation_function": "swiglu",
        "architectures": ["NomicBertModel"],
        "attn_pdrop": 0.0,
        "causal": False,
        "dense_seq_output": True,
        "embd_pdrop": 0.0,
        "fused_bias_fc": True,
        "fused_dropout_add_ln": True,
        "initializer_range": 0.02,
        "layer_norm_epsilon": native["layer_norm_eps"],
        "max_trained_positions": native["max_position_embeddings"],
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "model_type": "nomic_bert",
        "n_embd": native["hidden_size"],
        "n_head": native["num_attention_heads"],
        "n_inner": native["intermediate_size"],
        "n_layer": native["num_hidden_layers"],
        "n_positions": native["max_position_embeddings"],
        "pad_vocab_size_multiple": 64,
        "parallel_block": False,
        "parallel_block_tied_norm": False,
        "prenorm": False,
        "qkv_proj_bias": False,
        "resid_pdrop": 0.0,
        "rotary_emb_base": native["rope_parameters"]["rope_theta"],
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "rotary_scaling_factor": None,
        "scale_attn_by_inverse_layer_idx": False,
        "scale_attn_weights": True,
        "torch_dtype": "float32",
        "transformers_version": "4.37.2",
        "type_vocab_size": native["type_vocab_size"],
        "use_cache": True,
        "use_flash_attn": True,
        "use_rms_norm": False,
        "vocab_size": native["vocab_size"],
    }


def modernbert_config_of_transformers_4(config: dict) -> dict:
    """ModernBERT-base's own keys: two thetas and a period, no rope_parameters or layer_types."""
    rope = config.pop("rope_parameters")
    config["global_rope_theta"] = rope["full_attention"]["rope_theta"]
    config["local_rope_theta"] = rope["sliding_attention"]["rope_theta"]
    kinds = config.pop("layer_types")
    config["global_attn_every_n_layers"] = kinds.index("full_attention", 1)
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.47.0.dev0"
    return config
