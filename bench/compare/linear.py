"""Fletcher's linear layers beside cuBLASLt's on one NVIDIA card: why there is no cuBLASLt in Fletcher.

    cargo build --release -p fletcher-backend --example cuda_rate
    python linear.py CUDA_RATE [--record FILE] [--tokens 16896]

CUDA_RATE is the example. Each linear layer of three models' shapes is launched time and again over so many
tokens, in f16, by `cuda_rate SHAPE --linear` and by torch.nn.functional.linear, which has cuBLASLt add the
bias. Fletcher's first layer of the feed-forward network applies the exact GELU too, for which torch takes
another kernel: cuBLASLt has only the tanh form. Rounds alternate; medians are compared.
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


def theirs(cols: int, rows: int, tokens: int, seconds: float, gelu: bool) -> float:
    """Microseconds of a call."""
    linear = torch.nn.functional.linear
    call = (lambda *of: torch.nn.functional.gelu(linear(*of))) if gelu else linear
    x = torch.randn(tokens, cols, device="cuda", dtype=torch.float16)
    w = torch.randn(rows, cols, device="cuda", dtype=torch.float16) / cols**0.5
    bias = torch.randn(rows, device="cuda", dtype=torch.float16)
    calls, start = -20, time.perf_counter()
    while calls <= 0 or time.perf_counter() - start < seconds:
        for _ in range(20):
            call(x, w, bias)
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
    times: dict[tuple[int, int, str], tuple[list[float], list[float], list[float]]] = {}
    for _ in range(args.rounds):
        for shape in SHAPES:
            for key, mine in ours(args.cuda_rate, shape, args.tokens, args.seconds).items():
                cols, rows, epilogue = key
                all_times = times.setdefault(key, ([], [], []))
                all_times[0].append(mine)
                for gelu in (False, True)[: 1 + (epilogue == "activate")]:
                    all_times[1 + gelu].append(theirs(cols, rows, args.tokens, args.seconds, gelu))
    record = {
        "date": datetime.date.today().isoformat(),
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "command": f"bench/compare/linear.py CUDA_RATE --tokens {args.tokens}",
        "layers": [],
    }
    with_gelu = {"fletcher, bias and GELU": 0, "cublaslt, bias": 1, "cublaslt, bias; then GELU": 2}
    without = {"fletcher, bias": 0, "cublaslt, bias": 1}
    for (cols, rows, epilogue), all_times in times.items():
        flop = 2 * args.tokens * cols * rows
        ways = with_gelu if epilogue == "activate" else without
        medians = {way: statistics.median(all_times[at]) for way, at in ways.items()}
        record["layers"].append({
            "columns": cols,
            "rows": rows,
            "us": {way: round(time, 1) for way, time in medians.items()},
            "tflops": {way: round(flop / time / 1e6) for way, time in medians.items()},
        })
        print(json.dumps(record["layers"][-1]), flush=True)
    if args.record:
        args.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
