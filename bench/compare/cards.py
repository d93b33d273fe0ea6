"""One NVIDIA card beside several, on the same weights and ids, in one run.

    cargo build --release -p fletcher
    python cards.py FLETCHER [--cards 2] [--record FILE] [--shapes minilm-l6,bert-base]

Each round measures `fletcher bench` on every card alone and on all of them together; the medians are
compared. Before that texts are embedded by one card and by all: every row must be there, and its
vectors must agree (a block's composition may change the last bits of f16 sums).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

import torch

from cuda import SHAPES, write_model

# Sequences of a measurement, so that it takes some seconds.
ROWS = {"bert-tiny": 12_000_000, "minilm-l6": 800_000, "bert-base": 160_000}
BATCH = 1024


def least_cosine(fletcher: str, devices: list[str]) -> float:
    """Embeds texts on each of the devices; the least cosine of a text's vectors to the first's."""
    texts = "".join(f"{n} words of a text that is {'very ' * (n % 40)}long\n" for n in range(20_000))
    outputs = []
    for device in devices:
        command = [fletcher, "embed", "--device", device, "--output-format", "jsonl"]
        lines = subprocess.run(command, input=texts.encode(), stdout=subprocess.PIPE, check=True).stdout.splitlines()
        assert [json.loads(line)["id"] for line in lines] == list(range(texts.count("\n"))), "rows are missing"
        outputs.append(torch.tensor([json.loads(line)["embedding"] for line in lines], dtype=torch.float64))
    cosine = torch.nn.functional.cosine_similarity
    least = min(cosine(output, outputs[0]).min().item() for output in outputs)
    assert least > 0.9999, f"the cards do not agree: cosine {least}"
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("fletcher")
    parser.add_argument("--cards", type=int, default=2)
    parser.add_argument("--shapes", default="minilm-l6,bert-base")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    single = [f"cuda:{card}" for card in range(args.cards)]
    together = "cuda:" + ",".join(str(card) for card in range(args.cards))
    record = {
        "date": datetime.date.today().isoformat(),
        "cards": [torch.cuda.get_device_name(card) for card in range(args.cards)],
        "cpus": os.cpu_count(),
        "command": f"bench/compare/cards.py FLETCHER --cards {args.cards} --shapes {args.shapes}",
        "least_cosine_of_20000_texts": least_cosine(args.fletcher, [*single, together]),
        "shapes": {},
    }
    for name in args.shapes.split(","):
        rates: dict[str, list[float]] = {}
        blocks: dict[str, int] = {}
        with tempfile.TemporaryDirectory() as scratch:
            folder, report = Path(scratch) / name, Path(scratch) / "report.json"
            folder.mkdir()
            write_model(folder, SHAPES[name])
            for _ in range(args.rounds):
                for device in [*single, together]:
                    rows = ROWS[name] * (args.cards if device == together else 1)
                    command = [args.fletcher, "bench", "-m", folder, "--device", device, "--sizes", str(rows),
                               "--batch-size", str(BATCH), "--json", report]
                    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                    measured = json.loads(report.read_text())
                    rates.setdefault(device, []).append(measured["sizes"]["runs"][0]["vectors_per_second"])
                    if device == together:
                        blocks = {one["name"]: one["blocks"] for one in measured["devices"]}
        medians = {device: round(statistics.median(all_rates)) for device, all_rates in rates.items()}
        best = max(medians[device] for device in single)
        record["shapes"][name] = {
            "batch": BATCH,
            "vectors_per_second": medians,
            "rounds": {device: [round(rate) for rate in all_rates] for device, all_rates in rates.items()},
            "ratio_to_the_best_card": round(medians[together] / best, 3),
            "blocks_of_the_last_round": blocks,
        }
        print(name, json.dumps(record["shapes"][name]), flush=True)
    if args.record:
        args.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
