"""Distils all-MiniLM-L6-v2 into a BERT-tiny.

    python train.py --teacher teacher.safetensors.xz --tokenizer tokenizer.json \\
        --passages passages-en.txt.xz --sts-dev sts-b-dev.tsv --out student.safetensors

The README beside this file explains the recipe. A run stopped by --stop-after leaves a checkpoint,
and the same command continues from it.
"""

import argparse
import math
import random
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch.nn import functional as F

import corpus
import pool as pools
import teacher as teachers
from augment import Rows, Source
from encoder import BERT_TINY, Bert
from sts import StsPairs


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--passages", type=Path, required=True)
    parser.add_argument("--sts-dev", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint.pt"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--rows", type=int, default=3_400, help="texts a step")
    parser.add_argument("--groups", type=int, default=64, help="subjects a step")
    parser.add_argument("--fresh", type=int, default=700_000, help="new texts at each refresh of the pool")
    parser.add_argument("--refresh", type=int, default=3_000, help="steps between refreshes")
    parser.add_argument("--leaves", type=int, default=4_096)
    parser.add_argument("--rate", type=float, default=4e-3, help="highest learning rate")
    parser.add_argument("--warmup", type=int, default=500)
    parser.add_argument("--decay", type=float, default=0.01)
    parser.add_argument("--direction", type=float, default=0.1, help="weight of the distance to the teacher's vector")
    parser.add_argument("--similarity", type=float, default=20.0, help="weight of the similarity matrices' error")
    parser.add_argument("--near", type=float, default=15.0, help="extra weight of pairs within a group")
    parser.add_argument("--ranking", type=float, default=0.05, help="weight of the neighbours' distribution")
    parser.add_argument("--temperature", type=float, default=0.05)
    parser.add_argument("--eager", action="store_true", help="neither compile the step nor capture it")
    parser.add_argument("--limit", type=int, help="use this many passages only (to try the program)")
    parser.add_argument("--stop-after", type=float, default=math.inf, help="seconds after which to stop and checkpoint")
    parser.add_argument("--fit", type=float, help="choose --steps so that the whole run takes this many seconds")
    parser.add_argument("--report", type=int, default=2_000, help="steps between reports and checkpoints")
    return parser.parse_args()


class Clock:
    def __init__(self):
        self.start = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def say(self, *words) -> None:
        print(f"[{self.seconds():6.1f} s]", *words, flush=True)


def mistyped(texts: list[str], seed: int) -> list[str]:
    draw = random.Random(seed)
    return [corpus.mistype(text, draw, rate=0.3) for text in texts]


def prepare_texts(args, tokenizer, clock):
    passages = corpus.read_passages(args.passages)[: args.limit]
    passages = corpus.training_passages(passages)
    clock.say(f"{len(passages):,} passages")
    picked = random.Random(args.seed).sample(passages, len(passages) // 3)
    slices = [picked[at::16] for at in range(16)]
    with ProcessPoolExecutor(16) as workers:
        wrong = [text for part in workers.map(mistyped, slices, range(args.seed, args.seed + 16)) for text in part]
    whole = corpus.tokenize(tokenizer, passages)
    typos = corpus.tokenize(tokenizer, wrong)
    clock.say(f"{len(whole.ids):,} tokens, and {len(typos.ids):,} of mistyped texts")
    return whole, typos


def principal(vectors: torch.Tensor, count: int) -> torch.Tensor:
    """Uncentred principal components `[width, count]`: cosines are best kept by these."""
    vectors = vectors.double()
    _, axes = torch.linalg.eigh(vectors.T @ vectors)
    return axes[:, -count:].flip(1).float()


@torch.no_grad()
def initialise(student: Bert, vocabulary: torch.Tensor, axes: torch.Tensor) -> None:
    """Word embeddings from the teacher's vector of each token alone; the rest small and random."""
    for name, parameter in student.named_parameters():
        if "LayerNorm" in name:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("bias"):
            parameter.zero_()
        elif "embeddings" in name:
            parameter.normal_(0, 0.01)
        else:
            parameter.normal_(0, 0.6 / math.sqrt(parameter.shape[1]))
    student.embeddings.word_embeddings.weight.copy_(F.normalize(vocabulary @ axes, dim=1))


class Objective(torch.nn.Module):
    """What the student is asked for, given the teacher's vectors.

    * its vector: 1 - cos to the teacher's, projected to the student's width;
    * its similarities: the squared error of the matrix of cosines of the batch against the
      teacher's full-width one, pairs within a group counting more;
    * its ranking: the distribution over a text's neighbours, softmax of cosine / temperature.
    """

    def __init__(self, student: Bert, axes: torch.Tensor, groups: torch.Tensor, args):
        super().__init__()
        self.student = student
        self.args = args
        count = len(groups)
        near = (groups[:, None] == groups[None, :]).float()
        weight = (1 + args.near * near) * (1 - torch.eye(count, device=groups.device))
        self.register_buffer("weight", weight / weight.sum())
        self.register_buffer("itself", torch.eye(count, device=groups.device) * -1e4)
        self.register_buffer("axes", axes)

    def forward(self, batch, vectors):
        vectors = vectors.float()
        got = self.student(batch)
        with torch.autocast(got.device.type, enabled=False):
            asked = F.normalize(vectors @ self.axes, dim=1)
            direction = (1 - (got * asked).sum(1)).mean()
            theirs, ours = vectors @ vectors.T, got @ got.T
            similarity = ((ours - theirs).square() * self.weight).sum()
            wanted = F.softmax(theirs / self.args.temperature + self.itself, dim=1)
            given = F.log_softmax(ours / self.args.temperature + self.itself, dim=1)
            ranking = (wanted * (wanted.clamp(min=1e-9).log() - given)).sum(1).mean()
        loss = self.args.direction * direction + self.args.similarity * similarity + self.args.ranking * ranking
        return loss, torch.stack([direction.detach(), similarity.detach(), ranking.detach()])


class Trainer:
    """One optimisation step with fixed shapes; on a GPU compiled and replayed as a CUDA graph."""

    def __init__(self, objective: Objective, batch, vectors, args):
        self.args = args
        self.cuda = vectors.is_cuda
        self.objective = objective
        self.batch = [(ids.clone(), lengths.clone()) for ids, lengths in batch]
        self.vectors = vectors.clone()
        self.rate = torch.tensor(0.0, device=vectors.device)
        tables, matrices, others = [], [], []
        for name, parameter in objective.student.named_parameters():
            (tables if "embeddings." in name else matrices if parameter.dim() == 2 else others).append(parameter)
        kinds = [{"params": matrices, "weight_decay": args.decay}, {"params": tables + others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            kinds, lr=self.rate, betas=(0.9, 0.98), eps=1e-8, fused=self.cuda, capturable=self.cuda
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        self.losses = torch.zeros(3, device=vectors.device)
        self.graph = None
        self.captured = self.cuda and not args.eager
        self.call = torch.compile(objective) if self.captured else objective

    def _step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.vectors.device.type, torch.bfloat16, enabled=self.cuda):
            loss, parts = self.call(self.batch, self.vectors)
        loss.backward()
        self.optimizer.step()
        self.losses.lerp_(parts, 0.01)

    def capture(self) -> None:
        """Warm-up steps have a learning rate of zero, but they move the optimizer's moments: reset after."""
        if not self.captured:
            self._step()
            return
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        self.graph = graph

    def forget(self) -> None:
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()
        self.losses.zero_()

    def step(self, number: int, batch, vectors) -> None:
        rise = min(1.0, (number + 1) / self.args.warmup)
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, number / self.args.steps)))
        self.rate.fill_(self.args.rate * rise * fall)
        for (ids, lengths), (new_ids, new_lengths) in zip(self.batch, batch):
            ids.copy_(new_ids)
            lengths.copy_(new_lengths)
        self.vectors.copy_(vectors)
        if self.graph:
            self.graph.replay()
        else:
            self._step()


class Judge:
    """Spearman's correlation on STS-B dev."""

    def __init__(self, path: Path, tokenizer: Tokenizer, device: torch.device):
        self.pairs = StsPairs(path)
        encodings = [tokenizer.encode(text).ids for text in self.pairs.texts]
        ids = torch.zeros(len(encodings), max(map(len, encodings)), dtype=torch.long)
        for row, encoding in zip(ids, encodings):
            row[: len(encoding)] = torch.tensor(encoding)
        lengths = torch.tensor([len(encoding) for encoding in encodings])
        self.rows = Rows(ids.to(device), lengths.to(device))

    def score(self, model: Bert) -> float:
        return 100 * self.pairs.correlation(lambda _: pools.embed(model, self.rows).float().cpu().numpy())


def main() -> None:
    args = parse()
    clock = Clock()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    # Before the first use of the GPU: it forks.
    whole, typos = prepare_texts(args, tokenizer, clock)
    teacher = teachers.unpack(args.teacher, device)
    judge = Judge(args.sts_dev, tokenizer, device)
    clock.say(f"teacher on STS-B dev: {judge.score(teacher):.2f}")
    source = Source(whole, tokenizer, device, args.seed)
    wrong = Source(typos, tokenizer, device, args.seed + 1)

    # The teacher's view of single tokens and of the corpus.
    tokens = torch.arange(BERT_TINY.vocabulary, device=device)
    alone = Rows(tokens[:, None], torch.ones_like(tokens))
    vocabulary = pools.embed(teacher, pools.with_special(alone)).float()
    near = [(part @ vocabulary[source.words].T).topk(21, dim=1).indices[:, 1:] for part in vocabulary.split(2048)]
    source.neighbours = source.words[torch.cat(near)].to(torch.int16)
    ordered = torch.randperm(len(whole), device=device, generator=source.random)
    sample = source.whole(ordered[: 200_000], 62)
    sample = torch.cat([bucket.vectors for bucket in pools.label(source, teacher, None, [sample])]).float()
    axes = principal(sample, BERT_TINY.hidden)
    leaves = pools.Leaves(sample, args.leaves, source.random)
    clock.say("map of the teacher's space")
    by_width = [source.whole(part, 510 if at == 0 else 126) for at, part in enumerate(split_by_length(source, 126))]
    originals = pools.label(source, teacher, leaves, by_width)
    parts = torch.arange(len(whole), device=device).split(1 << 17)
    short = torch.cat([pools.embed(teacher, pools.with_special(source.whole(part, 62))) for part in parts])
    order = torch.argsort(leaves.of(short.float()) + source.rand(len(short)))
    clock.say("passages labelled")

    def refreshed():
        return pools.join(originals, pools.label(source, teacher, leaves, pools.fresh(source, wrong, order, args.fresh)))

    stock = refreshed()
    clock.say(f"pool of {sum(len(bucket.lengths) for bucket in stock):,} texts")
    layout = pools.Layout(stock, args.rows, args.groups)
    tokens = sum(count * length for count, length in zip(layout.counts, pools.LENGTHS))
    clock.say(f"a step: {layout.describe()}; {sum(layout.counts):,} texts, {tokens:,} tokens with padding")

    student = Bert(BERT_TINY).to(device)
    initialise(student, vocabulary, axes)
    clock.say(f"student before training: {judge.score(student):.2f}")
    objective = Objective(student, axes, layout.group_of_rows(device), args).to(device)
    trainer = Trainer(objective, *layout.draw(source, stock), args)
    trainer.capture()
    trainer.forget()
    first = 0
    if args.checkpoint.exists():
        state = torch.load(args.checkpoint, map_location=device, weights_only=True)
        first = state["step"]
        args.steps = state["steps"]
        # Other texts and batches than the first part of the run had.
        source.random.manual_seed(args.seed + first)
        wrong.random.manual_seed(args.seed + first + 1)
        student.load_state_dict(state["student"])
        for held, (_, saved) in zip(trainer.optimizer.state.values(), sorted(state["moments"].items())):
            for name, value in saved.items():
                held[name].copy_(value)
        clock.say(f"continuing from step {first:,}")

    started = time.perf_counter()
    number = first
    while number < args.steps:
        if number > first and number % args.refresh == 0:
            del stock
            stock = refreshed()
        trainer.step(number, *layout.draw(source, stock))
        number += 1
        if number % args.report == 0:
            losses = ", ".join(f"{value:.5f}" for value in trainer.losses.tolist())
            pace = (number - first) / (time.perf_counter() - started)
            clock.say(f"step {number:,}: losses {losses}; {pace:.1f} steps/s; dev {judge.score(student):.2f}")
            save(args, trainer, number)
        if args.fit and number == 2 * args.refresh + 1 and first == 0:
            # By now two refreshes are paid for; the cosine has hardly begun to fall, whatever its length.
            pace = number / (time.perf_counter() - started)
            args.steps = number + int((args.fit - clock.seconds()) * pace)
            clock.say(f"{pace:.1f} steps/s with the refreshes: --steps {args.steps}")
        if clock.seconds() > args.stop_after:
            break
    save(args, trainer, number)
    clock.say(f"stopped after step {number:,} of {args.steps:,}: STS-B dev {judge.score(student):.2f}")


def save(args, trainer: Trainer, step: int) -> None:
    """The checkpoint and the student as it stands, each written beside its place and then moved there."""
    student = trainer.objective.student.state_dict()
    moments = {at: dict(state) for at, state in enumerate(trainer.optimizer.state.values())}
    state = {"step": step, "steps": args.steps, "student": student, "moments": moments}
    for path, write in [
        (args.checkpoint, lambda path: torch.save(state, path)),
        (args.out, lambda path: save_file({name: part.half().contiguous().cpu() for name, part in student.items()}, path)),
    ]:
        partial = path.with_suffix(".partial")
        write(partial)
        partial.replace(path)


def split_by_length(source: Source, width: int):
    """Numbers of the passages longer than `width` tokens, then parts of the others."""
    lengths = source.offsets[1:] - source.offsets[:-1]
    yield (lengths > width).nonzero()[:, 0]
    yield from (lengths <= width).nonzero()[:, 0].split(1 << 18)


if __name__ == "__main__":
    main()
