"""Fletcher beside PyTorch on one NVIDIA card, in one run, on the same weights and ids.

    cargo build --release -p fletcher
    python cuda.py FLETCHER [--record FILE] [--shapes bert-tiny,minilm-l6,bert-base,bert-large,modernbert-base]
        [--precision f16] [--tokens 64] [--pooling mean]

FLETCHER is the program. BERT's shapes and ModernBERT's get random weights, written as model folders with the
tokenizer of the golden checkpoints (no text is tokenised). Both sides get ids, 64 tokens a sequence
unless said, on the host and give mean-pooled, normalised f32 vectors on the host (or, with `--pooling cls`,
the first token's). The peers are transformers with SDPA attention: eager, replayed as a CUDA graph, and compiled by torch.compile. Both
sides run in f16, Fletcher's default, or in the precision that is named. In f32 PyTorch runs as it does
by itself, and with TF32 allowed (`torch.set_float32_matmul_precision("high")`), which is less exact than
what Fletcher does; ratios are to the first. Rounds alternate; the medians are compared. Vectors are
checked first: Fletcher's against transformers in f32, by the least cosine.

Batches are of 32 and 1,024 sequences of 64 tokens, and of 8,192 for bert-tiny; of longer sequences
there are fewer, down to one, so that a batch has as many tokens.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch  # noqa: E402
from transformers import BertConfig, BertModel, ModernBertConfig, ModernBertModel  # noqa: E402

GOLDEN = Path("tests/golden")
SHAPES = {
    "bert-tiny": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512},
    "minilm-l6": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "bert-base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
    "bert-large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "modernbert-base": {"hidden_size": 768, "num_hidden_layers": 22, "num_attention_heads": 12, "intermediate_size": 1152},
}
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
DEFAULT = "bert-tiny,minilm-l6,bert-base"
# ModernBERT's special tokens lie behind the vocabulary that its golden tokenizer has.
MODERN = {"vocab_size": 30522, "pad_token_id": 421, "cls_token_id": 419, "bos_token_id": 419, "sep_token_id": 420, "eos_token_id": 420}


def flops(shape: dict, tokens: int) -> float:
    """Operations of one sequence; a multiply-add is two. As if every token saw all others."""
    d, inner = shape["hidden_size"], shape["intermediate_size"]
    products = 3 if modern(shape) else 2  # a gated network's first is twice as wide
    return shape["num_hidden_layers"] * tokens * (2 * (4 * d * d + products * d * inner) + 4 * tokens * d)


def modern(shape: dict) -> bool:
    return shape is SHAPES["modernbert-base"]


def write_model(folder: Path, shape: dict, tokens: int, cls: bool) -> None:
    torch.manual_seed(20240601)
    places = max(512, tokens)
    if modern(shape):
        ModernBertModel(ModernBertConfig(max_position_embeddings=places, **MODERN, **shape)).save_pretrained(folder)
    else:
        config = BertConfig(vocab_size=30522, max_position_embeddings=places, **shape)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    golden = GOLDEN / ("modernbert" if modern(shape) else "bert")
    for name in ("tokenizer.json", "tokenizer_config.json", "modules.json"):
        shutil.copy(golden / name, folder / name)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": places, "do_lower_case": False}))
    pooling = json.loads((GOLDEN / "bert/1_Pooling/config.json").read_text())
    for key in ("word_embedding_dimension", "embedding_dimension"):
        if key in pooling:
            pooling[key] = shape["hidden_size"]
    pooling |= {"pooling_mode_cls_token": cls, "pooling_mode_mean_tokens": not cls}
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))


class Pooled(torch.nn.Module):
    def __init__(self, bert: BertModel, cls: bool) -> None:
        super().__init__()
        self.bert, self.cls = bert, cls

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        if self.cls:
            return torch.nn.functional.normalize(hidden[:, 0].float(), dim=-1)
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weight).sum(1) / weight.sum(1)
        return torch.nn.functional.normalize(mean.float(), dim=-1)


def load(folder: Path, shape: dict, dtype: torch.dtype, cls: bool) -> Pooled:
    if modern(shape):
        bert = ModernBertModel.from_pretrained(folder, attn_implementation="sdpa", dtype=dtype)
    else:
        bert = BertModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="sdpa", dtype=dtype)
    return Pooled(bert, cls).cuda().eval()


def graphed(model: Pooled, batch: int, tokens: int):
    ids = torch.randint(1000, 30000, (batch, tokens), device="cuda")
    mask = torch.ones_like(ids)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            model(ids, mask)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = model(ids, mask)

    def call(new_ids: torch.Tensor, new_mask: torch.Tensor) -> torch.Tensor:
        ids.copy_(new_ids)
        mask.copy_(new_mask)
        graph.replay()
        return out

    return call


def with_tf32(call):
    """The same call with TF32 allowed, which is a global setting."""

    def allowed(*batch: torch.Tensor) -> torch.Tensor:
        torch.set_float32_matmul_precision("high")
        try:
            return call(*batch)
        finally:
            torch.set_float32_matmul_precision("highest")

    return allowed


def peer_rate(call, batch: int, tokens: int, seconds: float) -> float:
    ids = torch.randint(1000, 30000, (batch, tokens)).pin_memory()
    mask = torch.ones_like(ids).pin_memory()
    for _ in range(3):
        call(ids.cuda(non_blocking=True), mask.cuda(non_blocking=True)).cpu()
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        call(ids.cuda(non_blocking=True), mask.cuda(non_blocking=True)).cpu()
        done += batch
    return done / (time.perf_counter() - start)


class Fletcher:
    """`fletcher bench --pair`, spoken to over pipes."""

    def __init__(self, program: str, folder: Path, precision: str, batch: int) -> None:
        self.command = [program, "bench", "--pair", "-m", str(folder), "--device", "cuda", "--precision", precision,
                        "--batch-size", str(batch)]
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, request: dict) -> dict:
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def set(self, name: str, ids: list[list[int]]) -> None:
        self.ask({"set": name, "ids": ids})

    def rate(self, name: str, rows: int, seconds: float, **clients: int) -> float:
        self.ask({"run": name, **clients})
        done, spent = 0, 0.0
        while spent < seconds:
            spent += self.ask({"run": name, **clients})["seconds"]
            done += rows
        return done / spent

    def vectors(self, name: str) -> torch.Tensor:
        head = self.ask({"vectors": name})
        data = self.process.stdout.read(head["rows"] * head["dim"] * 4)
        return torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(head["rows"], head["dim"])

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("fletcher")
    parser.add_argument("--record", type=Path)
    parser.add_argument("--shapes", default=DEFAULT)
    parser.add_argument("--precision", default="f16", choices=DTYPES)
    parser.add_argument("--tokens", type=int, default=64, help="of each sequence")
    parser.add_argument("--pooling", default="mean", choices=["mean", "cls"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    args = parser.parse_args()
    tokens, cls = args.tokens, args.pooling == "cls"
    options = f"--shapes {args.shapes} --precision {args.precision} --tokens {tokens} --pooling {args.pooling}"
    record = {
        "date": datetime.date.today().isoformat(),
        "card": torch.cuda.get_device_name(),
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
        "command": f"bench/compare/cuda.py FLETCHER {options}",
        "precision": args.precision,
        "tokens": tokens,
        "pooling": args.pooling,
        "shapes": {},
    }
    for name in args.shapes.split(","):
        shape, scratch = SHAPES[name], tempfile.TemporaryDirectory()
        folder = Path(scratch.name)
        write_model(folder, shape, tokens, cls)
        peer = load(folder, shape, DTYPES[args.precision], cls)
        result = record["shapes"][name] = {"flop_per_sequence": flops(shape, tokens), "batches": {}}
        with torch.inference_mode():
            exact = load(folder, shape, torch.float32, cls)
            draw = torch.randint(1000, 30000, (max(1, 16384 // tokens), tokens))
            ours = Fletcher(args.fletcher, folder, args.precision, 32)
            ours.set("check", draw.tolist())
            mask = torch.ones_like(draw).cuda()
            expected = exact(draw.cuda(), mask).cpu()
            torchs = peer(draw.cuda(), mask).cpu()
            cosine = torch.nn.functional.cosine_similarity
            result["least_cosine_to_f32"] = {
                "fletcher": cosine(ours.vectors("check").double(), expected.double()).min().item(),
                "torch": cosine(torchs.double(), expected.double()).min().item(),
            }
            del exact
            ours.close()
            for batch in (32, 1024, 8192) if name == "bert-tiny" else (32, 1024):
                compiled = not args.no_compile and batch <= 1024
                batch = max(1, batch * 64 // tokens)
                peers = {"torch eager": peer, "torch graph": graphed(peer, batch, tokens)}
                if compiled:
                    torch._dynamo.reset()
                    peers["torch compile"] = torch.compile(peer, mode="reduce-overhead", dynamic=False)
                if args.precision == "f32":
                    torch.set_float32_matmul_precision("high")
                    peers["TF32 torch graph"] = graphed(peer, batch, tokens)
                    torch.set_float32_matmul_precision("highest")
                    if compiled:
                        again = torch.compile(peer, mode="reduce-overhead", dynamic=False)
                        peers["TF32 torch compile"] = with_tf32(again)
                ours = Fletcher(args.fletcher, folder, args.precision, batch)
                many = max(2**20 // tokens, 4 * batch)
                ours.set("many", torch.randint(1000, 30000, (many, tokens)).tolist())
                rates = {}
                for _ in range(args.rounds):
                    for name_of, call in peers.items():
                        rates.setdefault(name_of, []).append(peer_rate(call, batch, tokens, args.seconds))
                    alone = ours.rate("many", many, args.seconds, clients=1)
                    rates.setdefault("fletcher, one batch at a time", []).append(alone)
                    rates.setdefault("fletcher, batches in flight", []).append(ours.rate("many", many, args.seconds))
                ours.close()
                medians = {of: round(statistics.median(all_rates)) for of, all_rates in rates.items()}
                best = max(rate for of, rate in medians.items() if of.startswith("torch"))
                result["batches"][batch] = {
                    "vectors_per_second": medians,
                    "spread": {of: [round(min(r)), round(max(r))] for of, r in rates.items()},
                    "ratio_to_best_torch": {
                        of: round(rate / best, 2) for of, rate in medians.items() if of.startswith("fletcher")
                    },
                    "fletcher_tflops": round(medians["fletcher, batches in flight"] * flops(shape, tokens) / 1e12, 1),
                }
                print(name, batch, json.dumps(result["batches"][batch]), flush=True)
        print(name, json.dumps(result["least_cosine_to_f32"]), flush=True)
        scratch.cleanup()
        if args.record:
            args.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
