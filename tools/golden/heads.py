"""What sentence-transformers adds to an encoder: modules.json and the folders it names.

Two styles are written: that of sentence-transformers 2 to 5 (`pooling_mode_*` flags), which most
published models have, and that of version 6 (`pooling_mode`, `embedding_dimension`).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

# Key of the flag in 1_Pooling/config.json up to version 5, by the name that version 6 uses.
POOLING_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


@dataclass
class Head:
    """The part of a model after the encoder, and sentence-transformers' text-side settings."""

    pooling: tuple[str, ...] = ("mean",)
    """Pooling modes; their outputs are concatenated."""
    normalize: bool = True
    dense: tuple[int, str, bool] | None = None
    """Output dimension, activation (class name in torch.nn) and bias of a Dense module."""
    max_seq_length: int | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    include_prompt: bool = True
    style: int = 5
    """Major version of sentence-transformers whose file format is written: 5 or 6."""


def write_head(folder: Path, head: Head, hidden: int) -> None:
    """Writes modules.json, the module folders and the two text-side configurations."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    write_json(folder / "1_Pooling/config.json", pooling_config(head, hidden))
    width = hidden * len(head.pooling)
    if head.dense is not None:
        path = f"{len(modules)}_Dense"
        write_dense(folder / path, head.dense, width)
        modules.append((path, "Dense"))
    if head.normalize:
        modules.append((f"{len(modules)}_Normalize", "Normalize"))
    write_json(
        folder / "modules.json",
        [module_entry(i, p, k, head.style) for i, (p, k) in enumerate(modules)],
    )
    if head.max_seq_length is not None:
        write_json(
            folder / "sentence_bert_config.json",
            {"max_seq_length": head.max_seq_length, "do_lower_case": False},
        )
    versions = {
        "sentence_transformers": f"{head.style}.0.0",
        "transformers": "5.23.0",
        "pytorch": "2.15.0",
    }
    settings: dict = {"__version__": versions}
    if head.prompts:
        settings |= {"prompts": head.prompts, "default_prompt_name": head.default_prompt_name}
    settings["similarity_fn_name"] = "cosine"
    write_json(folder / "config_sentence_transformers.json", settings)


def pooling_config(head: Head, hidden: int) -> dict:
    """1_Pooling/config.json in the style of the head."""
    if head.style >= 6:
        mode = head.pooling[0] if len(head.pooling) == 1 else list(head.pooling)
        return {
            "embedding_dimension": hidden,
            "pooling_mode": mode,
            "include_prompt": head.include_prompt,
        }
    flags = {flag: mode in head.pooling for mode, flag in POOLING_FLAGS.items()}
    return {"word_embedding_dimension": hidden, **flags, "include_prompt": head.include_prompt}


def module_entry(index: int, path: str, kind: str, style: int) -> dict:
    """One row of modules.json."""
    package = "sentence_transformers.models"
    if style >= 6:
        package = (
            "sentence_transformers.sentence_transformer.modules"
            if kind == "Pooling"
            else "sentence_transformers.base.modules"
        )
        package += "." + kind.lower()
    return {"idx": index, "name": str(index), "path": path, "type": f"{package}.{kind}"}


def write_dense(folder: Path, dense: tuple[int, str, bool], width: int) -> None:
    """A Dense module with random weights."""
    out, activation, bias = dense
    folder.mkdir(parents=True, exist_ok=True)
    activations = {"Tanh": "activation.Tanh", "Identity": "linear.Identity"}
    write_json(
        folder / "config.json",
        {
            "in_features": width,
            "out_features": out,
            "bias": bias,
            "activation_function": f"torch.nn.modules.{activations[activation]}",
        },
    )
    tensors = {"linear.weight": torch.randn(out, width) * (1.2 / math.sqrt(width))}
    if bias:
        tensors["linear.bias"] = torch.randn(out) * 0.2
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def write_json(path: Path, value) -> None:
    """Writes indented UTF-8 JSON, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
