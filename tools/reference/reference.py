"""Writes the vectors that sentence-transformers gives, as the reference of `fletcher verify`.

    pip install -r requirements.txt
    python reference.py MODEL TEXTS REFERENCE.jsonl [--prompt NAME | --prefix STRING] [--f64] …

MODEL is a model folder or hub id; TEXTS is a file of lines, or of JSON objects with a `text` if its
name ends in .jsonl. Rows of REFERENCE.jsonl are `{"text", "embedding"}`, the prompt not included in
the text: give `fletcher verify` the same --prompt or --prefix.

Texts go through the model one at a time unless --batch says otherwise, so no padding is involved.
Weights are widened to f32, however they are stored.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="model folder or hub id")
    parser.add_argument("texts", type=Path, help="file of lines, or .jsonl with `text`")
    parser.add_argument("reference", type=Path, help="file to write")
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="NAME", help="one of the model's prompts by name")
    prompt.add_argument("--prefix", metavar="STRING", help="a prompt spelled out; empty for none")
    parser.add_argument(
        "--f64", action="store_true", help="compute in f64, round to f32 at the end"
    )
    parser.add_argument("--batch", type=int, default=1, metavar="ROWS", help="rows at a time (1)")
    parser.add_argument("--limit", type=int, metavar="ROWS", help="only the first ROWS texts")
    parser.add_argument("--device", default="cpu", help="torch device (cpu)")
    return parser.parse_args()


def read_texts(path: Path, limit: int | None) -> Iterator[str]:
    """The texts of a file, without their line ends."""
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file):
            if limit is not None and number >= limit:
                return
            line = line.removesuffix("\n")
            yield json.loads(line)["text"] if path.suffix == ".jsonl" else line.removesuffix("\r")


def main() -> None:
    """Embeds the texts and writes them with their vectors."""
    options = arguments()
    model = SentenceTransformer(
        options.model, device=options.device, model_kwargs={"dtype": torch.float32}
    )
    if options.f64:
        model = model.double()
    texts = list(read_texts(options.texts, options.limit))
    vectors = model.encode(
        texts,
        batch_size=options.batch,
        prompt_name=options.prompt,
        prompt=options.prefix,
        show_progress_bar=sys.stderr.isatty(),
    ).astype(np.float32)
    with options.reference.open("w", encoding="utf-8") as file:
        for text, vector in zip(texts, vectors, strict=True):
            # Nine significant digits give back every f32 exactly.
            row = {"text": text, "embedding": [float(f"{value:.9g}") for value in vector]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
