"""Fletcher beside sentence-transformers: `encode(batch_size=32)` on PyTorch.

    python vs_sentence_transformers.py MODEL [--texts corpus.jsonl] [--record FOLDER]
"""

import pairing
import numpy as np
import sentence_transformers
import torch


class SentenceTransformers(pairing.Peer):
    name = "sentence-transformers"
    versions = {
        "sentence-transformers": sentence_transformers.__version__,
        "torch": torch.__version__,
    }

    def __init__(self, folder) -> None:
        torch.set_num_threads(pairing.THREADS)
        self.model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
        self.model.max_seq_length = pairing.LIMIT
        self.words = {}
        for word in pairing.words(folder):
            self.words[self.model.tokenizer.convert_tokens_to_ids(word)] = word

    def run_ids(self, ids: np.ndarray) -> np.ndarray:
        # It takes texts only: those that have exactly these ids.
        return self.run_texts([" ".join(self.words[at] for at in row[1:-1]) for row in ids.tolist()])

    def run_texts(self, texts: list[str]) -> np.ndarray:
        return self.model.encode(
            texts, batch_size=pairing.BATCH, normalize_embeddings=True, show_progress_bar=False
        )


if __name__ == "__main__":
    args = pairing.arguments(__doc__, ["f32"])
    pairing.compare(args, SentenceTransformers(args.model))
