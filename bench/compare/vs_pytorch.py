"""Fletcher beside PyTorch: `transformers.BertModel` with SDPA attention, eager, or in bf16 by autocast.

    python vs_pytorch.py MODEL [--precision f32|bf16] [--texts corpus.jsonl] [--record FOLDER]
"""

import pairing
import numpy as np
import torch
import transformers


class PyTorch(pairing.BatchPeer):
    name = "PyTorch"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}

    def __init__(self, folder, precision: str) -> None:
        super().__init__(folder)
        torch.set_num_threads(pairing.THREADS)
        self.first = pairing.pools_first(folder)
        self.bf16 = precision == "bf16"
        self.model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    def batches(self, batches):
        return [self.batch(torch.from_numpy(ids), torch.from_numpy(mask)) for ids, mask in batches]

    def batch(self, ids: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
            weight = mask.unsqueeze(-1).float()
            mean = lambda: (hidden * weight).sum(1) / weight.sum(1)
            pooled = hidden[:, 0] if self.first else mean()
            return torch.nn.functional.normalize(pooled, dim=-1).numpy()


if __name__ == "__main__":
    args = pairing.arguments(__doc__, ["f32", "bf16"])
    pairing.compare(args, PyTorch(args.model, args.precision))
