"""Judges the student beside its teacher and BM25, on texts that neither was distilled on; prints Markdown.

    python evaluate.py --student ../../models/fletcher-tiny --teacher TEACHER_FOLDER --passages passages-en.txt.xz \\
        --sts-dev sts-b-dev.tsv --wordnet DICT_FOLDER --manuals MAN_FOLDER

DICT_FOLDER holds WordNet's data files (Debian: wordnet-base), MAN_FOLDER man1 … man8 (Debian: manpages and
manpages-dev). Everything runs on the CPU in f32; the teacher takes most of the time.
"""

import argparse
import random
import re
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

import corpus
from encoder import BERT_TINY, MINILM_L6, Bert
from questions import Search, manual_search, opening_search, word_search
from sts import StsPairs, spearman
from teacher import WORDS

TOKENS_MAX = 512


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ["student", "teacher", "passages", "sts-dev", "wordnet", "manuals"]:
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


class Encoder:
    """A model folder's vectors, as plain PyTorch computes them from this directory's own `Bert`."""

    def __init__(self, folder: Path, shape, name: str):
        self.name = name
        self.model = Bert(shape)
        tensors = load_file(folder / "model.safetensors")
        kept = {part: tensors[part].float() for part in self.model.state_dict()}
        self.model.load_state_dict(kept)
        self.model.requires_grad_(False)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(TOKENS_MAX)

    def with_words_in_int8(self) -> "Encoder":
        """The same with each word embedding in eight bits and a scale a row."""
        other = Encoder.__new__(Encoder)
        other.name, other.tokenizer = f"{self.name}, int8 words", self.tokenizer
        other.model = Bert(self.model.shape)
        state = dict(self.model.state_dict())
        scale = state[WORDS].abs().amax(1, keepdim=True) / 127
        state[WORDS] = (state[WORDS] / scale).round() * scale
        other.model.load_state_dict(state)
        other.model.requires_grad_(False)
        return other

    def encode(self, texts: list[str]) -> np.ndarray:
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts)]
        order = sorted(range(len(rows)), key=lambda at: len(rows[at]))
        vectors = np.zeros((len(rows), self.model.shape.hidden), dtype=np.float32)
        for start in range(0, len(order), 64):
            part = order[start : start + 64]
            ids = torch.zeros(len(part), len(rows[part[-1]]), dtype=torch.long)
            for row, at in zip(ids, part):
                row[: len(rows[at])] = torch.tensor(rows[at])
            lengths = torch.tensor([len(rows[at]) for at in part])
            vectors[part] = self.model([(ids, lengths)]).numpy()
        return vectors


class Bm25:
    """Okapi BM25 (k1 1.2, b 0.75) over lower-cased words, without stemming or stop words."""

    name = "BM25"

    def __init__(self, documents: list[str]):
        counts, lengths = {}, np.zeros(len(documents))
        for number, document in enumerate(documents):
            words = self._words(document)
            lengths[number] = len(words)
            for word in words:
                postings = counts.setdefault(word, {})
                postings[number] = postings.get(number, 0) + 1
        norm = 1.2 * (0.25 + 0.75 * lengths / lengths.mean())
        self.size = len(documents)
        self.weights = {}
        for word, postings in counts.items():
            places = np.array(list(postings))
            times = np.array(list(postings.values()))
            idf = np.log1p((self.size - len(places) + 0.5) / (len(places) + 0.5))
            self.weights[word] = places, idf * times * 2.2 / (times + norm[places])

    @staticmethod
    def _words(text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.lower())

    def scores(self, query: str) -> np.ndarray:
        total = np.zeros(self.size)
        for word in self._words(query):
            if word in self.weights:
                places, weights = self.weights[word]
                total[places] += weights
        return total


def measures(scores, answers: list[int]) -> str:
    """Recall at 10 and the mean reciprocal rank; equal scores share the middle of their ranks."""
    ranks = []
    for row, answer in zip(scores, answers):
        better, equal = (row > row[answer]).sum(), (row == row[answer]).sum() - 1
        ranks.append(1 + better + equal / 2)
    ranks = np.array(ranks)
    return f"{100 * (ranks <= 10).mean():.1f} / {100 * (1 / ranks).mean():.1f}"


def table(header: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def show_search(searches: list[Search], encoders: list[Encoder], seed: int) -> None:
    rows = []
    for search in searches:
        documents = [encoder.encode(search.documents) for encoder in encoders]
        bm25 = Bm25(search.documents)
        draw = random.Random(seed)
        mistyped = [corpus.mistype(query, draw, rate=0.25) for query in search.queries]
        size = f"{len(search.queries):,} queries, {len(search.documents):,} documents"
        for name, queries in [(f"{search.name}: {size}", search.queries), ("— one word in four mistyped", mistyped)]:
            cells = [
                measures(encoder.encode(queries) @ vectors.T, search.answers)
                for encoder, vectors in zip(encoders, documents)
            ]
            rows.append([name, *cells, measures(map(bm25.scores, queries), search.answers)])
    table(["", *(encoder.name for encoder in encoders), "BM25"], rows)


def texts_of_length(tokenizer: Tokenizer, passages: list[str], tokens: int, count: int, draw: random.Random) -> list[str]:
    """Texts of `tokens` tokens, special ones aside: parts of passages, or passages one after the other."""
    texts = []
    while len(texts) < count:
        text = draw.choice(passages)
        while len(offsets := tokenizer.encode(text, add_special_tokens=False).offsets) < tokens:
            text += " " + draw.choice(passages)
        texts.append(text[offsets[0][0] : offsets[tokens - 1][1]])
    return texts


def show_lengths(encoders: list[Encoder], passages: list[str], draw: random.Random) -> None:
    student, teacher, small = encoders
    tokenizer = Tokenizer.from_str(student.tokenizer.to_str())
    tokenizer.no_truncation()
    rows = []
    for tokens in [1, 8, 64, 256, 510]:
        texts = texts_of_length(tokenizer, passages, tokens, 200, draw)
        pairs = np.triu_indices(len(texts), 1)
        theirs = teacher.encode(texts)
        theirs = (theirs @ theirs.T)[pairs]
        cells = []
        for encoder in [student, small]:
            ours = encoder.encode(texts)
            ours = (ours @ ours.T)[pairs]
            cells += [f"{100 * spearman(ours, theirs):.1f}", f"{np.sqrt(np.square(ours - theirs).mean()):.3f}"]
        rows.append([str(tokens + 2), *cells])
    table(["tokens", "rank correlation", "error", "rank correlation, int8 words", "error, int8 words"], rows)


def show_robustness(encoders: list[Encoder], passages: list[str], seed: int) -> None:
    draw = random.Random(seed)
    texts = draw.sample([text for text in passages if 6 <= len(text.split()) <= 40], 1_000)
    changes = {
        "UPPER CASE": [text.upper() for text in texts],
        "no punctuation": [" ".join(re.findall(r"\w+", text)) for text in texts],
        "a full stop more": [text + "." for text in texts],
        "one word in eight mistyped": [corpus.mistype(text, draw, 0.125) for text in texts],
        "one word in three mistyped": [corpus.mistype(text, draw, 0.333) for text in texts],
    }
    originals = [encoder.encode(texts) for encoder in encoders]
    rows = []
    for name, changed in changes.items():
        cells = []
        for encoder, original in zip(encoders, originals):
            cosines = (encoder.encode(changed) * original).sum(1)
            cells.append(f"{cosines.mean():.3f} ({np.quantile(cosines, 0.05):.3f})")
        rows.append([name, *cells])
    table(["change", *(encoder.name for encoder in encoders)], rows)


def main() -> None:
    args = parse()
    draw = random.Random(args.seed)
    student = Encoder(args.student, BERT_TINY, "fletcher-tiny")
    teacher = Encoder(args.teacher, MINILM_L6, "all-MiniLM-L6-v2")
    encoders = [student, teacher, student.with_words_in_int8()]
    names = [encoder.name for encoder in encoders]
    passages = corpus.read_passages(args.passages)
    trained = set(corpus.training_passages(passages))
    held_out = [text for text in corpus.held_out_passages(passages) if text not in trained]

    print("STS-B dev, Spearman × 100\n")
    sts = StsPairs(args.sts_dev)
    table(names, [[f"{100 * sts.correlation(encoder.encode):.2f}" for encoder in encoders]])

    print("Search, recall at 10 / MRR, both × 100\n")
    words = word_search(args.wordnet, trained, args.seed)
    show_search([manual_search(args.manuals, trained), words, opening_search(held_out)], encoders, args.seed)

    print("Similarities of all pairs of 200 texts, against the teacher's\n")
    show_lengths(encoders, held_out, draw)

    print("Cosine of a text's vector with that of the changed text: mean (5th percentile)\n")
    show_robustness(encoders[:2], held_out, args.seed)


if __name__ == "__main__":
    main()
