"""The STS Benchmark: pairs of sentences with a person's judgement of how alike they are."""

from collections.abc import Callable
from pathlib import Path

import numpy as np


class StsPairs:
    def __init__(self, path: Path):
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
        self.scores = np.array([float(row[4]) for row in rows])
        self.texts = [row[5] for row in rows] + [row[6] for row in rows]

    def correlation(self, encode: Callable[[list[str]], np.ndarray]) -> float:
        vectors = encode(self.texts)
        cosines = (vectors[: len(self.scores)] * vectors[len(self.scores) :]).sum(1)
        return spearman(cosines, self.scores)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    def ranks(values):
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        last = np.cumsum(counts)
        return (last - (counts - 1) / 2)[inverse]

    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])
