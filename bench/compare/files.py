"""Files through `fletcher embed`, one program beside another: rows a second without the start.

    python bench/compare/files.py FLETCHER [FLETCHER]... --texts corpus.jsonl --copies 200 --device cuda

Writes the texts so many times over as JSONL, cut to ten words as well, and both as Parquet (by `fletcher embed`, so with a
column of vectors, as files often have) into a RAM disk; then every program turns each input into npy, Arrow and Parquet, in
turns. The time of the same program over a single row is subtracted: it is starting and loading the model.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile
import time


def seconds(command):
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", nargs="+", help="fletcher binaries")
    parser.add_argument("--texts", required=True, help="JSONL with a key `text`")
    parser.add_argument("--copies", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", default="/dev/shm", help="where inputs and outputs go")
    parser.add_argument("options", nargs="*", help="further options of `fletcher embed`, after `--`")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default="default")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = pathlib.Path(name)
        texts = [json.loads(line)["text"] for line in open(given.texts, encoding="utf-8")]
        for kind, rows in [("long", texts), ("short", [" ".join(text.split()[:10]) for text in texts])]:
            lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in rows)
            with open(folder / f"{kind}.jsonl", "w", encoding="utf-8") as file:
                for _ in range(given.copies):
                    file.write(lines)
        (folder / "one.jsonl").write_text('{"text": "a"}\n')
        count = len(texts) * given.copies

        def embed(program, source, output, column="made"):
            # npy has vectors alone, and refuses the name of a column.
            named = [] if output.endswith(".npy") else ["--vector-column", column]
            return [
                program, "embed", "--model", given.model, "--device", given.device, *given.options,
                "-i", str(folder / source), "-o", str(folder / output), *named,
            ]  # fmt: skip

        for kind in ["long", "short"]:
            subprocess.run(embed(given.programs[0], f"{kind}.jsonl", f"{kind}.parquet", "vector"), check=True)
        starts = {p: min(seconds(embed(p, "one.jsonl", "out.npy")) for _ in range(5)) for p in given.programs}
        print(f"{count} rows; start: " + ", ".join(f"{p} {s:.2f} s" for p, s in starts.items()))
        for source in ["short.jsonl", "short.parquet", "long.jsonl", "long.parquet"]:
            for output in ["out.npy", "out.arrow", "out.parquet"]:
                rates = {program: [] for program in given.programs}
                for _ in range(given.rounds):
                    for program in given.programs:
                        spent = seconds(embed(program, source, output)) - starts[program]
                        rates[program].append(count / spent / 1e3)
                shown = [f"{p} {statistics.median(r):.0f} K ({min(r):.0f} to {max(r):.0f})" for p, r in rates.items()]
                print(f"{source} to {output[4:]}: rows/s {'; '.join(shown)}", flush=True)
                (folder / output).unlink()


if __name__ == "__main__":
    main()
