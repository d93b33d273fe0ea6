"""Passages as token ids: one ragged array for the corpus."""

import lzma
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

# Passages whose number is a multiple of this are never trained on; `evaluate.py` uses them.
HELD_OUT = 50


@dataclass
class Ragged:
    """Token ids without special tokens: text `i` is `ids[offsets[i]:offsets[i + 1]]`."""

    ids: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1


def read_passages(path: Path) -> list[str]:
    with lzma.open(path, "rt", encoding="utf-8") as file:
        return [line.rstrip("\n") for line in file]


def training_passages(passages: list[str]) -> list[str]:
    return [text for number, text in enumerate(passages) if number % HELD_OUT]


def held_out_passages(passages: list[str]) -> list[str]:
    return passages[::HELD_OUT]


def tokenize(tokenizer: Tokenizer, texts: list[str], limit: int = 510) -> Ragged:
    tokenizer.no_padding()
    tokenizer.no_truncation()
    rows = []
    for start in range(0, len(texts), 50_000):
        encodings = tokenizer.encode_batch_fast(texts[start : start + 50_000], add_special_tokens=False)
        rows.extend(np.array(encoding.ids[:limit], dtype=np.int16) for encoding in encodings)
    rows = [row for row in rows if len(row)]
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return Ragged(np.concatenate(rows), offsets)


NEIGHBOURS = {
    "q": "wa", "w": "qes", "e": "wrd", "r": "etf", "t": "ryg", "y": "tuh", "u": "yij", "i": "uok", "o": "ipl", "p": "o",
    "a": "qsz", "s": "adwx", "d": "sfec", "f": "dgrv", "g": "fhtb", "h": "gjyn", "j": "hkum", "k": "jli", "l": "ko",
    "z": "ax", "x": "zsc", "c": "xdv", "v": "cfb", "b": "vgn", "n": "bhm", "m": "nj",
}


def mistype(text: str, rng: random.Random, rate: float = 0.12) -> str:
    """Each word longer than three letters gets one typing error with probability `rate`."""
    words = text.split(" ")
    for place, word in enumerate(words):
        if len(word) < 4 or rng.random() > rate:
            continue
        at = rng.randrange(1, len(word) - 1)
        kind = rng.randrange(4)
        if kind == 0:
            word = word[:at] + word[at + 1 :]
        elif kind == 1:
            word = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        elif kind == 2:
            word = word[:at] + word[at] + word[at:]
        else:
            word = word[:at] + rng.choice(NEIGHBOURS.get(word[at].lower(), word[at])) + word[at + 1 :]
        words[place] = word
    return " ".join(words)
