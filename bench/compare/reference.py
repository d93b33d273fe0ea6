"""Vectors of `transformers` in f32 on one core's worth of trust: what both engines are held against.

    python reference.py FOLDER LIMIT < texts (one JSON string a line) > vectors (f32)

Pooled as the folder says, by the first token or the mean. A process of its own, so that loading PyTorch changes nothing in the process that measures.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModel

folder, limit = Path(sys.argv[1]), int(sys.argv[2])
model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
tokenizer.no_padding()
tokenizer.enable_truncation(limit)
pooling = json.loads((folder / "1_Pooling/config.json").read_text())
first = pooling["pooling_mode_cls_token"]
vectors = []
for line in sys.stdin:
    ids = torch.tensor([tokenizer.encode(json.loads(line)).ids])
    with torch.inference_mode():
        hidden = model(input_ids=ids).last_hidden_state[0]
    vectors.append(torch.nn.functional.normalize(hidden[0] if first else hidden.mean(0), dim=0).numpy())
sys.stdout.buffer.write(np.stack(vectors).astype(np.float32).tobytes())
