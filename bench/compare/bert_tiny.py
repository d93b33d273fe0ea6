"""Writes the headline benchmark's model: BERT-tiny's shape with random weights.

    python bert_tiny.py [--positions N] SOURCE FOLDER

SOURCE is any BERT sentence-transformers folder (all-MiniLM-L6-v2, say); its tokenizer is taken. With
more positions than BERT's 512 the model is for measuring time over length.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from transformers import BertConfig, BertModel

parser = argparse.ArgumentParser()
parser.add_argument("--positions", type=int, default=512)
parser.add_argument("source", type=Path)
parser.add_argument("folder", type=Path)
args = parser.parse_args()
source, folder = args.source, args.folder
torch.manual_seed(20240601)
shape = {
    "vocab_size": 30522,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 512,
    "max_position_embeddings": args.positions,
}
BertModel(BertConfig(**shape)).save_pretrained(folder)
for name in ("tokenizer.json", "tokenizer_config.json", "modules.json", "sentence_bert_config.json"):
    shutil.copy(source / name, folder / name)
if args.positions != 512:
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"model_max_length": args.positions}))
    sentence = json.loads((folder / "sentence_bert_config.json").read_text())
    (folder / "sentence_bert_config.json").write_text(json.dumps(sentence | {"max_seq_length": args.positions}))
pooling = json.loads((source / "1_Pooling/config.json").read_text())
pooling["word_embedding_dimension"] = shape["hidden_size"]
(folder / "1_Pooling").mkdir(exist_ok=True)
(folder / "1_Pooling/config.json").write_text(json.dumps(pooling, indent=1))
