"""Precompiled SentencePiece normalisation: a tiny map for the fixtures, the full one on demand.

XLM-RoBERTa's tokenizer carries `nmt_nfkc`, 240 kB. The fixtures carry a map of a hundred rules in
the same format, which the same code reads.
"""

from __future__ import annotations

import io
import tempfile

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from corpus import ENGLISH

RULES = {
    "\ufb01": "fi",
    "\ufb02": "fl",
    "\u00a0": " ",
    "\u3000": " ",
    "\u200b": " ",
    "\u200d": "",
    "\u0001": "",
    "\ufeff": "",
    "\t": " ",
    "\n": " ",
    "\r": " ",
    "\u2167": "VIII",
    "\u338f": "kg",
    "\u2026": "...",
    "e\u0301": "\u00e9",
    "E\u0301": "\u00c9",
}
RULES |= {chr(0xFF21 + i): chr(ord("A") + i) for i in range(26)}
RULES |= {chr(0xFF41 + i): chr(ord("a") + i) for i in range(26)}
RULES |= {chr(0xFF10 + i): chr(ord("0") + i) for i in range(10)}


def tiny() -> bytes:
    """The map of RULES."""
    points = lambda text: " ".join(f"{ord(character):X}" for character in text)  # noqa: E731
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as file:
        file.writelines(f"{points(before)}\t{points(after)}\n" for before, after in RULES.items())
        file.flush()
        return trained(normalization_rule_tsv=file.name)


def nmt_nfkc() -> bytes:
    """The map that T5, ALBERT and XLM-RoBERTa share."""
    return trained(normalization_rule_name="nmt_nfkc")


def trained(**normalization) -> bytes:
    """SentencePiece gives a map out only as part of a trained model."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(ENGLISH),
        model_writer=model,
        vocab_size=100,
        hard_vocab_limit=False,
        minloglevel=2,
        **normalization,
    )
    parsed = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    return parsed.normalizer_spec.precompiled_charsmap
