"""Texts with their teacher's vectors, bucketed by length, near texts beside each other.

Each bucket is sorted by a one-dimensional order of the teacher's space (the leaf of a two-level
k-means). A batch takes from every bucket short runs at the same places of that order, so that it
holds groups of texts on one subject, short ones beside long ones: the pairs whose similarity is
hard to tell. Texts of different groups are the easy pairs.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from augment import Rows, Source
from encoder import Bert

LENGTHS = [8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512]
CLS, SEP = 101, 102


def with_special(rows: Rows) -> Rows:
    count, width = rows.ids.shape
    ids = torch.zeros(count, width + 2, dtype=torch.long, device=rows.ids.device)
    ids[:, 1:-1] = rows.ids
    ids[:, 0] = CLS
    ids.scatter_(1, rows.lengths[:, None] + 1, SEP)
    return Rows(ids, rows.lengths + 2)


@torch.no_grad()
def embed(model: Bert, rows: Rows) -> torch.Tensor:
    """Vectors of rows with special tokens, which the caller has bucketed."""
    tokens = 1 << 17 if rows.ids.is_cuda else 1 << 12
    batch = max(1, tokens // rows.ids.shape[1])
    parts = [
        model([(rows.ids[at : at + batch], rows.lengths[at : at + batch])])
        for at in range(0, len(rows.lengths), batch)
    ]
    return torch.cat(parts)


class Leaves:
    """A coarse map of the teacher's space: the number of a text's leaf, near leaves near in number."""

    def __init__(self, vectors: torch.Tensor, leaves: int, random: torch.Generator):
        centres = self._cluster(vectors, leaves, random)
        groups = self._cluster(centres, max(2, int(leaves**0.5)), random)
        # Leaves of one group beside each other, within it by their place on the group's way out.
        group = (centres @ groups.T).argmax(1)
        along = (centres * groups[group].roll(1, 0)).sum(1)
        self.centres = centres[torch.argsort(group.float() * 4 + along)]

    @staticmethod
    def _cluster(vectors: torch.Tensor, count: int, random: torch.Generator, rounds: int = 10) -> torch.Tensor:
        count = min(count, len(vectors))
        first = torch.randperm(len(vectors), device=vectors.device, generator=random)[:count]
        centres = vectors[first]
        for _ in range(rounds):
            nearest = (vectors @ centres.T).argmax(1)
            sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)
            empty = sums.norm(dim=1) == 0
            centres = torch.where(empty[:, None], centres, F.normalize(sums, dim=1))
        return centres

    def of(self, vectors: torch.Tensor) -> torch.Tensor:
        return torch.cat([(part @ self.centres.T).argmax(1) for part in vectors.split(1 << 16)])


@dataclass
class Bucket:
    ids: torch.Tensor  # [n, length] int16, special tokens included
    lengths: torch.Tensor  # [n] int16
    vectors: torch.Tensor  # [n, teacher's hidden] f16
    order: torch.Tensor  # [n] f32, the leaf with a random fraction

    def sorted(self) -> "Bucket":
        by = torch.argsort(self.order)
        return Bucket(self.ids[by], self.lengths[by], self.vectors[by], self.order[by])


def label(source: Source, teacher: Bert, leaves: Leaves | None, parts: list[Rows]) -> list[Bucket]:
    """The teacher's answer to each text, as one bucket a length."""
    buckets = []
    below = 0
    for length in LENGTHS:
        ids, lengths = [], []
        for rows in parts:
            rows = with_special(rows)
            pick = ((rows.lengths > below) & (rows.lengths <= length)).nonzero()[:, 0]
            part = rows.ids[pick][:, :length]
            ids.append(F.pad(part, (0, length - part.shape[1])))
            lengths.append(rows.lengths[pick])
        rows = Rows(torch.cat(ids), torch.cat(lengths))
        hidden = teacher.shape.hidden
        vectors = embed(teacher, rows) if len(rows.lengths) else torch.zeros(0, hidden, device=source.device)
        order = torch.zeros(len(vectors), device=source.device)
        if leaves is not None and len(vectors):
            order = leaves.of(vectors) + source.rand(len(vectors))
        buckets.append(Bucket(rows.ids.to(torch.int16), rows.lengths.to(torch.int16), vectors.half(), order))
        below = length
    return buckets


def join(first: list[Bucket], second: list[Bucket]) -> list[Bucket]:
    def both(a: Bucket, b: Bucket) -> Bucket:
        fields = ("ids", "lengths", "vectors", "order")
        return Bucket(*(torch.cat([getattr(a, name), getattr(b, name)]) for name in fields)).sorted()

    return [both(a, b) for a, b in zip(first, second)]


def fresh(source: Source, typos: Source, order: torch.Tensor, count: int) -> list[Rows]:
    """New texts: `count` in all, most of them short."""

    def share(fraction: float) -> torch.Tensor:
        return source.texts(int(count * fraction))

    def crops(fraction: float, shortest: int, longest: int) -> Rows:
        return source.crop(source.whole(share(fraction), 160), shortest, longest)

    def sentences(fraction: float) -> Rows:
        return source.whole(share(fraction), 60)

    return [
        crops(0.18, 1, 8),
        crops(0.16, 4, 32),
        crops(0.04, 24, 126),
        source.ask(Rows(*widen(source.crop(source.whole(share(0.12), 60), 1, 14), 12))),
        source.edit(Rows(*widen(sentences(0.20), 4))),
        source.edit(Rows(*widen(source.crop(sentences(0.08), 3, 16), 4))),
        source.word_salad(int(count * 0.06), 4, 8),
        typos.whole(typos.texts(int(count * 0.06)), 60),
        typos.crop(typos.whole(typos.texts(int(count * 0.03)), 60), 1, 10),
        source.windows(int(count * 0.03), 40, 126, order),
        source.windows(int(count * 0.01), 100, 254, order),
        source.windows(int(count * 0.004), 200, 510, order),
    ]


def widen(rows: Rows, more: int) -> tuple[torch.Tensor, torch.Tensor]:
    return F.pad(rows.ids, (0, more)), rows.lengths


class Layout:
    """How many rows of each bucket a batch takes: fixed, so that every shape of a step is fixed."""

    def __init__(self, pool: list[Bucket], rows: int, groups: int):
        total = sum(len(bucket.lengths) for bucket in pool)
        self.groups = groups
        self.counts = []
        for bucket in pool:
            count = rows * len(bucket.lengths) / total
            runs = round(count / groups)
            self.counts.append(runs * groups if runs else min(groups, 1 << max(2, round(count)).bit_length() - 1))
        self.runs = [max(1, count // groups) for count in self.counts]

    def describe(self) -> str:
        return ", ".join(f"{count} x {length}" for count, length in zip(self.counts, LENGTHS))

    def group_of_rows(self, device: torch.device) -> torch.Tensor:
        rows = [torch.arange(count, device=device) // run for count, run in zip(self.counts, self.runs)]
        return torch.cat(rows)

    def draw(self, source: Source, pool: list[Bucket]):
        """One batch: `[(ids, lengths), …]` and the teacher's vectors."""
        place = torch.randperm(self.groups, device=source.device, generator=source.random)
        place = (place + source.rand(self.groups)) / self.groups
        batch, vectors = [], []
        for bucket, count, run in zip(pool, self.counts, self.runs):
            first = (place[: count // run] * (len(bucket.lengths) - run)).long()
            at = (first[:, None] + torch.arange(run, device=source.device)).reshape(-1)
            batch.append((bucket.ids[at].int(), bucket.lengths[at].int()))
            vectors.append(bucket.vectors[at])
        return batch, torch.cat(vectors)
