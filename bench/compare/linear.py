"""Fletcher's linear layers beside cuBLASLt's on one NVIDIA card: why there is no cuBLASLt in Fletcher.

    cargo build --release -p fletcher-backend --example cuda_rate
    python linear.py CUDA_RATE [--record FILE] [--tokens 16896]

CUDA_RATE is the example. Each linear layer of three models' shapes is launched time and again over so many
tokens, in f16, by `cuda_rate SHAPE --linear` and by torch.nn.functional.linear, which has cuBLASLt add the
bias. Fletcher's first layer of the feed-forward network applies GELU too; torch's does not, since cuBLASLt
has only the tanh form. Rounds alternate; medians are compared.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import statistics
import subprocess
import time
from pathlib import Path

import torch

SHAPES = ("minilm", "base", "large")
LINE = re.compile(r"linear (\d+) to (\d+), (\w+): ([\d.]+) us")


def ours(program: str, shape: str, tokens: int, seconds: float) -> dict[tuple[int, int, str], float]:
    command = [program, "f16", shape, "--linear", str(tokens), "--seconds", str(seconds)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    found = {(int(m[1]), int(m[2]), m[3]): float(m[4]) for m in map(LINE.match, lines) if m}
    if len(found) != 4:
        raise SystemExit(f"{' '.join(command)} said: {lines}")
    return found


def theirs(cols: int, rows: int, tokens: int, seconds: float) -> float:
    """Microseconds of a call."""
    x = torch.randn(tokens, cols, device="cuda", dtype=torch.float16)
    w = torch.randn(rows, cols, device="cuda", dtype=torch.float16) / cols**0.5
    bias = torch.randn(rows, device="cuda", dtype=torch.float16)
    calls, start = -20, time.perf_counter()
    while calls <= 0 or time.perf_counter() - start < seconds:
        for _ in range(20):
            torch.nn.functional.linear(x, w, bias)
        torch.cuda.synchronize()
        calls += 20
        if calls == 0:
            start = time.perf_counter()
    return (time.perf_counter() - start) / calls * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("cuda_rate")
    parser.add_argument("--record", type=Path)
    parser.add_argument("--tokens", type=int, default=16896)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.15, help="of each measurement")
    args = parser.parse_args()
    times: dict[tuple[int, int, str], tuple[list[float], list[float]]] = {}
    for _ in range(args.rounds):
        for shape in SHAPES:
            for key, mine in ours(args.cuda_rate, shape, args.tokens, args.seconds).items():
                both = times.setdefault(key, ([], []))
                both[0].append(mine)
                both[1].append(theirs(key[0], key[1], args.tokens, args.seconds))
    record = {
        "date": datetime.date.today().isoformat(),
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "command": f"bench/compare/linear.py CUDA_RATE --tokens {args.tokens}",
        "layers": [],
    }
    for (cols, rows, epilogue), both in times.items():
        mine, peer = (statistics.median(one) for one in both)
        tflops = 2 * args.tokens * cols * rows / 1e6
        record["layers"].append({
            "columns": cols,
            "rows": rows,
            "epilogue": "bias and GELU" if epilogue == "activate" else "bias",
            "fletcher_us": round(mine, 1),
            "fletcher_tflops": round(tflops / mine),
            "cublaslt_bias_us": round(peer, 1),
            "cublaslt_tflops": round(tflops / peer),
            "ratio": round(peer / mine, 2),
        })
        print(json.dumps(record["layers"][-1]), flush=True)
    if args.record:
        args.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
