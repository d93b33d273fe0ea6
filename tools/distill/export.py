"""Makes the model folder out of a trained student.

    python export.py student.safetensors tokenizer.json ../../models/fletcher-tiny

Everything is written but the model card, README.md, which people write.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from encoder import BERT_TINY, Bert

MAX_TOKENS = BERT_TINY.positions

CONFIG = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    # The weights are stored in f16 and meant to be computed with in f32: loaders that follow this key widen them.
    "dtype": "float32",
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": BERT_TINY.hidden,
    "initializer_range": 0.02,
    "intermediate_size": BERT_TINY.intermediate,
    "layer_norm_eps": BERT_TINY.eps,
    "max_position_embeddings": BERT_TINY.positions,
    "model_type": "bert",
    "num_attention_heads": BERT_TINY.heads,
    "num_hidden_layers": BERT_TINY.layers,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "type_vocab_size": 2,
    "use_cache": True,
    "vocab_size": BERT_TINY.vocabulary,
}
TOKENIZER_CONFIG = {
    "cls_token": "[CLS]",
    "do_lower_case": True,
    "mask_token": "[MASK]",
    "model_max_length": MAX_TOKENS,
    "pad_token": "[PAD]",
    "sep_token": "[SEP]",
    "strip_accents": None,
    "tokenize_chinese_chars": True,
    "tokenizer_class": "BertTokenizer",
    "unk_token": "[UNK]",
}
POOLING = {
    "word_embedding_dimension": BERT_TINY.hidden,
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": True,
    "pooling_mode_max_tokens": False,
    "pooling_mode_mean_sqrt_len_tokens": False,
    "pooling_mode_weightedmean_tokens": False,
    "pooling_mode_lasttoken": False,
    "include_prompt": True,
}
MODULES = [
    {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
    for at, (path, kind) in enumerate([("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")])
]
TRANSFORMER = {
    "max_seq_length": MAX_TOKENS,
    "do_lower_case": False,
    # Without this, transformers makes a pooler that nothing uses, and says that it is missing.
    "model_args": {"add_pooling_layer": False},
}
SENTENCE_TRANSFORMERS = {
    "prompts": {},
    "default_prompt_name": None,
    "similarity_fn_name": "cosine",
}


def check(student: dict[str, torch.Tensor]) -> None:
    """Refuses a file that is not this model, or whose numbers f16 does not hold."""
    expected = Bert(BERT_TINY).state_dict()
    if {name: part.shape for name, part in student.items()} != {name: part.shape for name, part in expected.items()}:
        sys.exit("the student's tensors are not those of BERT-tiny")
    for name, part in student.items():
        if part.dtype != torch.float16 or not part.isfinite().all():
            sys.exit(f"{name}: not finite numbers in f16")


def without_limits(tokenizer: Path) -> dict:
    """The tokenizer without the teacher's truncation and padding: both are the caller's choice."""
    content = json.loads(tokenizer.read_text(encoding="utf-8"))
    return content | {"truncation": None, "padding": None}


def write(path: Path, content, **style) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False, **style) + "\n", encoding="utf-8")


def main() -> None:
    student_path, tokenizer, folder = map(Path, sys.argv[1:])
    student = load_file(student_path)
    check(student)
    write(folder / "config.json", CONFIG, indent=2)
    write(folder / "tokenizer_config.json", TOKENIZER_CONFIG, indent=2)
    write(folder / "tokenizer.json", without_limits(tokenizer), separators=(",", ":"))
    write(folder / "modules.json", MODULES, indent=2)
    write(folder / "sentence_bert_config.json", TRANSFORMER, indent=2)
    write(folder / "config_sentence_transformers.json", SENTENCE_TRANSFORMERS, indent=2)
    write(folder / "1_Pooling" / "config.json", POOLING, indent=2)
    # The normalisation has nothing to configure, and git keeps no empty folder.
    write(folder / "2_Normalize" / "config.json", {}, indent=2)
    save_file(student, folder / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
