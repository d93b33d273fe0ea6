"""The table of golden checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import BertConfig, PretrainedConfig

import tiny_tokenizers
from heads import Head


@dataclass
class Variant:
    """One folder of tests/golden."""

    name: str
    note: str
    tokenizer: Callable
    config: Callable[[int], PretrainedConfig]
    """From the tokenizer's vocabulary size."""
    head: Head | None = None
    """None: a plain Hugging Face folder without modules.json."""
    dtype: torch.dtype = torch.float32
    shard_size: str = "1GB"
    edit: Callable[[Path], None] | None = None
    """Rewrites the folder before the reference is computed from it."""
    edit_after: Callable[[Path], None] | None = None
    """Rewrites the folder, after the reference was computed, into an equivalent other form."""
    weights_of: str | None = None
    """Name of the variant with the same weights."""
    opens_in_python: bool = True
    committed: bool = True


def bert(**keys) -> Callable[[int], BertConfig]:
    """BERT with two layers of two heads, 32 wide; `keys` override."""
    defaults = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    }
    return lambda vocab: BertConfig(vocab_size=vocab, **(defaults | keys))


VARIANTS = [
    Variant(
        name="bert",
        note="BERT, mean pooling, normalised",
        tokenizer=lambda: tiny_tokenizers.bert(512, model_max_length=64),
        config=bert(),
        head=Head(max_seq_length=64),
    ),
]
