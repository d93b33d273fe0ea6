"""Fletcher through wgpu (Metal or Vulkan) beside PyTorch on the same GPU, in one run.

    pip install torch transformers
    cargo build --release -p fletcher-backend --example wgpu_rate
    python gpu.py                            # on a Mac: Metal beside MPS, in f16 and f32
    python gpu.py --device vulkan            # elsewhere: Vulkan beside CUDA
    python gpu.py --device vulkan --peer cpu --batch 8     # without a GPU: does it work?
    python gpu.py --record FILE              # the table as JSON too

Two shapes with random weights: BERT-tiny (2 layers of 128) and MiniLM (6 layers of 384). Sequences of
64 tokens, ids on the host to normalised vectors on the host, in calls of 32 rows and of more. For each
precision both sides make the same 8 vectors first, and they must agree. PyTorch runs the model in the
precision named, with SDPA attention and no padding to mask; every size is warmed up first. On CUDA it
runs eagerly, replayed as a CUDA graph, and compiled by torch.compile (to 1,024 rows, since compiling takes
a minute for each size); the best of them is what is compared with.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModel, BertConfig, BertModel
from transformers import __version__ as transformers_version

ROOT = Path(__file__).resolve().parents[2]
TOKENS = 64
ROUNDS, ROUND_SECONDS = 5, 0.3
SHAPES = {
    "bert-tiny": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512},
    "minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
}
# f16 rounds weights and activations; f32 sums in another order.
LEAST_COSINE = {"f16": 0.9999, "f32": 0.9999999}


def write_model(shape: str, folder: Path) -> None:
    """A checkpoint of the shape with random weights, as sentence-transformers lays it out."""
    torch.manual_seed(20240601)
    config = BertConfig(vocab_size=30522, **SHAPES[shape])
    BertModel(config).save_pretrained(folder)
    golden = ROOT / "tests/golden/bert"
    for name in ("tokenizer.json", "tokenizer_config.json", "modules.json", "sentence_bert_config.json"):
        shutil.copy(golden / name, folder / name)
    pooling = json.loads((golden / "1_Pooling/config.json").read_text())
    pooling["word_embedding_dimension"] = config.hidden_size
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))


def sequences(rows: int) -> torch.Tensor:
    """The same ids as the example wgpu_rate makes."""
    row, place = torch.arange(rows)[:, None], torch.arange(TOKENS)[None, :]
    return 1000 + (row * 7919 + place * 104_729) % 20_000


# Larger batches are not compiled: it gains little where arithmetic bounds the rate.
COMPILED_ROWS_MAX = 1024


class Peer:
    def __init__(self, folder: Path, device: str, precision: str) -> None:
        dtype = {"f16": torch.float16, "f32": torch.float32}[precision]
        self.device = device
        self.model = AutoModel.from_pretrained(folder, dtype=dtype).eval().to(device)

    def states(self, ids: torch.Tensor) -> torch.Tensor:
        states = self.model(input_ids=ids).last_hidden_state
        return torch.nn.functional.normalize(states.mean(dim=1), dim=1).float()

    @torch.inference_mode()
    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.states(ids.to(self.device)).cpu()

    def graph(self, batch: int):
        """The batch as a CUDA graph."""
        ids = sequences(batch).to(self.device)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.states(ids)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            vectors = self.states(ids)

        def call(new: torch.Tensor) -> torch.Tensor:
            ids.copy_(new)
            graph.replay()
            return vectors.cpu()

        return call

    def compiled(self):
        torch._dynamo.reset()
        states = torch.compile(self.states, mode="reduce-overhead", dynamic=False)
        return lambda ids: states(ids.to(self.device)).cpu()

    @torch.inference_mode()
    def rates(self, batch: int, compile_too: bool) -> dict[str, float]:
        forms = {"eager": lambda: self.embed}
        if self.device == "cuda":
            forms["graph"] = lambda: self.graph(batch)
            if compile_too and batch <= COMPILED_ROWS_MAX:
                forms["compile"] = self.compiled
        ids, rates = sequences(batch), {}
        for name, form in forms.items():
            try:
                rates[name] = median_rate(form(), ids)
            except RuntimeError as error:
                print(f"PyTorch's {name} of {batch} rows left out: {error}", file=sys.stderr)
        return rates


def median_rate(call, ids: torch.Tensor) -> float:
    for _ in range(3):
        call(ids)
    rates = []
    for _ in range(ROUNDS):
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < ROUND_SECONDS:
            call(ids)
            done += len(ids)
        rates.append(done / (time.perf_counter() - start))
    return statistics.median(rates)


def fletcher(program: Path, folder: Path, device: str, precision: str, batches: list[int]) -> tuple[dict, dict]:
    command = [program, folder, device, precision, TOKENS, *batches]
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: {run.stderr}")
    first, *rest = [json.loads(line) for line in run.stdout.splitlines()]
    return first, {row["batch"]: row["median_per_s"] for row in rest}


def main() -> None:
    mac = platform.system() == "Darwin"
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="metal" if mac else "vulkan")
    parser.add_argument("--peer", default="mps" if mac else "cuda")
    parser.add_argument("--precision", nargs="+", default=["f16", "f32"], choices=["f16", "f32"])
    parser.add_argument("--shape", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--batch", nargs="+", type=int, default=[32, 256, 1024, 4096])
    parser.add_argument("--program", type=Path, default=ROOT / "target/release/examples/wgpu_rate")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    card = torch.cuda.get_device_name() if args.peer == "cuda" else platform.processor()
    results = []
    print(f"{card}, torch {torch.__version__} on {args.peer}, 64 tokens; vectors a second")
    print("| model | precision | rows a call | PyTorch eager | PyTorch's best | Fletcher | ratio to eager | to the best |")
    print("|---|---|---|---|---|---|---|---|")
    for shape in args.shape:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_model(shape, folder)
            for precision in args.precision:
                first, ours = fletcher(args.program, folder, args.device, precision, args.batch)
                peer = Peer(folder, args.peer, precision)
                vectors = torch.tensor(first["vectors"], dtype=torch.float64)
                cosine = torch.nn.functional.cosine_similarity(vectors, peer.embed(sequences(8)).double()).min().item()
                if not cosine >= LEAST_COSINE[precision]:
                    sys.exit(f"{shape} {precision}: the vectors differ, least cosine {cosine}")
                for batch in args.batch:
                    theirs = peer.rates(batch, not args.no_compile)
                    eager, best = theirs["eager"], max(theirs, key=theirs.get)
                    to_eager, to_best = ours[batch] / eager, ours[batch] / theirs[best]
                    print(f"| {shape} | {precision} | {batch} | {eager:,.0f} | {theirs[best]:,.0f} ({best}) | "
                          f"{ours[batch]:,.0f} | {to_eager:.2f} | {to_best:.2f} |", flush=True)
                    results.append({
                        "model": shape, "precision": precision, "rows": batch, "tokens": TOKENS,
                        "pytorch_per_s": {name: round(rate) for name, rate in theirs.items()},
                        "fletcher_per_s": round(ours[batch]),
                        "ratio_to_eager": round(to_eager, 3), "ratio_to_best": round(to_best, 3),
                        "least_cosine": round(cosine, 7), "fletcher_open_s": round(first["open_s"], 3),
                    })
    if args.record:
        record = {
            "date": datetime.date.today().isoformat(),
            "command": "bench/compare/gpu.py " + " ".join(sys.argv[1:]),
            "gpu": card, "fletcher_device": args.device, "peer": args.peer,
            "torch": torch.__version__, "transformers": transformers_version, "results": results,
        }
        args.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
