"""Tiny real tokenizers with the layout of the architectures' own: special tokens and their ids,
normaliser, pre-tokeniser, model and post-processor.

The vocabularies are learned here from the sentences of corpus.py; the component pipeline is the one
that `transformers` builds for the architecture, so `tokenizer.json` is what a real checkpoint has.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    BertTokenizer,
    CamembertTokenizer,
    MPNetTokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

from corpus import ENGLISH, OTHER


def substrings(text: str, longest: int) -> Iterator[tuple[int, str]]:
    """Every substring of at most `longest` characters, with its start."""
    for start in range(len(text)):
        for end in range(start + 1, min(start + longest, len(text)) + 1):
            yield start, text[start:end]


def most_useful(counts: Counter[str], room: int) -> list[str]:
    """The pieces that would save most tokens; equal ones in alphabetical order.

    The trainers of the `tokenizers` package order equals by hash, so two runs of them differ.
    """
    useful = [(-count * (len(piece) - 1), piece) for piece, count in counts.items()]
    return [piece for _, piece in sorted(useful)[:room]]


def wordpiece_vocab(specials: list[str], size: int, lowercase: bool = True) -> dict[str, int]:
    """A WordPiece vocabulary: the special tokens first, then pieces learned from the corpus."""
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    splitter = pre_tokenizers.BertPreTokenizer()
    characters: Counter[str] = Counter()
    pieces: Counter[str] = Counter()
    for line in ENGLISH + OTHER[:5]:
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(line)):
            for start, piece in substrings(word, longest=10):
                counts = characters if len(piece) == 1 else pieces
                counts[piece if start == 0 else "##" + piece] += 1
    alphabet = sorted(sorted(characters), key=lambda c: -characters[c])[
        : (size - len(specials)) // 3
    ]
    chosen = most_useful(pieces, size - len(specials) - len(alphabet))
    return {piece: index for index, piece in enumerate(specials + sorted(alphabet) + chosen)}


def sorted_vocab(tokenizer: Tokenizer) -> dict[str, int]:
    """The vocabulary in the order of its ids."""
    return dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))


def bert(size: int = 512, lowercase: bool = True, **keywords) -> BertTokenizer:
    """[PAD] [UNK] [CLS] [SEP] [MASK], then the pieces."""
    vocab = wordpiece_vocab(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], size, lowercase)
    return BertTokenizer(vocab=vocab, do_lower_case=lowercase, **keywords)


def mpnet(size: int = 320, **keywords) -> MPNetTokenizer:
    """RoBERTa's special tokens in front of BERT's pieces, with [UNK] among the pieces."""
    specials = ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>"]
    return MPNetTokenizer(vocab=wordpiece_vocab(specials, size), **keywords)


def byte_level_bpe(specials: list[str], size: int, normalizer=None) -> tuple[dict[str, int], list]:
    """Vocabulary and merges of a byte-level BPE that covers all 256 bytes."""
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(ENGLISH + OTHER, trainer)
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    return sorted_vocab(tokenizer), merges


def roberta(size: int = 420, **keywords) -> RobertaTokenizer:
    """<s> <pad> </s> <unk> first, <mask> last, as in roberta-base."""
    vocab, merges = byte_level_bpe(["<s>", "<pad>", "</s>", "<unk>"], size - 1)
    vocab["<mask>"] = len(vocab)
    return RobertaTokenizer(vocab=vocab, merges=merges, **keywords)


def modernbert(size: int = 420, **keywords) -> PreTrainedTokenizerFast:
    """GPT-NeoX pieces under NFC, with BERT's special tokens after them, as in ModernBERT-base."""
    specials = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    vocab, merges = byte_level_bpe([], size - len(specials), normalizers.NFC())
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in (4, 3, 2)])
    tokenizer.add_special_tokens(
        [AddedToken(s, normalized=False, lstrip=s == "[MASK]") for s in specials]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(s, tokenizer.token_to_id(s)) for s in ("[CLS]", "[SEP]")],
    )
    roles = {f"{s.strip('[]').lower()}_token": s for s in specials}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=True,
        **roles,
        **keywords,
    )


def unigram_pieces(size: int) -> list[tuple[str, float]]:
    """Unigram pieces with scores, as SentencePiece would number them after its control symbols."""
    characters: Counter[str] = Counter()
    pieces: Counter[str] = Counter()
    for line in ENGLISH + OTHER:
        for word in line.split():
            for _, piece in substrings("\u2581" + word, longest=9):
                (characters if len(piece) == 1 else pieces)[piece] += 1
    chosen = sorted(characters) + most_useful(pieces, size - len(characters))
    total = sum(characters.values())
    scored = [(piece, math.log((characters + pieces)[piece] / total)) for piece in chosen]
    scored.sort(key=lambda item: (-item[1], item[0]))
    return [(piece, round(score, 4)) for piece, score in scored]


def xlm_roberta(size: int = 400, charsmap: bytes | None = None, **keywords) -> XLMRobertaTokenizer:
    """<s> <pad> </s> <unk>, the pieces, <mask> last."""
    control = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab = control + unigram_pieces(size - 5) + [("<mask>", 0.0)]
    return XLMRobertaTokenizer(vocab=vocab, _spm_precompiled_charsmap=charsmap, **keywords)


def camembert(size: int = 400, charsmap: bytes | None = None, **keywords) -> CamembertTokenizer:
    """<s>NOTUSED <pad> </s>NOTUSED <unk> <unk>NOTUSED, the pieces, <s> and </s> among the first of
    them as in camembert-base, <mask> last."""
    control = [
        ("<s>NOTUSED", 0.0),
        ("<pad>", 0.0),
        ("</s>NOTUSED", 0.0),
        ("<unk>", 0.0),
        ("<unk>NOTUSED", -100.0),
        ("<s>", 0.0),
        ("</s>", 0.0),
    ]
    vocab = control + unigram_pieces(size - 8) + [("<mask>", 0.0)]
    return CamembertTokenizer(vocab=vocab, _spm_precompiled_charsmap=charsmap, **keywords)
