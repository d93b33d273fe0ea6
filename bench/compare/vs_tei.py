"""Fletcher beside text-embeddings-inference: a given router binary, over HTTP on this machine.

    python vs_tei.py MODEL --tei PATH/text-embeddings-router [--tei-backend ort|candle]
        [--texts corpus.jsonl] [--record FOLDER]

Four requests of 32 texts are in flight; answers are read but not parsed inside the clock. Fletcher is
called in its own process, so this compares engines and not servers; `load compare` of
crates/fletcher-server compares servers.

The router takes its ORT backend where it finds `model.onnx` in the folder (a feature-extraction
export, with `last_hidden_state`) and candle else; both computed in f32 here. The one of the records
is version 1.9.3 (0d124dc), built from source with `--features http,candle,mkl,ort,dynamic-linking`
and Rust 1.95 instead of 1.92, with these changes and none in its code:

- candle is the same commit (6381023) from a path instead of by git; the patch of cudarc, cudarc itself
  and the test crate `insta`, which come by git too, are left out;
- link-time optimisation is thin, in 4 code-generation units, instead of fat in 1;
- MKL is 2024.0.0 and iomp5 its companion, as in the project's image, from the packages `mkl`,
  `mkl-devel`, `mkl-include` and `intel-openmp`, linked dynamically and without `--as-needed`; with
  them the image's `libfakeintel.so`, by which MKL takes AVX-512 on other makers' processors too, and
  its MKL_ENABLE_INSTRUCTIONS;
- ONNX Runtime is 1.22.0, the version that `ort` 2.0.0-rc.10 binds, from the package `onnxruntime`,
  linked dynamically (`ORT_LIB_LOCATION`, `ORT_PREFER_DYNAMIC_LINK=1`).
"""

import atexit
import http.client
import json
import os
import socket
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pairing
import numpy as np


def without_onnx(folder) -> tempfile.TemporaryDirectory:
    """The same model for candle: links to all but the exports."""
    links = tempfile.TemporaryDirectory()
    for path in folder.iterdir():
        if path.suffix != ".onnx" and path.name != "onnx":
            os.symlink(path.resolve(), f"{links.name}/{path.name}")
    return links


class Tei(pairing.Peer):
    def __init__(self, program, folder, backend) -> None:
        self.name = {"ort": "TEI ORT", "candle": "TEI candle"}[backend]
        exports = [folder / "model.onnx", folder / "onnx/model.onnx"]
        if backend == "ort" and not any(path.exists() for path in exports):
            raise SystemExit(f"{folder} has no model.onnx, so the router would not use ORT")
        self.links = without_onnx(folder) if backend == "candle" else None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        read = self.links.name if self.links else folder
        command = [program, "--model-id", read, "--port", str(self.port), "--hostname", "127.0.0.1"]
        pooling = "cls" if pairing.pools_first(folder) else "mean"
        command += ["--pooling", pooling, "--dtype", "float32", "--auto-truncate"]
        command += ["--tokenization-workers", str(pairing.THREADS), "--max-client-batch-size", "64"]
        environment = {**os.environ, "MKL_ENABLE_INSTRUCTIONS": "AVX512_E4"}
        null = subprocess.DEVNULL
        self.process = subprocess.Popen(command, env=environment, stdout=null, stderr=null)
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
    pairing.compare(args, Tei(args.tei, args.model, args.tei_backend))
