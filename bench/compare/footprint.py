"""Cold start and memory of the program: from its start to its first vector, idle, and at the peak.

    python footprint.py [--model default] [--fletcher PROGRAM] [--record FOLDER]

Peers' values are in the issue tracker and in `bench/README.md`; they need seconds and hundreds of
megabytes, so they need no pairing.
"""

import argparse
import datetime
import json
import statistics
import subprocess
import time
from pathlib import Path

import pairing

STARTS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="default")
    parser.add_argument("--fletcher", type=Path, default=pairing.ROOT / "target/release/fletcher")
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    environment = {}
    command = [args.fletcher, "embed", "-m", args.model, "the quick brown fox"]
    starts = []
    for _ in range(STARTS):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        starts.append(1e3 * (time.perf_counter() - start))
    starts.sort()
    report = Path("/tmp") / f"fletcher-footprint-{time.time_ns()}.json"
    bench = [args.fletcher, "bench", "-m", args.model, "--sizes", "20000", "--json", report]
    subprocess.run(bench, check=True, stdout=subprocess.DEVNULL, env=environment)
    measured = json.loads(report.read_text())
    report.unlink()
    record = {
        "kind": "footprint",
        "date": datetime.date.today().isoformat(),
        "command": f"bench/compare/footprint.py --model {Path(args.model).name}",
        "machine": pairing.machine(),
        "model": Path(args.model).name,
        "first_vector_ms": {
            "starts": STARTS,
            "median": round(statistics.median(starts), 1),
            "min": round(starts[0], 1),
            "p90": round(starts[int(0.9 * STARTS)], 1),
        },
        "idle": measured["idle"],
        "peak": measured["sizes"]["runs"][-1]["memory"],
    }
    print(json.dumps(record, indent=1))
    if args.record:
        args.record.mkdir(parents=True, exist_ok=True)
        name = f"{record['date']}-footprint-{record['model']}.json"
        (args.record / name).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
