"""The published table: BERT-tiny's shape over 5,000 to 500,000 sequences, Fletcher beside PyTorch MPS, f16 and f32.

    pip install torch transformers
    python bench/compare/mps.py                                   # on a Mac; builds Fletcher first
    python bench/compare/mps.py --sizes 64,256 --device vulkan --peer cpu    # elsewhere: does the script work?

Sequences of 64 tokens in batches of 32, ids on the host to pooled, normalised vectors on the host, random
weights, the same for both; 8 vectors are compared first. The runs of a row follow one another. PyTorch runs
eagerly with SDPA attention and nothing to mask, its best of calls of 32, of 256 and of 1,024 rows is told too.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from gpu import LEAST_COSINE, ROOT, Peer, sequences, write_model

SIZES = "5000,10000,50000,100000,250000,500000"
ROWS, LARGER_ROWS = 32, (256, 1024)


def peer_rate(peer: Peer, size: int, rows: int) -> float:
    """Vectors a second over a run of `size` sequences in calls of `rows`."""
    ids = sequences(rows)
    for _ in range(3):
        peer.embed(ids)
    start, done = time.perf_counter(), 0
    while done < size:
        peer.embed(ids)
        done += rows
    return done / (time.perf_counter() - start)


def fletcher(program: Path, folder: Path, device: str, precision: str, sizes: list[int], rows: int) -> list[dict]:
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        command = [program, "bench", "-m", folder, "--device", device, "--precision", precision, "--batch-size", rows,
                   "--sizes", ",".join(map(str, sizes)), "--json", report.name]
        run = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if run.returncode != 0:
            sys.exit(f"{' '.join(map(str, command))}: {run.stderr}")
        return json.loads(Path(report.name).read_text())["sizes"]["runs"]


def check(program: Path, folder: Path, device: str, precision: str, peer: Peer) -> float:
    command = [program, folder, device, precision, "64"]
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: {run.stderr}")
    ours = torch.tensor(json.loads(run.stdout.splitlines()[0])["vectors"], dtype=torch.float64)
    cosine = torch.nn.functional.cosine_similarity(ours, peer.embed(sequences(8)).double()).min().item()
    if not cosine >= LEAST_COSINE[precision]:
        sys.exit(f"{precision}: the vectors differ, least cosine {cosine}")
    return cosine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="metal")
    parser.add_argument("--peer", default="mps", choices=["mps", "cuda", "cpu"])
    parser.add_argument("--sizes", default=SIZES)
    parser.add_argument("--precision", nargs="+", default=["f16", "f32"], choices=["f16", "f32"])
    parser.add_argument("--no-build", action="store_true", help="the programs are in target/release already")
    parser.add_argument("--record", type=Path, help="write the table as JSON too")
    args = parser.parse_args()
    if not args.no_build:
        for what in (["-p", "fletcher"], ["-p", "fletcher-backend", "--example", "wgpu_rate"]):
            subprocess.run(["cargo", "build", "--release", "--locked", *what], cwd=ROOT, check=True)
    program, rate = ROOT / "target/release/fletcher", ROOT / "target/release/examples/wgpu_rate"
    sizes = [int(size) for size in args.sizes.split(",")]
    machine = f"{platform.platform()}, {platform.processor() or platform.machine()}"
    print(f"{machine}, torch {torch.__version__} on {args.peer}, {datetime.date.today().isoformat()}")
    print("64 tokens, batches of 32; vectors a second\n")
    print("| precision | sequences | PyTorch | PyTorch, larger calls | Fletcher | ratio | ratio to the larger |")
    print("|---|---|---|---|---|---|---|")
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model("bert-tiny", folder)
        for precision in args.precision:
            peer = Peer(folder, args.peer, precision)
            cosine = check(rate, folder, args.device, precision, peer)
            for size in sizes:
                ours = fletcher(program, folder, args.device, precision, [size], ROWS)[0]["vectors_per_second"]
                theirs = peer_rate(peer, size, ROWS)
                larger = max(peer_rate(peer, size, rows) for rows in LARGER_ROWS)
                print(f"| {precision} | {size:,} | {theirs:,.0f} | {larger:,.0f} | {ours:,.0f} | {ours / theirs:.2f} | "
                      f"{ours / larger:.2f} |", flush=True)
                results.append({"precision": precision, "sequences": size, "pytorch_per_s": round(theirs),
                                "pytorch_larger_calls_per_s": round(larger), "fletcher_per_s": round(ours),
                                "least_cosine": round(cosine, 7)})
    if args.record:
        record = {"date": datetime.date.today().isoformat(), "machine": machine, "torch": torch.__version__,
                  "device": args.device, "peer": args.peer,
                  "command": "bench/compare/mps.py " + " ".join(sys.argv[1:]), "results": results}
        args.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
