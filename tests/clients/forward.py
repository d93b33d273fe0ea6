"""Rows through `fletcher serve --forward` into a store made with pyarrow.flight, while both are killed.

The store writes each batch to a file before it acknowledges it, so that its own death loses nothing
that it acknowledged. At the end every id must be there, with its own text and vector.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl

from serving import free_port


class Store(fl.FlightServerBase):
    """Acknowledged ingest by DoExchange, and DoPut."""

    def __init__(self, location, folder, mode):
        super().__init__(location)
        self.folder, self.mode = folder, mode

    def keep(self, batch):
        name = os.path.join(self.folder, f"{os.getpid()}-{time.monotonic_ns()}")
        with open(name + ".new", "wb") as file:
            with pa.ipc.new_stream(file, batch.schema) as writer:
                writer.write_batch(batch)
            file.flush()
            os.fsync(file.fileno())
        os.rename(name + ".new", name + ".arrow")

    def misbehave(self):
        chance = random.random()
        if chance < 0.02:
            raise fl.FlightServerError("as told")
        if chance < 0.04:
            time.sleep(0.5)

    def do_exchange(self, context, descriptor, reader, writer):
        if self.mode == "put":
            raise NotImplementedError
        assert descriptor.path[0] == b"ingest", descriptor.path
        for number, chunk in enumerate(reader, 1):
            self.misbehave()
            self.keep(chunk.data)
            self.misbehave()
            ack = {"status": "acked", "batch_id": number, "rows": chunk.data.num_rows}
            writer.write_metadata(json.dumps(ack).encode())

    def do_put(self, context, descriptor, reader, writer):
        for chunk in reader:
            self.misbehave()
            self.keep(chunk.data)


class Process:
    def __init__(self, *command):
        self.command, self.process, self.kills = command, None, 0

    def start(self):
        self.process = subprocess.Popen(self.command)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.kills += 1


def put(port, table):
    """One DoPut; true if every batch was acknowledged."""
    try:
        client = fl.connect(f"grpc://127.0.0.1:{port}")
        options = fl.FlightCallOptions(timeout=20)
        writer, acks = client.do_put(fl.FlightDescriptor.for_path("books"), table.schema, options)
        batches = table.to_batches()
        for batch in batches:
            writer.write_batch(batch)
        writer.done_writing()
        rows = 0
        for _ in batches:
            ack = acks.read()
            if ack is None:
                return False
            rows += json.loads(ack.to_pybytes())["rows"]
        writer.close()
        return rows == table.num_rows
    except (fl.FlightError, pa.ArrowException, OSError):
        return False


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--mode", choices=["exchange", "put"], default="exchange")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    random.seed(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        rows, spill = os.path.join(folder, "store"), os.path.join(folder, "spill")
        os.mkdir(rows)
        flight, target = free_port(), free_port()
        store = Process(sys.executable, os.path.abspath(__file__), "--store", str(target), rows, args.mode)
        server = Process(os.path.abspath(args.binary), "serve", "--flight", f"127.0.0.1:{flight}",
                         "--forward", f"grpc://127.0.0.1:{target}", "--dataset", "books",
                         "--spill", spill, "--forward-timeout", "5", "--log-level", "error")
        store.start()
        server.start()
        part, first, retries = 1000, 0, 0
        kill_at = sorted(random.sample(range(0, args.rows // part), args.kills))
        start = time.time()
        while first < args.rows:
            ids = range(first, min(first + part, args.rows))
            table = pa.table({"id": pa.array(ids, pa.int64()), "text": [f"text {i}" for i in ids]})
            victim = None
            while kill_at and kill_at[0] <= first // part:
                kill_at.pop(0)
                victim = random.choice([store, server])
            if victim:
                # Somewhere in the middle of the next call.
                delay = random.random() * 0.2
                subprocess.Popen(["sh", "-c", f"sleep {delay:.3f}; kill -9 {victim.process.pid}"])
            if put(flight, table):
                first += part
            else:
                retries += 1
            if victim:
                victim.process.wait(30)
                victim.kills += 1
                time.sleep(random.random() * 0.3)
                victim.start()
            if not victim and server.process.poll() is not None:
                raise SystemExit("the server died by itself")
        print(f"accepted {args.rows} rows in {time.time() - start:.0f} s; kill -9: server {server.kills}, "
              f"store {store.kills}; calls repeated by the client: {retries}")
        found, batches = {}, 0
        deadline, seen = time.time() + 180, set()
        while len(found) < args.rows and time.time() < deadline:
            for name in os.listdir(rows):
                if not name.endswith(".arrow") or name in seen:
                    continue
                seen.add(name)
                table = pa.ipc.open_stream(os.path.join(rows, name)).read_all()
                assert table.schema.names[:3] == ["id", "text", "vector"], table.schema
                vector = table.schema.field("vector").type
                assert pa.types.is_fixed_size_list(vector) and vector.value_type == pa.float32(), vector
                batches += 1
                for i, text, vector in zip(*(table.column(c).to_pylist() for c in ("id", "text", "vector"))):
                    assert text == f"text {i}", (i, text)
                    assert found.setdefault(i, vector) == vector, "sent twice with another vector"
            time.sleep(0.1)
        total = sum(1 for _ in found)
        server.process.terminate()
        assert server.process.wait(30) == 0, "the server ends well"
        store.kill()
        sample = random.sample(sorted(found), 20)
        out = subprocess.run([args.binary, "embed", *(f"text {i}" for i in sample)], capture_output=True, check=True)
        for i, line in zip(sample, out.stdout.decode().splitlines()):
            own = np.array(json.loads(line)["embedding"], dtype=np.float32)
            assert (np.array(found[i], dtype=np.float32) == own).all()
        print(f"the store has {total} distinct ids of {args.rows}, in {batches} batches")
        assert total == args.rows


if __name__ == "__main__":
    if sys.argv[1:2] == ["--store"]:
        Store(f"grpc://127.0.0.1:{sys.argv[2]}", sys.argv[3], sys.argv[4]).serve()
    else:
        main()
