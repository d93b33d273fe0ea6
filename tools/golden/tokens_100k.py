"""Writes Python's token ids of many texts, to compare with Fletcher's on demand.

    python tokens_100k.py MODEL CORPUS.txt IDS.jsonl [--count 100000] [--seed 7]
    cargo run --release -p fletcher-core --example compare_tokens -- MODEL IDS.jsonl

Half of the texts are lines of the corpus as they are or joined to a few hundred words; the others
are such lines with hostile characters put in, pieces of the hostile texts of tokens.py glued
together, and random code points. Rows are `{"text", "ids", "cut"}`, `cut` under truncation to
CUT tokens.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

from transformers import AutoTokenizer

from tokens import HOSTILE

CUT = 64
BATCH = 1000

# First and last code point of the blocks that random texts draw from.
BLOCKS = [
    (0x0000, 0x007F),
    (0x0080, 0x00FF),
    (0x0100, 0x024F),
    (0x0300, 0x036F),
    (0x0370, 0x03FF),
    (0x0400, 0x052F),
    (0x0590, 0x06FF),
    (0x0900, 0x0DFF),
    (0x0E00, 0x0FFF),
    (0x1000, 0x11FF),
    (0x1E00, 0x1FFF),
    (0x2000, 0x206F),
    (0x2070, 0x27BF),
    (0x2E80, 0x30FF),
    (0x3400, 0x9FFF),
    (0xA000, 0xABFF),
    (0xAC00, 0xD7A3),
    (0xE000, 0xFFFF),
    (0x10000, 0x1FFFF),
    (0x1F000, 0x1FAFF),
    (0x20000, 0x2FFFF),
    (0xE0000, 0xE01EF),
    (0x100000, 0x10FFFF),
]


def random_text(generator: random.Random) -> str:
    """Code points of a few blocks, now and then a space."""
    blocks = generator.choices(BLOCKS, k=generator.randint(1, 3))
    points = [
        0x20 if generator.random() < 0.15 else generator.randint(*generator.choice(blocks))
        for _ in range(generator.randint(1, 80))
    ]
    return "".join(chr(point) for point in points)


def disturbed(generator: random.Random, text: str, specials: list[str]) -> str:
    """A line with odd characters, special tokens or changes of case put in."""
    characters = list(text)
    for _ in range(generator.randint(1, 8)):
        at = generator.randint(0, len(characters))
        kind = generator.random()
        if kind < 0.4:
            first, last = generator.choice(BLOCKS)
            characters.insert(at, chr(generator.randint(first, last)))
        elif kind < 0.6:
            characters.insert(
                at, generator.choice(["\u0301", "\u200d", "\u200b", "\u0000", "\u00a0", "\ufeff"])
            )
        elif kind < 0.75:
            characters.insert(at, generator.choice(specials))
        elif kind < 0.9:
            characters.insert(
                at,
                generator.choice([" ", "\n", "\t", "-", "'", ".", "…"]) * generator.randint(1, 5),
            )
        else:
            characters = list("".join(characters).upper())
    return "".join(characters)


def one_text(generator: random.Random, corpus: list[str], specials: list[str]) -> str:
    """A text without surrogates, which no UTF-8 string can hold."""
    kind = generator.random()
    if kind < 0.4:
        text = generator.choice(corpus)
    elif kind < 0.5:
        text = " ".join(generator.choices(corpus, k=generator.randint(2, 20)))
    elif kind < 0.8:
        text = disturbed(generator, generator.choice(corpus), specials)
    elif kind < 0.9:
        glue = generator.choice(["", " ", "\n"])
        text = glue.join(generator.choices(HOSTILE, k=generator.randint(1, 4)))
    else:
        text = random_text(generator)
    return "".join(character for character in text if not 0xD800 <= ord(character) <= 0xDFFF)


def main() -> None:
    """Writes the rows, a batch at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("corpus", type=Path, help="one text a line")
    parser.add_argument("ids", type=Path, help="file to write")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()

    generator = random.Random(options.seed)
    corpus = options.corpus.read_text(encoding="utf-8").splitlines()
    tokenizer = AutoTokenizer.from_pretrained(options.model, local_files_only=True)
    specials = list(tokenizer.added_tokens_encoder)
    with options.ids.open("w", encoding="utf-8") as file:
        for start in range(0, options.count, BATCH):
            size = min(BATCH, options.count - start)
            texts = [one_text(generator, corpus, specials) for _ in range(size)]
            # Off before on: a backend that was told to truncate stays so until told otherwise.
            whole = tokenizer(texts, truncation=False, padding=False)["input_ids"]
            cut = tokenizer(texts, truncation=True, max_length=CUT, padding=False)["input_ids"]
            for text, ids, short in zip(texts, whole, cut, strict=True):
                row = {"text": text, "ids": ids, "cut": short}
                file.write(json.dumps(row, separators=(",", ":")) + "\n")
    print(f"{options.count} texts", file=sys.stderr)


if __name__ == "__main__":
    main()
