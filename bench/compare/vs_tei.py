"""Fletcher beside text-embeddings-inference: a given router binary, over HTTP on this machine.

    python vs_tei.py MODEL --tei PATH/text-embeddings-router [--texts corpus.jsonl] [--record FOLDER]

Four requests of 32 texts are in flight; answers are read but not parsed inside the clock. Fletcher is
called in its own process, so this compares engines and not servers.
"""

import atexit
import http.client
import json
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pairing
import numpy as np


class Tei(pairing.Peer):
    name = "text-embeddings-inference"

    def __init__(self, program, folder) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [program, "--model-id", folder, "--port", str(self.port), "--hostname", "127.0.0.1"]
        command += ["--pooling", "mean", "--dtype", "float32", "--auto-truncate"]
        command += ["--tokenization-workers", str(pairing.THREADS), "--max-client-batch-size", "64"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        atexit.register(self.process.kill)
        self.local, self.callers = threading.local(), ThreadPoolExecutor(4)
        version = subprocess.run([program, "--version"], capture_output=True, text=True).stdout.split()
        self.versions = {"tei": version[-1] if version else "unknown"}
        vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
        self.words = {vocabulary[word]: word for word in pairing.words(folder)}
        self.wait()

    def wait(self) -> None:
        for _ in range(6000):
            if self.process.poll() is not None:
                raise SystemExit("the router ended before it was ready")
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                pass
            time.sleep(0.01)
        raise SystemExit("the router did not become ready within a minute")

    def post(self, texts: list[str]) -> bytes:
        if not hasattr(self.local, "connection"):
            self.local.connection = http.client.HTTPConnection("127.0.0.1", self.port)
        body = json.dumps({"inputs": texts, "truncate": True})
        self.local.connection.request("POST", "/embed", body, {"Content-Type": "application/json"})
        answer = self.local.connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise RuntimeError(content[:300])
        return content

    def bodies(self, texts: list[str]) -> list[bytes]:
        parts = [texts[at : at + pairing.BATCH] for at in range(0, len(texts), pairing.BATCH)]
        return list(self.callers.map(self.post, parts))

    def run_ids(self, ids: np.ndarray) -> None:
        self.bodies([" ".join(self.words[at] for at in row[1:-1]) for row in ids.tolist()])

    def run_texts(self, texts: list[str]) -> np.ndarray:
        bodies = self.bodies(texts)
        if len(texts) > pairing.REFERENCE_TEXTS:
            return np.empty((0, 0))
        return np.array([vector for body in bodies for vector in json.loads(body)], np.float32)

    def run_one(self, text: str) -> None:
        self.post([text])


if __name__ == "__main__":
    args = pairing.arguments(__doc__, ["f32"])
    if not args.tei:
        raise SystemExit("--tei names the router's binary")
    pairing.compare(args, Tei(args.tei, args.model))
