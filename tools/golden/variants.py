"""The table of golden checkpoints."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    BertConfig,
    CamembertConfig,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    NomicBertConfig,
    PretrainedConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

import charsmap
import checkpoints
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


# The shape that most variants share: two layers of two heads, 32 wide, at most 64 positions.
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}

# Half as wide: the variants that are about pooling, storage or settings rather than arithmetic.
SMALL = SHAPE | {"hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 40}

# Positions of the RoBERTa family start after the padding id, so its tables have two more rows.
ROBERTA = SHAPE | {"max_position_embeddings": 66, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
ROBERTA |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}


def config(kind: type[PretrainedConfig], shape: dict, **keys) -> Callable[[int], PretrainedConfig]:
    """A configuration that still lacks the size of the vocabulary."""
    return lambda vocab: kind(**({"vocab_size": vocab} | shape | keys))


def small_bert(name: str, note: str, **fields) -> Variant:
    """A 16-wide BERT that shares its weights with the others of its kind."""
    defaults = {
        "tokenizer": lambda: tiny_tokenizers.bert(200, model_max_length=40),
        "config": config(BertConfig, SMALL),
        "head": Head(),
        "weights_of": "bert-cls",
    }
    return Variant(name=name, note=note, **(defaults | fields))


def legacy_bert(folder: Path) -> None:
    """Leaves what a checkpoint of 2018 has: old tensor names and vocab.txt."""
    checkpoints.rewrite_tensors(folder, checkpoints.masked_lm_of_2018)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece, _ in vocab), encoding="utf-8")
    (folder / "tokenizer.json").unlink()
    settings = {"do_lower_case": True, "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings) + "\n", encoding="utf-8")

    def keys_of_2018(config: dict) -> dict:
        kept = ("hidden_act", "hidden_size", "initializer_range", "intermediate_size", "vocab_size")
        kept += ("max_position_embeddings", "num_attention_heads", "num_hidden_layers")
        kept += ("type_vocab_size",)
        old = {"architectures": ["BertForMaskedLM"], "model_type": "bert"}
        return old | {key: config[key] for key in kept}

    checkpoints.rewrite_json(folder / "config.json", keys_of_2018)


def fixed_padding(folder: Path) -> None:
    """tokenizer.json asks for 12 tokens, padded or cut; sentence_bert_config.json says 24.

    Published MiniLM folders have this contradiction, and sentence_bert_config.json wins.
    """

    def pad(tokenizer: dict) -> dict:
        tokenizer["truncation"] = {
            "direction": "Right",
            "max_length": 12,
            "strategy": "LongestFirst",
            "stride": 0,
        }
        tokenizer["padding"] = {
            "strategy": {"Fixed": 12},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        }
        return tokenizer

    checkpoints.rewrite_json(folder / "tokenizer.json", pad)


def nomic_original(folder: Path) -> None:
    """The same model under the tensor names and keys of nomic-embed-text-v1.5."""
    checkpoints.rewrite_tensors(folder, checkpoints.nomic_original_tensors)
    checkpoints.rewrite_json(folder / "config.json", checkpoints.nomic_original_config)


def modernbert_4(folder: Path) -> None:
    """The same configuration under the keys of transformers 4."""
    checkpoints.rewrite_json(
        folder / "config.json", checkpoints.modernbert_config_of_transformers_4
    )


def modernbert_config(vocab: int, width: int = 32) -> ModernBertConfig:
    """Four layers; in the local ones a token sees four neighbours on each side."""
    shape = SHAPE | {"num_hidden_layers": 4, "max_position_embeddings": 100}
    shape |= {"hidden_size": width, "intermediate_size": 2 * width - 8}
    special = {"bos_token_id": vocab - 4, "cls_token_id": vocab - 4, "eos_token_id": vocab - 3}
    special |= {"sep_token_id": vocab - 3, "pad_token_id": vocab - 2}
    return ModernBertConfig(
        vocab_size=vocab,
        **shape,
        **special,
        local_attention=8,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 160000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    )


NOMIC = SHAPE | {
    "max_position_embeddings": 96,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
}
NOMIC_PROMPTS = {"search_query": "search_query: ", "search_document": "search_document: "}
NOMIC_TOKENIZER = functools.partial(tiny_tokenizers.bert, 300, model_max_length=96)

VARIANTS = [
    Variant(
        name="bert",
        note="BERT, mean pooling, normalised",
        tokenizer=lambda: tiny_tokenizers.bert(512, model_max_length=64),
        config=config(BertConfig, SHAPE),
        head=Head(max_seq_length=64),
    ),
    Variant(
        name="bert-head26",
        note="BERT with head size 26 (as hidden 312 with 12 heads) and an odd intermediate size",
        tokenizer=lambda: tiny_tokenizers.bert(200, model_max_length=50),
        config=config(
            BertConfig,
            SHAPE,
            hidden_size=52,
            intermediate_size=71,
            max_position_embeddings=50,
        ),
        head=Head(),
    ),
    Variant(
        name="bert-312",
        note="BERT with hidden 312 and 12 heads; too large to commit, written on demand",
        tokenizer=lambda: tiny_tokenizers.bert(200, model_max_length=50),
        config=config(
            BertConfig,
            SHAPE,
            hidden_size=312,
            num_attention_heads=12,
            intermediate_size=1200,
            max_position_embeddings=50,
        ),
        head=Head(),
        committed=False,
    ),
    Variant(
        name="bert-legacy",
        note="BERT as a plain folder of 2018: `bert.` prefix, LayerNorm gamma/beta, MLM head, "
        "no pooler, vocab.txt, no modules.json (mean pooling, not normalised), no layer_norm_eps",
        tokenizer=lambda: tiny_tokenizers.bert(300, model_max_length=64),
        config=config(BertConfig, SHAPE),
        edit=legacy_bert,
    ),
    Variant(
        name="roberta",
        note="RoBERTa: byte-level BPE, positions offset by the padding id, version-6 modules.json",
        tokenizer=lambda: tiny_tokenizers.roberta(model_max_length=64),
        config=config(RobertaConfig, ROBERTA),
        head=Head(style=6),
    ),
    Variant(
        name="xlm-roberta",
        note="XLM-RoBERTa: Unigram with Metaspace after a SentencePiece map, cls pooling",
        tokenizer=lambda: tiny_tokenizers.xlm_roberta(320, charsmap.tiny(), model_max_length=64),
        config=config(XLMRobertaConfig, ROBERTA),
        head=Head(pooling=("cls",)),
    ),
    Variant(
        name="camembert",
        note="CamemBERT: Unigram with CamemBERT's control symbols",
        tokenizer=lambda: tiny_tokenizers.camembert(320, model_max_length=64),
        config=config(CamembertConfig, ROBERTA, bos_token_id=5, eos_token_id=6),
        head=Head(normalize=False),
    ),
    Variant(
        name="distilbert",
        note="DistilBERT: its own tensor names and config keys, no token types, cls pooling",
        tokenizer=lambda: tiny_tokenizers.bert(300, model_max_length=64),
        config=lambda vocab: DistilBertConfig(
            vocab_size=vocab,
            dim=32,
            hidden_dim=64,
            n_layers=3,
            n_heads=4,
            max_position_embeddings=64,
        ),
        head=Head(pooling=("cls",), max_seq_length=48),
    ),
    Variant(
        name="electra",
        note="ELECTRA: BERT's encoder with embeddings as wide as the hidden states",
        tokenizer=lambda: tiny_tokenizers.bert(300, model_max_length=64),
        config=config(ElectraConfig, SHAPE, embedding_size=32),
        head=Head(),
    ),
    Variant(
        name="mpnet",
        note="MPNet: relative position buckets beside learned positions",
        tokenizer=lambda: tiny_tokenizers.mpnet(model_max_length=128),
        config=config(
            MPNetConfig,
            ROBERTA,
            max_position_embeddings=130,
            relative_attention_num_buckets=32,
            num_attention_heads=4,
        ),
        head=Head(max_seq_length=128),
    ),
    Variant(
        name="nomic-native",
        note="NomicBERT under transformers' own names; vocabulary table padded to 320 rows; "
        "`default_prompt_name` set",
        tokenizer=NOMIC_TOKENIZER,
        config=config(NomicBertConfig, NOMIC, vocab_size=320),
        head=Head(prompts=NOMIC_PROMPTS, default_prompt_name="search_document", style=6),
    ),
    Variant(
        name="nomic-original",
        note="The same weights under the GPT-2-style keys and fused tensors of "
        "nomic-embed-text-v1.5; prompts, no default",
        tokenizer=NOMIC_TOKENIZER,
        config=config(NomicBertConfig, NOMIC, vocab_size=320),
        head=Head(prompts=NOMIC_PROMPTS),
        weights_of="nomic-native",
        edit_after=nomic_original,
        opens_in_python=False,
    ),
    Variant(
        name="modernbert",
        note="ModernBERT: pre-norm, GeGLU, two rotary thetas, windows of 8 in two of four layers",
        tokenizer=lambda: tiny_tokenizers.modernbert(model_max_length=100),
        config=modernbert_config,
        head=Head(),
    ),
    Variant(
        name="modernbert-4",
        note="ModernBERT, 16 wide, under the configuration keys of transformers 4; cls pooling",
        tokenizer=lambda: tiny_tokenizers.modernbert(model_max_length=100),
        config=lambda vocab: modernbert_config(vocab, width=16),
        head=Head(pooling=("cls",)),
        edit_after=modernbert_4,
    ),
    small_bert(
        "bert-cls",
        "cls pooling",
        head=Head(pooling=("cls",)),
    ),
    small_bert(
        "bert-max",
        "max pooling, not normalised",
        head=Head(pooling=("max",), normalize=False),
    ),
    small_bert(
        "bert-last",
        "last-token pooling",
        head=Head(pooling=("lasttoken",)),
    ),
    small_bert(
        "bert-sqrt-len",
        "mean_sqrt_len pooling, not normalised",
        head=Head(pooling=("mean_sqrt_len_tokens",), normalize=False),
    ),
    small_bert(
        "bert-weighted",
        "weightedmean pooling",
        head=Head(pooling=("weightedmean",)),
    ),
    small_bert(
        "bert-max-mean",
        "max and mean, concatenated in sentence-transformers' own order",
        head=Head(pooling=("max", "mean")),
    ),
    small_bert(
        "bert-mean-cls",
        "mean and cls, concatenated in the order that version 6 lists",
        head=Head(pooling=("mean", "cls"), style=6),
    ),
    small_bert(
        "bert-dense",
        "Dense module, 16 → 24, tanh, bias",
        head=Head(dense=(24, "Tanh", True)),
    ),
    small_bert(
        "bert-dense-linear",
        "Dense module, 32 → 8, no activation, no bias, after max and mean",
        head=Head(pooling=("max", "mean"), dense=(8, "Identity", False), style=6),
    ),
    small_bert(
        "bert-f16",
        "weights stored as F16",
        dtype=torch.float16,
    ),
    small_bert(
        "bert-bf16",
        "weights stored as BF16",
        dtype=torch.bfloat16,
    ),
    small_bert(
        "bert-sharded",
        "weights in shards with an index",
        shard_size="12KB",
    ),
    small_bert(
        "bert-fixed-padding",
        "tokenizer.json pads and truncates to 12, sentence_bert_config.json says 24",
        head=Head(max_seq_length=24),
        edit=fixed_padding,
    ),
    small_bert(
        "bert-left",
        "truncation from the left",
        tokenizer=lambda: tiny_tokenizers.bert(200, model_max_length=24, truncation_side="left"),
    ),
    small_bert(
        "bert-prompt",
        "default prompt, left out of the pooling (include_prompt false)",
        head=Head(
            prompts={"query": "the question: ", "passage": ""},
            default_prompt_name="query",
            include_prompt=False,
        ),
    ),
    small_bert(
        "bert-cased",
        "case and accents kept (do_lower_case false), relu",
        tokenizer=lambda: tiny_tokenizers.bert(200, lowercase=False, model_max_length=40),
        config=config(BertConfig, SMALL, hidden_act="relu"),
        weights_of=None,
    ),
]
