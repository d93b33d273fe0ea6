"""Writes tests/golden/tokens-*.jsonl: what Python's tokenizers make of hostile texts.

    python tokens.py [offsets]

A row is `{"text", "ids", "cut"}`: all ids, and the ids under truncation to CUT tokens, special
tokens included in both. A text too long to store is `{"piece", "times"}`, and its ids
`{"count", "sha256"}` over little-endian 32-bit ids.

A row of tests/golden/offsets-*.jsonl is `{"text", "tokens"}`: of each token its id and where it
begins and ends in the text, in bytes of UTF-8, without the special tokens around the text. With
`offsets` only these are written.
"""

from __future__ import annotations

import hashlib
import json
import sys
from array import array
from pathlib import Path

from transformers import AutoTokenizer

from corpus import TEXTS

GOLDEN = Path(__file__).resolve().parents[2] / "tests/golden"
CUT = 12

# One folder for each kind of tokenizer.
FOLDERS = [
    "bert",
    "bert-cased",
    "bert-legacy",
    "bert-left",
    "camembert",
    "modernbert",
    "mpnet",
    "roberta",
    "xlm-roberta",
]

HOSTILE = [
    "\ufeff",
    "\ufeffa text after a byte order mark",
    "\u0000",
    "a\u0000b \u0001\u0002 c\u007fd \u0080\u009f e",
    "\ufffd \ufffe \uffff \U0010ffff \ue000",
    "   ",
    "\t\n\r\n",
    "\u00a0\u2003\u3000\u202f\u205f\u1680 between odd spaces\u2028and\u2029separators\u0085next",
    "trailing space ",
    " leading space",
    "  two  spaces   three    four",
    "line one\nline two\r\nline three\n\n\nline four",
    "e\u0301 \u00e9 E\u0301 \u00c9 n\u0303 a\u030a\u0301 o\u0308\u0304",
    "\u0301\u0302 leading marks",
    "z\u0351\u036b\u0343\u036a\u0302\u036b\u033da\u0334\u0319\u0324\u031el\u0349\u034ag\u0319o",
    "a" + "\u0301" * 40,
    "\u1e9b\u0323 \u0344 \u0958 \uac00 \u1100\u1161\u11a8",
    "İstanbul ıssız Straße ẞ ΣΊΣΥΦΟΣ ς ǅ Ǆ \u0130\u0307",
    "\ufb01ne \ufb02ow \ufb00 \u2167 \u338f \u00bd \u2460 "
    "\uff26\uff35\uff2c\uff2c \uff11\uff12 \uff76\uff9e",
    "我们今天去图书馆看书，明天去公园。",
    "日本語のテキスト ひらがな カタカナ \u3042\u3099",
    "한국어 텍스트 \u1112\u1161\u11ab",
    "\U00020000\U0002a6d6 \U0002f800 \u2f00 \uf900 \u3400 \u4dbf",
    "mixed我们English今天text",
    "السلام عليكم ورحمة الله وبركاته \u0640\u064b\u064c",
    "\u202eright to left override\u202c \u200frtl mark \u2066isolate\u2069",
    "שָׁלוֹם עולם",
    "नमस्ते दुनिया क्षत्रिय",
    "สวัสดีชาวโลก",
    "བོད་སྐད་ ភាសាខ្មែរ မြန်မာ",
    "Привет, мир! Ёлка ёлка й и\u0306",
    "👩\u200d💻 👨\u200d👩\u200d👧\u200d👦 🏳\ufe0f\u200d🌈 👍🏽 🇫🇷🇩🇪 \u2764\ufe0f 1\ufe0f\u20e3",
    "\U0001f9ff\U0001fae8\U000e0067\U000e007f",
    "soft\u00adhyphen zero\u200bwidth\u200cnon\u200djoiner word\u2060joiner",
    "𝓂𝒶𝓉𝒽 𝟘𝟙 𝔸 Ⓐ ㋿ \u212b \u2126 \u00b5 \u03bc",
    "[CLS] [SEP] [PAD] [MASK] [UNK]",
    "[CLS][SEP]a[MASK]b [ MASK ] [mask] [Mask]",
    "<s> </s> <pad> <mask> <unk> <s></s>",
    "a<mask>b  <mask>  c\n<mask>\td <MASK> < mask > <s>NOTUSED </s>NOTUSED",
    "\u2581 \u2581\u2581word \u2581quick brown",
    "##ing ## #ing fox##es",
    "Ġ Ċ ĠThe âĢĻ",
    "don't can't I'll we've they'd it's he'S I'M 'tis rock'n'roll",
    "3.14159 -273.15 1,000,000 1e-10 0x1F 2026-11-23T12:34:56Z 50% $9.99 €5 £3",
    "user@example.org https://example.org/a/b?c=d&e=f#g C:\\path\\file.txt foo_bar-baz.qux",
    "!@#$%^&*()_+-=[]{}|;':\",./<>?`~ ¡¿«»‹›„“”‘’–—…•†‡§¶©®™°±×÷",
    '{"key": [1, 2.5, null, true], "nested": {"a": "b\\n"}}',
    'fn main() { println!("{}", x[0] & 0xff << 2); } // comment',
    '<p class="a">Hello &amp; <b>world</b></p>',
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "a" * 101,
    "ab" * 50 + " " + "é" * 100 + " " + "é" * 101 + " " + "我" * 120,
    "the the the the the the the the the the the the the the the the the the the the",
    "(((((((((((((((((((((((((((((((()))))))))))))))))))))))))))))))))",
    "ＡＢＣ　ａｂｃ　１２３",
    "e\u0301\u200de\u0301 \u200d\u200d \ufe0f a\u200d",
    "\u0378\u0379 unassigned \U000e0001 tag",
    "search_query: what is the capital of France?",
]

# A piece and how often it comes: words and texts that are too long to store.
LONG = [
    ("a", 100_000),
    ("ab", 50_000),
    ("é", 100_000),
    ("e\u0301", 50_000),
    ("我", 20_000),
    ("👩\u200d💻", 10_000),
    (" ", 100_000),
    ("\n", 10_000),
    ("-", 100_000),
    ("1", 100_000),
    ("the ", 20_000),
    ("The quick brown fox jumps over the lazy dog. ", 2_000),
    ("[MASK] <mask>", 3_000),
    ("\u0301", 20_000),
    ("\u200b", 20_000),
]


def offsets() -> None:
    """Where each token stands, for the tokenizers that Fletcher has an encoder for."""
    for name in ["bert", "bert-cased"]:
        tokenizer = AutoTokenizer.from_pretrained(GOLDEN / name, local_files_only=True)
        with (GOLDEN / f"offsets-{name}.jsonl").open("w", encoding="utf-8") as file:
            for text in [*TEXTS, *HOSTILE]:
                found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
                # Python counts characters.
                starts = [0]
                for character in text:
                    starts.append(starts[-1] + len(character.encode()))
                places = zip(found["input_ids"], found["offset_mapping"])
                row = {"text": text, "tokens": [[i, starts[a], starts[b]] for i, (a, b) in places]}
                file.write(json.dumps(row, separators=(",", ":"), ensure_ascii=True) + "\n")


def main() -> None:
    """One file for each kind of tokenizer."""
    offsets()
    if "offsets" in sys.argv:
        return
    for name in FOLDERS:
        tokenizer = AutoTokenizer.from_pretrained(GOLDEN / name, local_files_only=True)
        rows = [{"text": text} for text in [*TEXTS, *HOSTILE]]
        rows += [{"piece": piece, "times": times} for piece, times in LONG]
        with (GOLDEN / f"tokens-{name}.jsonl").open("w", encoding="utf-8") as file:
            for row in rows:
                text = row.get("text", row.get("piece", "") * row.get("times", 1))
                ids = tokenizer(text)["input_ids"]
                row["ids"] = ids if "text" in row else digest(ids)
                row["cut"] = tokenizer(text, truncation=True, max_length=CUT)["input_ids"]
                file.write(json.dumps(row, separators=(",", ":"), ensure_ascii=True) + "\n")
        print(name, len(rows))


def digest(ids: list[int]) -> dict:
    """Stands for a list of ids that is too long to store."""
    words = array("I", ids)
    assert words.itemsize == 4
    return {"count": len(ids), "sha256": hashlib.sha256(words.tobytes()).hexdigest()}


if __name__ == "__main__":
    main()
