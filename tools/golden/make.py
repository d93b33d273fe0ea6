"""Writes tests/golden: tiny random checkpoints with the vectors transformers computes for them.

    pip install -r requirements.txt
    python make.py [--out DIR] [NAME]...

Each folder is an ordinary sentence-transformers (or plain Hugging Face) folder plus

- golden.safetensors: `ids` (i32, packed), `cu_seqlens` (i32), `hidden` (f32 [tokens, d], the last
  hidden state) and `vectors` (f32 [rows, dim], the final output), one sequence at a time;
- reference.jsonl: `{"text", "embedding"}` through SentenceTransformer.encode, default prompt
  included.

The reference arithmetic is f64 (rotary angles f32, as transformers has them), rounded to f32 once
at the end, so a fixture's own error is below the last bit. Output is the same on every run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from sentence_transformers import SentenceTransformer

from checkpoints import random_model
from corpus import TEXTS
from heads import write_head
from variants import VARIANTS, Variant

LENGTHS = (1, 2, 3, 7, 16, 17, 31)


def main() -> None:
    """Writes the named folders, or all that are committed, and the list of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).resolve().parents[2] / "tests/golden"
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("names", nargs="*", metavar="NAME")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - {variant.name for variant in VARIANTS}
    if unknown:
        parser.error(f"no such checkpoint: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    for variant in VARIANTS:
        if variant.name in arguments.names or (not arguments.names and variant.committed):
            write(variant, arguments.out / variant.name)
    (arguments.out / "README.md").write_text(readme(), encoding="utf-8")


def write(variant: Variant, folder: Path) -> None:
    """One checkpoint with its reference values."""
    torch.manual_seed(zlib.crc32((variant.weights_of or variant.name).encode()))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tokenizer = variant.tokenizer()
    config = variant.config(len(tokenizer))
    model = random_model(config)
    model.to(variant.dtype).save_pretrained(folder, max_shard_size=variant.shard_size)
    tokenizer.save_pretrained(folder)
    if variant.head is not None:
        write_head(folder, variant.head, config.hidden_size)
    if variant.edit is not None:
        variant.edit(folder)

    reference = reference_model(folder)
    write_golden(reference, folder, tokenizer)
    write_reference(reference, folder)
    if variant.edit_after is not None:
        variant.edit_after(folder)
    check_invertible(folder, variant)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size < 300_000 or not variant.committed, f"{variant.name}: {size} bytes"
    print(f"{variant.name:24} {size / 1000:6.0f} kB")


def reference_model(folder: Path) -> SentenceTransformer:
    """The folder as sentence-transformers opens it, in f64."""
    model = SentenceTransformer(
        str(folder), device="cpu", model_kwargs={"dtype": torch.float32}, local_files_only=True
    )
    return model.double().eval()


def write_golden(model: SentenceTransformer, folder: Path, tokenizer) -> None:
    """Random sequences from the shortest to the model's maximum, each computed alone."""
    generator = np.random.default_rng(7)
    longest = model.max_seq_length
    rows = [length for length in LENGTHS if length < longest] + [longest]
    sequences = [generator.integers(0, len(tokenizer), length) for length in rows]
    pad = tokenizer.pad_token_id
    # The RoBERTa family gives padding tokens no position of their own; reference.jsonl covers that.
    sequences = [np.where(ids == pad, (pad + 7) % len(tokenizer), ids) for ids in sequences]
    hidden, vectors = [], []
    with torch.no_grad():
        for ids in sequences:
            batch = torch.tensor(ids)[None, :]
            features = {"input_ids": batch, "attention_mask": torch.ones_like(batch)}
            output = model(features)
            hidden.append(output["token_embeddings"][0].float().numpy())
            vectors.append(output["sentence_embedding"][0].float().numpy())
    tensors = {
        "ids": np.concatenate(sequences).astype(np.int32),
        "cu_seqlens": np.cumsum([0, *rows]).astype(np.int32),
        "hidden": np.concatenate(hidden),
        "vectors": np.stack(vectors),
    }
    save_file(tensors, folder / "golden.safetensors")


def write_reference(model: SentenceTransformer, folder: Path) -> None:
    """The texts of corpus.py and one that spells special tokens, through encode."""
    tokenizer = model.tokenizer
    special = f"a {tokenizer.pad_token} b{tokenizer.mask_token}c {tokenizer.sep_token} d"
    texts = [*TEXTS, special]
    embeddings = model.encode(texts, batch_size=8, show_progress_bar=False)
    with (folder / "reference.jsonl").open("w", encoding="utf-8") as file:
        for text, embedding in zip(texts, embeddings, strict=True):
            row = {
                "text": text,
                "embedding": [float(f"{x:.9g}") for x in embedding.astype(np.float32)],
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def check_invertible(folder: Path, variant: Variant) -> None:
    """Where sentence-transformers opens the finished folder, it must still give these vectors."""
    if not variant.opens_in_python:
        return
    rows = [json.loads(line) for line in (folder / "reference.jsonl").open(encoding="utf-8")]
    again = reference_model(folder).encode([row["text"] for row in rows], batch_size=1)
    stored = np.array([row["embedding"] for row in rows])
    error = np.abs(stored - again).max() / np.abs(stored).max()
    assert error < 1e-6, f"{variant.name}: {error}"


def readme() -> str:
    """The list of folders, for whoever reads the tests."""
    lines = [
        "# Golden checkpoints",
        "",
        "Written by `python tools/golden/make.py` (pinned versions beside it); do not edit. Each",
        "folder is an ordinary model folder with random weights, plus `golden.safetensors`",
        "(packed `ids`, `cu_seqlens`, `hidden`, `vectors`) and `reference.jsonl` (`text`,",
        "`embedding`), computed in f64 and rounded to f32. The last text of `reference.jsonl`",
        "spells special tokens. `tokens-*.jsonl` hold token ids of hostile texts and come from",
        "`python tools/golden/tokens.py`.",
        "",
        "| folder | what it is |",
        "|---|---|",
    ]
    lines += [f"| `{variant.name}` | {variant.note} |" for variant in VARIANTS if variant.committed]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
