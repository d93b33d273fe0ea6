"""New texts out of the passages, made on the device from token ids.

A text is a row of a matrix of ids without special tokens, with its length beside it. The teacher
embeds whatever comes out, so no augmentation has to keep the meaning: a dropped word or a foreign
one is a lesson in what the teacher makes of it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer

from corpus import Ragged

QUESTIONS = """what is; what is a; what is the; what are; what does; what was; what does it mean to; what kind of; what causes;
who is; who was; who; who invented; who wrote; whose; which; which is the; where is; where was; where; where can i find; when was;
when did; when is; when; why is; why does; why do; why; how; how do; how do i; how to; how does; how is; how many; how much; how long;
how old is; how can i; is; is there; is it; are there; does; do; did; can; can i; could you; should i; was; the meaning of;
definition of; a word for; tell me about; explain; find; show me; list of; example of; difference between; i need; i want to;
please; best; synonyms of; people who; a man; a woman; history of; name of the; in what year""".replace("\n", " ")
INSERTIONS = "not no never without only almost very un the a is and or of in all some every few two three many more less".split()


@dataclass
class Rows:
    """`ids [n, width]`, zero after each row's `lengths [n]`."""

    ids: torch.Tensor
    lengths: torch.Tensor

    def masked(self) -> "Rows":
        place = torch.arange(self.ids.shape[1], device=self.ids.device)
        return Rows(self.ids.masked_fill(place >= self.lengths[:, None], 0), self.lengths)


class Source:
    """The corpus on the device and everything random that is drawn from it."""

    def __init__(self, corpus: Ragged, tokenizer: Tokenizer, device: torch.device, seed: int):
        self.device = device
        self.ids = torch.from_numpy(corpus.ids).to(device)
        self.offsets = torch.from_numpy(corpus.offsets).to(device)
        self.random = torch.Generator(device).manual_seed(seed)
        words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        starts = [not word.startswith("##") for word, _ in words]
        self.starts_word = torch.tensor(starts, device=device)
        # Words that a text may hold: no special and no unused tokens.
        whole = [number for word, number in words if starts[number] and not word.startswith("[")]
        self.words = torch.tensor(whole, device=device)
        self.question_mark = tokenizer.token_to_id("?")
        self.questions = self._phrases(tokenizer, [question.strip() for question in QUESTIONS.split(";")])
        self.insertions = torch.tensor([tokenizer.token_to_id(word) for word in INSERTIONS], device=device)
        self.neighbours: torch.Tensor | None = None

    def _phrases(self, tokenizer: Tokenizer, phrases: list[str]) -> Rows:
        rows = [tokenizer.encode(phrase, add_special_tokens=False).ids for phrase in phrases]
        ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
        for row, tokens in zip(ids, rows):
            row[: len(tokens)] = tokens
        lengths = torch.tensor([len(tokens) for tokens in rows])
        return Rows(torch.from_numpy(ids).to(self.device), lengths.to(self.device))

    def rand(self, *shape: int) -> torch.Tensor:
        return torch.rand(*shape, device=self.device, generator=self.random)

    def below(self, limit, *shape: int) -> torch.Tensor:
        """Random integers in `0..limit`; `limit` is a number or a tensor of that shape."""
        return (self.rand(*shape) * limit).long()

    def texts(self, count: int) -> torch.Tensor:
        return self.below(len(self.offsets) - 1, count)

    def whole(self, index: torch.Tensor, width: int) -> Rows:
        """The passages of these numbers, cut at `width` tokens."""
        place = torch.arange(width, device=self.device)
        start = self.offsets[index]
        lengths = (self.offsets[index + 1] - start).clamp(max=width)
        at = (start[:, None] + place).clamp(max=len(self.ids) - 1)
        return Rows(self.ids[at].long(), lengths).masked()

    def windows(self, count: int, shortest: int, longest: int, order: torch.Tensor) -> Rows:
        """Long texts: passages that follow each other in `order`, one after the other."""
        lengths = shortest + self.below(longest - shortest + 1, count)
        rows = torch.zeros(count, longest, dtype=torch.long, device=self.device)
        filled = torch.zeros(count, dtype=torch.long, device=self.device)
        place = torch.arange(longest, device=self.device)
        first = self.below(len(order), count)
        for following in range(64):
            index = order[(first + following) % len(order)]
            piece = self.whole(index, longest)
            at = place - filled[:, None]
            inside = (at >= 0) & (at < piece.lengths[:, None])
            rows = torch.where(inside, piece.ids.gather(1, at.clamp(0, longest - 1)), rows)
            filled = (filled + piece.lengths).clamp(max=longest)
        return Rows(rows, torch.minimum(filled, lengths)).masked()

    def crop(self, rows: Rows, shortest: int, longest: int) -> Rows:
        """A random span of whole words, its length log-uniform in tokens."""
        count, width = rows.ids.shape
        place = torch.arange(width, device=self.device)
        span = shortest * (longest / shortest) ** self.rand(count)
        span = torch.minimum(span.round().long(), rows.lengths)
        start = self.below(rows.lengths - span + 1, count)
        word_start = torch.where(self.starts_word[rows.ids], place, 0).cummax(1).values
        first = word_start.gather(1, start[:, None])[:, 0]
        end = start + span
        cut = word_start.gather(1, end.clamp(max=width - 1)[:, None])[:, 0]
        end = torch.where((end < rows.lengths) & (cut > first), cut, end)
        at = (first[:, None] + place).clamp(max=width - 1)
        return Rows(rows.ids.gather(1, at), end - first).masked()

    def ask(self, rows: Rows) -> Rows:
        """A question's opening before the text, and every other time its mark after it."""
        count, width = rows.ids.shape
        pick = self.below(len(self.questions.lengths), count)
        opening = self.questions.lengths[pick]
        place = torch.arange(width, device=self.device)
        at = place - opening[:, None]
        after = rows.ids.gather(1, at.clamp(min=0))
        openings = torch.zeros_like(rows.ids)
        openings[:, : self.questions.ids.shape[1]] = self.questions.ids[pick]
        ids = torch.where(at >= 0, after, openings)
        lengths = (rows.lengths + opening).clamp(max=width - 1)
        ids.scatter_(1, lengths[:, None], self.question_mark)
        marked = lengths + (self.rand(count) < 0.5).long()
        return Rows(ids, marked).masked()

    def drop_words(self, rows: Rows, rate: torch.Tensor) -> Rows:
        word = self.starts_word[rows.ids].long().cumsum(1)
        draw = self.rand(rows.ids.shape[0], rows.ids.shape[1] + 1).gather(1, word)
        place = torch.arange(rows.ids.shape[1], device=self.device)
        keep = (draw > rate[:, None]) & (place < rows.lengths[:, None])
        order = torch.argsort((~keep).to(torch.uint8), dim=1, stable=True)
        kept = Rows(rows.ids.gather(1, order), keep.sum(1)).masked()
        # A text that lost all its words stays as it was.
        lost = kept.lengths == 0
        return Rows(torch.where(lost[:, None], rows.ids, kept.ids), torch.where(lost, rows.lengths, kept.lengths))

    def replace_words(self, rows: Rows, rate: torch.Tensor) -> Rows:
        """One-token words become one of their neighbours in the teacher's space, or any word."""
        count, width = rows.ids.shape
        starts = self.starts_word[rows.ids]
        place = torch.arange(width, device=self.device)
        alone = starts & torch.cat([starts[:, 1:], torch.ones_like(starts[:, :1])], 1) & (place < rows.lengths[:, None])
        chosen = alone & (self.rand(count, width) < rate[:, None])
        near = self.neighbours[rows.ids, self.below(self.neighbours.shape[1], count, width)].long()
        other = self.words[self.below(len(self.words), count, width)]
        new = torch.where(self.rand(count, width) < 0.8, near, other)
        return Rows(torch.where(chosen, new, rows.ids), rows.lengths)

    def insert(self, rows: Rows) -> Rows:
        """A short word, often a negation, before some word."""
        count, width = rows.ids.shape
        place = torch.arange(width, device=self.device)
        word_start = torch.where(self.starts_word[rows.ids], place, 0).cummax(1).values
        at = word_start.gather(1, self.below(rows.lengths, count)[:, None])
        weight = self.below(len(self.insertions), count)
        weight = torch.where(self.rand(count) < 0.4, self.below(3, count), weight)
        shifted = rows.ids.gather(1, (place - (place > at).long()).clamp(min=0))
        ids = torch.where(place == at, self.insertions[weight][:, None], shifted)
        return Rows(ids, (rows.lengths + 1).clamp(max=width)).masked()

    def rotate(self, rows: Rows) -> Rows:
        """The text's second part before its first, cut between two words."""
        count, width = rows.ids.shape
        place = torch.arange(width, device=self.device)
        word_start = torch.where(self.starts_word[rows.ids], place, 0).cummax(1).values
        cut = word_start.gather(1, self.below(rows.lengths, count)[:, None])
        at = (place + cut) % rows.lengths[:, None]
        return Rows(rows.ids.gather(1, at), rows.lengths).masked()

    def edit(self, rows: Rows) -> Rows:
        """One or two of the edits above, as a person's second version of a sentence."""
        count = rows.ids.shape[0]
        for _ in range(2):
            kind = self.below(6, count)
            versions = [
                self.drop_words(rows, 0.05 + 0.25 * self.rand(count)),
                self.replace_words(rows, 0.05 + 0.35 * self.rand(count)),
                self.insert(rows),
                self.rotate(rows),
            ]
            ids, lengths = rows.ids, rows.lengths
            for number, version in enumerate(versions):
                ids = torch.where((kind == number)[:, None], version.ids, ids)
                lengths = torch.where(kind == number, version.lengths, lengths)
            rows = Rows(ids, lengths)
        return rows

    def word_salad(self, count: int, longest: int, width: int) -> Rows:
        """One to `longest` words drawn evenly from the vocabulary, so that rare ones are learnt too."""
        ids = torch.zeros(count, width, dtype=torch.long, device=self.device)
        ids[:, :longest] = self.words[self.below(len(self.words), count, longest)]
        return Rows(ids, 1 + self.below(longest, count)).masked()
