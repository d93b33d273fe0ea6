"""Writes the headline benchmark's model: BERT-tiny's shape with random weights.

    python bert_tiny.py SOURCE FOLDER

SOURCE is any BERT sentence-transformers folder (all-MiniLM-L6-v2, say); its tokenizer is taken.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from transformers import BertConfig, BertModel

source, folder = map(Path, sys.argv[1:])
torch.manual_seed(20240601)
shape = {
    "vocab_size": 30522,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 512,
}
BertModel(BertConfig(**shape)).save_pretrained(folder)
for name in ("tokenizer.json", "tokenizer_config.json", "modules.json", "sentence_bert_config.json"):
    shutil.copy(source / name, folder / name)
pooling = json.loads((source / "1_Pooling/config.json").read_text())
pooling["word_embedding_dimension"] = shape["hidden_size"]
(folder / "1_Pooling").mkdir(exist_ok=True)
(folder / "1_Pooling/config.json").write_text(json.dumps(pooling, indent=1))
