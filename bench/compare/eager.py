"""Fletcher beside transformers in eager f32, in one run, on the same weights and texts.

    pip install -r requirements.txt
    cargo build --release -p fletcher-backend --example resident
    python eager.py MODEL [--record FILE]

MODEL is a BERT folder with a WordPiece tokenizer. Two workloads: sequences of exactly 64 tokens in
batches of 32, and texts of 3 to 180 words. transformers gets ids, tokenised outside the clock, sorted
by length and padded per batch of 32; Fletcher gets texts and tokenises inside the clock. Rounds are
interleaved; the medians are compared, and the vectors must agree.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

THREADS = len(os.sched_getaffinity(0))
os.environ["OMP_NUM_THREADS"] = str(THREADS)
# Eager PyTorch gains a tenth when the allocator keeps freed memory; give it that.
if "MALLOC_TRIM_THRESHOLD_" not in os.environ:
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 33)}
    os.execv(sys.executable, [sys.executable, *sys.argv])

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

BATCH = 32
ROOT = Path(__file__).resolve().parents[2]


class Peer:
    """BertModel with SDPA attention, mean pooling and L2 normalisation."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(THREADS)
        self.model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def prepare(self, texts: list[str], limit: int) -> list[list[int]]:
        return self.tokenizer(texts, truncation=True, max_length=limit, padding=False)["input_ids"]

    def embed(self, rows: list[list[int]]) -> np.ndarray:
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
        out = [None] * len(rows)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            width = max(len(rows[row]) for row in chosen)
            ids = torch.zeros(len(chosen), width, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for at, row in enumerate(chosen):
                ids[at, : len(rows[row])] = torch.tensor(rows[row])
                mask[at, : len(rows[row])] = 1
            with torch.inference_mode():
                hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
                weight = mask.unsqueeze(-1).float()
                mean = (hidden * weight).sum(1) / weight.sum(1)
                for row, vector in zip(chosen, torch.nn.functional.normalize(mean, dim=-1)):
                    out[row] = vector.numpy()
        return np.stack(out)


class Fletcher:
    """The resident example, spoken to over pipes."""

    def __init__(self, folder: Path) -> None:
        program = ROOT / "target/release/examples/resident"
        self.process = subprocess.Popen(
            [program, folder, str(THREADS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def embed(self, texts: list[str]) -> np.ndarray:
        self.process.stdin.write(json.dumps({"texts": texts}).encode() + b"\n")
        self.process.stdin.flush()
        head = json.loads(self.process.stdout.readline())
        size = head["n"] * head["dim"] * 4
        return np.frombuffer(self.process.stdout.read(size), np.float32).reshape(head["n"], -1)


def words(tokenizer: transformers.PreTrainedTokenizerBase) -> list[str]:
    """Whole words of the vocabulary: a text of n of them has n + 2 tokens."""
    vocabulary = tokenizer.get_vocab()
    return sorted(word for word in vocabulary if word.isascii() and word.isalpha() and word.islower())


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=int, default=256, help="tokens at which texts are cut")
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    peer, ours = Peer(args.model), Fletcher(args.model)
    draw = random.Random(11)
    vocabulary = words(peer.tokenizer)
    fixed = [" ".join(draw.choices(vocabulary, k=62)) for _ in range(args.rows)]
    lengths = [round(3 * 60 ** draw.random()) for _ in range(args.rows)]
    mixed = [" ".join(draw.choices(vocabulary, k=length)) for length in lengths]
    record = {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu_model(),
        "threads": THREADS,
        "command": f"bench/compare/eager.py {args.model.name} --rows {args.rows}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "workloads": {},
    }
    for name, texts in (("64 tokens", fixed), ("5 to 182 tokens", mixed)):
        ids = peer.prepare(texts, args.limit)
        assert name != "64 tokens" or all(len(row) == 64 for row in ids)
        difference = float(np.abs(peer.embed(ids) - ours.embed(texts)).max())
        assert difference < 1e-5, difference
        seconds: dict[str, list[float]] = {"transformers": [], "fletcher": []}
        for _ in range(args.rounds):
            for engine, run in (
                ("transformers", lambda: peer.embed(ids)),
                ("fletcher", lambda: ours.embed(texts)),
            ):
                start = time.perf_counter()
                run()
                seconds[engine].append(time.perf_counter() - start)
        rates = {engine: args.rows / statistics.median(times) for engine, times in seconds.items()}
        ratios = [a / b for a, b in zip(seconds["transformers"], seconds["fletcher"])]
        record["workloads"][name] = {
            "rows": args.rows,
            "max_abs_difference": difference,
            "vectors_per_second": {engine: round(rate, 1) for engine, rate in rates.items()},
            "ratio_median": round(statistics.median(ratios), 2),
            "ratio_min": round(min(ratios), 2),
            "ratio_max": round(max(ratios), 2),
        }
    text = json.dumps(record, indent=1)
    print(text)
    if args.record:
        args.record.parent.mkdir(parents=True, exist_ok=True)
        args.record.write_text(text + "\n")


if __name__ == "__main__":
    main()
