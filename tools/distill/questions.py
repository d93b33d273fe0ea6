"""Searches with known answers, made from public texts that were kept from training.

The English manual pages of Linux never were among the passages; of WordNet and of the passages only
what training has not seen is asked for.
"""

import gzip
import random
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Search:
    """`answers[i]` is the number of the document that answers `queries[i]`."""

    name: str
    queries: list[str]
    documents: list[str]
    answers: list[int]


def manual_search(folder: Path, trained: set[str]) -> Search:
    """From a manual page's one-line summary, without the names, to the start of its description."""
    queries, documents = [], []
    for path in sorted(folder.glob("man*/*.gz")):
        with gzip.open(path, "rt", encoding="utf-8", errors="replace") as file:
            sections = _sections(file.read())
        _, _, summary = _plain(sections.get("NAME", "")).partition(" - ")
        description = " ".join(_plain(sections.get("DESCRIPTION", "")).split()[:200])
        known = summary in queries or description in documents or description in trained or summary in trained
        if summary and len(description) > 100 and not known:
            queries.append(summary)
            documents.append(description)
    return Search("manual page's summary → its description", queries, documents, list(range(len(queries))))


def _sections(page: str) -> dict[str, str]:
    parts = re.split(r'^\.SH +"?([A-Z ]+?)"? *$', page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def _plain(roff: str) -> str:
    """Text without what formats it; good enough for prose."""
    lines = []
    for line in roff.splitlines():
        if line.startswith(('.\\"', "'\\\"")):
            continue
        if macro := re.match(r"\.(B|I|BR|RB|IR|RI|BI|IB|SM|SS|TP|IP) +(.*)", line):
            # A macro of two fonts joins its words.
            joined = len(macro[1]) == 2 and macro[1] not in ("SM", "SS", "TP", "IP")
            line = re.sub(r'"([^"]*)"| ', lambda part: part[1] if part[1] is not None else "" if joined else " ", macro[2])
        elif line.startswith("."):
            continue
        lines.append(line)
    text = " ".join(lines)
    text = re.sub(r"\\f(\(..|\[[^]]*\]|.)", "", text)
    for code, character in [("\\-", "-"), ("\\(aq", "'"), ("\\~", " "), ("\\e", "\\"), ("\\&", ""), ("\\:", "")]:
        text = text.replace(code, character)
    return " ".join(text.split())


def word_search(folder: Path, trained: set[str], seed: int) -> Search:
    """From a definition that training has not seen to the words that it defines."""
    entries, asked = [], []
    for kind in ["noun", "verb", "adj", "adv"]:
        for line in (folder / f"data.{kind}").read_text(encoding="utf-8").splitlines():
            if line.startswith(" "):
                continue
            fields, _, gloss = line.partition(" | ")
            fields = fields.split()
            words = [fields[4 + 2 * at].replace("_", " ") for at in range(int(fields[3], 16))]
            words = [re.sub(r"\((a|p|ip)\)$", "", word) for word in words]
            definition = gloss.split('; "')[0].strip()
            # The passages hold the definition alone, or after a word and a colon.
            seen = definition in trained or any(f"{word}: {definition}" in trained for word in words)
            (entries if seen else asked).append((", ".join(words), definition))
    draw = random.Random(seed)
    draw.shuffle(asked)
    # A definition that stands anywhere in a passage is no question; looking takes long, so few are looked for.
    everything = "\n".join(trained)
    kept = [entry for entry in asked[:3_000] if len(entry[1]) >= 20 and entry[1] not in everything][:2_000]
    entries = draw.sample(entries, min(20_000 - len(kept), len(entries)))
    asked = kept
    documents = list(dict.fromkeys(words for words, _ in asked + entries))
    place = {words: number for number, words in enumerate(documents)}
    queries = [definition for _, definition in asked]
    return Search("definition → word (WordNet)", queries, documents, [place[words] for words, _ in asked])


def opening_search(passages: list[str]) -> Search:
    """From a passage's first sentence to the rest of it."""
    queries, documents = [], []
    for passage in passages:
        first, *rest = re.split(r"(?<=[a-z)][.!?]) +(?=[A-Z])", passage, maxsplit=1)
        if rest and len(first.split()) >= 5 and len(rest[0].split()) >= 10:
            queries.append(first)
            documents.append(rest[0])
    return Search("first sentence → the rest of the passage", queries, documents, list(range(len(queries))))
