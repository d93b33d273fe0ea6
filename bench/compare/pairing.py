"""What all comparisons share: Fletcher as a resident process, workloads, interleaved rounds, a record.

A comparison is a script `vs_PEER.py` that hands a `Peer` to `compare`. Fletcher and the peer get the
same weights and the same ids or texts; rounds alternate, so that a slow minute of the machine hits
both; medians and the range of the rounds' ratios are kept. Before anything is timed, the vectors of
both are compared with those of `transformers` in f32 (`reference.py`).

Everything a peer needs is prepared outside of the clock, except what its user would wait for:
in the workload of ids that is the model alone, in those of texts it is tokenising too.
"""

import argparse
import datetime
import hashlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
THREADS = len(os.sched_getaffinity(0))
BATCH = 32
LIMIT = 256  # tokens at which texts are cut, by both
REFERENCE_TEXTS = 200

ENVIRONMENT = {
    # Thread counts have to be set before any library loads.
    **{f"{library}_NUM_THREADS": str(THREADS) for library in ("OMP", "MKL", "OPENBLAS", "RAYON")},
    "TOKENIZERS_PARALLELISM": "true",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "OPENVINO_TELEMETRY": "0",
    # glibc gives the peers' freed memory back to the system on every call unless told not to; that
    # would cost PyTorch a sixth of its speed.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
}
if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
    os.environ.update(ENVIRONMENT)
    os.execv(sys.executable, [sys.executable, *sys.argv])

import numpy as np  # noqa: E402


class Peer:
    """An engine to compare with. `name`, `precision` and `versions` go into the record."""

    name: str
    precision: str
    versions: dict[str, str]
    process = None  # of a server, for its memory and its share of the machine

    def run_ids(self, ids: np.ndarray) -> np.ndarray:
        """Vectors of sequences of equal length, in batches of BATCH."""
        raise NotImplementedError

    def run_texts(self, texts: list[str]) -> np.ndarray:
        """Vectors of texts, tokenised here, in the order given."""
        raise NotImplementedError

    def run_one(self, text: str) -> None:
        """One text, as a user waits for it."""
        self.run_texts([text])


class BatchPeer(Peer):
    """A peer that takes padded batches of ids: tokenises, sorts by length, pads, restores order."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(LIMIT)

    def batches(self, batches: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
        """Vectors of each (ids, mask)."""
        raise NotImplementedError

    def run_ids(self, ids: np.ndarray) -> np.ndarray:
        parts = [ids[at : at + BATCH] for at in range(0, len(ids), BATCH)]
        return np.concatenate(self.batches([(part, np.ones_like(part)) for part in parts]))

    def run_texts(self, texts: list[str]) -> np.ndarray:
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts)]
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
        parts = [order[at : at + BATCH] for at in range(0, len(order), BATCH)]
        vectors = self.batches([padded([rows[row] for row in part]) for part in parts])
        out = np.empty((len(rows), vectors[0].shape[1]), np.float32)
        for part, values in zip(parts, vectors):
            out[part] = values
        return out


def pools_first(folder: Path) -> bool:
    """Whether the model pools by the first token; else by the mean."""
    return json.loads((folder / "1_Pooling/config.json").read_text())["pooling_mode_cls_token"]


def padded(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros_like(ids)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = row
        mask[at, : len(row)] = 1
    return ids, mask


class Fletcher:
    """`fletcher bench --pair`, spoken to over pipes; it holds its own stop-watch."""

    def __init__(self, program: Path, folder: Path, precision: str, device: str) -> None:
        command = [program, "bench", "--pair", "-m", folder, "--precision", precision]
        command += ["--device", device, "--threads", str(THREADS), "--batch-size", str(BATCH)]
        command += ["--seq-len", "64"]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )

    def ask(self, **request) -> dict:
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit("fletcher ended; its message is above")
        return json.loads(answer)

    def vectors(self, name: str) -> np.ndarray:
        head = self.ask(vectors=name)
        size = head["rows"] * head["dim"] * 4
        values = np.frombuffer(self.process.stdout.read(size), np.float32)
        return values.reshape(head["rows"], head["dim"])


class Foreign:
    """The share of the machine that neither engine used: a record above a few percent is noise."""

    def __init__(self, *processes) -> None:
        self.pids = [process.pid for process in processes if process]
        self.start = self.now()

    def now(self) -> tuple[float, float, float]:
        tick = os.sysconf("SC_CLK_TCK")
        cpu = [int(value) for value in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        busy = (sum(cpu[:3]) + sum(cpu[5:8])) / tick
        own = sum(os.times()[:4])
        for pid in self.pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            own += (int(fields[11]) + int(fields[12])) / tick
        return busy, own, time.monotonic()

    def share(self) -> float:
        busy, own, wall = (b - a for a, b in zip(self.start, self.now()))
        return max(0.0, (busy - own) / (wall * os.cpu_count()))


def resident(pid: int | str = "self") -> dict[str, float]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = {line.split(":")[0]: line.split() for line in lines}
    return {
        "resident_mib": round(int(fields["VmRSS"][1]) / 1024, 1),
        "peak_mib": round(int(fields["VmHWM"][1]) / 1024, 1),
    }


def machine() -> dict:
    info = Path("/proc/cpuinfo").read_text()
    field = lambda name: next((l.split(":", 1)[1].strip() for l in info.splitlines() if l.startswith(name)), "")
    known = "avx2 fma avx512f avx512_bf16 avx512_vnni amx_bf16 amx_int8 asimddp i8mm bf16".split()
    flags = set((field("flags") or field("Features")).split())
    return {
        "cpu": field("model name") or platform.processor(),
        "cores": THREADS,
        "flags": [flag for flag in known if flag in flags],
        "system": f"{platform.system()} {platform.machine()}",
    }


def words(folder: Path) -> list[str]:
    """Whole words of the vocabulary: a text of n of them has n + 2 tokens."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    return sorted(w for w in vocabulary if w.isascii() and w.isalpha() and w.islower() and len(w) > 1)


def sequences(folder: Path, count: int) -> np.ndarray:
    """Sequences of 64 ids: whole words between the special tokens."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    draw = random.Random(11)
    known = [vocabulary[word] for word in words(folder)]
    cls, sep = vocabulary["[CLS]"], vocabulary["[SEP]"]
    return np.array([[cls, *draw.choices(known, k=62), sep] for _ in range(count)], np.int64)


def texts_of(path: Path, count: int) -> list[str]:
    """As many texts, taken evenly from the file, so that a part has the lengths of the whole."""
    lines = path.read_text().splitlines()
    chosen = [lines[at * len(lines) // count] for at in range(min(count, len(lines)))]
    return [json.loads(line)["text"] for line in chosen]


def cosines(vectors: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    unit = lambda m: m / np.linalg.norm(m, axis=1, keepdims=True)
    cosine = (unit(vectors.astype(np.float64)) * unit(reference.astype(np.float64))).sum(1)
    near = lambda m: np.argsort(-(unit(m) @ unit(m).T) + 2 * np.eye(len(m)), axis=1)[:, :10]
    pairs = zip(near(vectors), near(reference))
    overlap = statistics.mean(len(set(a) & set(b)) / 10 for a, b in pairs)
    return {
        "min": round(float(cosine.min()), 6),
        "mean": round(float(cosine.mean()), 6),
        "top10_overlap": round(overlap, 4),
    }


def reference_vectors(folder: Path, texts: list[str]) -> np.ndarray:
    """They are the same for every precision and peer, so they are kept beside the model, too."""
    script = Path(__file__).with_name("reference.py")
    lines = "\n".join(json.dumps(text) for text in texts).encode()
    name = hashlib.sha256(lines + str(LIMIT).encode()).hexdigest()[:16]
    path = folder / f"fletcher-compare-{name}.f32"
    if not path.exists():
        command = [sys.executable, script, folder, str(LIMIT)]
        path.write_bytes(subprocess.run(command, input=lines, check=True, stdout=subprocess.PIPE).stdout)
    return np.frombuffer(path.read_bytes(), np.float32).reshape(len(texts), -1)


def rounds(count: int, fletcher, peer) -> dict[str, list[float]]:
    """Seconds (or milliseconds) of each round; who goes first alternates."""
    times: dict[str, list[float]] = {"fletcher": [], "peer": []}
    for number in range(count):
        order = [("fletcher", fletcher), ("peer", peer)]
        for engine, run in order if number % 2 else reversed(order):
            # Thread pools spin for a while after their last task, at the cost of whoever is next.
            time.sleep(0.1)
            times[engine].append(run())
    return times


def clocked(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def summary(times: dict[str, list[float]], unit: str, rows: int | None) -> dict:
    ratios = [peer / own for peer, own in zip(times["peer"], times["fletcher"])]
    value = lambda engine: statistics.median(times[engine])
    shown = (lambda e: round(rows / value(e), 1)) if rows else (lambda e: round(value(e), 4))
    return {
        "unit": unit,
        **({"rows": rows} if rows else {}),
        "fletcher": shown("fletcher"),
        "peer": shown("peer"),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
    }


def arguments(description: str, precisions: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("--precision", choices=precisions, default=precisions[0])
    parser.add_argument("--fletcher-precision", help="if it is not the peer's")
    parser.add_argument("--device", default="cpu", help="Fletcher's --device")
    parser.add_argument("--rows", type=int, default=2048, help="sequences of 64 tokens")
    parser.add_argument("--texts", type=Path, help="JSONL with `text`, for the workload end to end")
    parser.add_argument("--text-rows", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", type=Path, help="folder to write the record to")
    parser.add_argument("--fletcher", type=Path, default=ROOT / "target/release/fletcher")
    parser.add_argument("--tei", type=Path, help="text-embeddings-router, for vs_tei.py")
    parser.add_argument("--tei-backend", choices=["ort", "candle"], default="ort")
    args = parser.parse_args()
    args.fletcher_precision = args.fletcher_precision or args.precision.split("-")[0]
    return args


def compare(args: argparse.Namespace, peer: Peer) -> None:
    own = Fletcher(args.fletcher, args.model, args.fletcher_precision, args.device)
    loaded = {"fletcher": own.ask(memory=True), "peer": resident(getattr(peer.process, "pid", "self"))}
    ids = sequences(args.model, args.rows - args.rows % BATCH)
    own.ask(set="ids", ids=ids.tolist())
    texts = texts_of(args.texts, args.text_rows) if args.texts else []
    own.ask(set="texts", texts=texts)
    checked = texts[:: max(1, len(texts) // REFERENCE_TEXTS)][:REFERENCE_TEXTS]
    checked = checked or [" ".join(words(args.model)[at * 50 : at * 50 + 40]) for at in range(100)]
    own.ask(set="checked", texts=checked)
    reference = reference_vectors(args.model, checked)
    quality = {
        "fletcher": cosines(own.vectors("checked"), reference),
        "peer": cosines(peer.run_texts(checked), reference),
    }
    print(json.dumps({"cosine_to_f32": quality}))

    foreign = Foreign(own.process, peer.process)
    workloads = {}
    # As many batches of ids in flight as OpenVINO's queue holds: one for each thread.
    clients = {"clients": max(2, THREADS)} if args.device == "cpu" else {}
    own_run = lambda name: own.ask(run=name, **clients)["seconds"]

    def throughput(name: str, label: str, unit: str, rows, run_peer) -> None:
        own_run(name), run_peer()  # warm-up
        times = rounds(args.rounds, lambda: own_run(name), lambda: clocked(run_peer))
        workloads[label] = summary(times, unit, rows)
        print(json.dumps({label: workloads[label]}), flush=True)

    throughput("ids", "64 tokens", "vectors/s", len(ids), lambda: peer.run_ids(ids))
    if texts:
        throughput("texts", "texts", "texts/s", len(texts), lambda: peer.run_texts(texts))
    for tokens in (16, 128):
        text = " ".join(words(args.model)[: tokens - 2])
        own.ask(set="one", texts=[text] * 50)
        one = lambda: statistics.median(own.ask(one="one")["ms"])
        of_peer = lambda: statistics.median(1e3 * clocked(lambda: peer.run_one(text)) for _ in range(50))
        one(), of_peer()
        label = f"one text of {tokens} tokens"
        workloads[label] = summary(rounds(args.rounds, one, of_peer), "ms", None)
        print(json.dumps({label: workloads[label]}), flush=True)
    ends = {"fletcher": own.ask(memory=True), "peer": resident(getattr(peer.process, "pid", "self"))}
    name = Path(sys.argv[0]).name
    record = {
        "kind": "pair",
        "date": datetime.date.today().isoformat(),
        "command": f"bench/compare/{name} {args.model.name} --precision {args.precision}",
        "machine": machine(),
        "foreign_share": round(foreign.share(), 3),
        "threads": THREADS,
        "model": args.model.name,
        "device": args.device,
        "fletcher": {"precision": args.fletcher_precision},
        "peer": {"name": peer.name, "precision": args.precision, "versions": peer.versions},
        "workloads": workloads,
        "cosine_to_f32": quality,
        "memory_loaded": loaded,
        "memory_at_end": ends,
    }
    print(json.dumps({"foreign_share": record["foreign_share"]}))
    if args.record:
        args.record.mkdir(parents=True, exist_ok=True)
        slug = f"{peer.name}-{args.precision}".lower().replace(" ", "-")
        path = args.record / f"{record['date']}-{args.model.name}-{slug}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
