"""Fletcher beside ONNX Runtime: the fused graph in f32, or dynamically quantised to int8.

    python vs_onnxruntime.py MODEL [--precision f32|int8] [--texts corpus.jsonl] [--record FOLDER]

Throughput is of one session with as many callers as cores, each with one thread, which is faster
than one caller with all threads; latency is of a session with all threads.
"""

from concurrent.futures import ThreadPoolExecutor

import exports
import pairing
import numpy as np
import onnxruntime


class OnnxRuntime(pairing.BatchPeer):
    name = "ONNX Runtime"
    versions = {"onnxruntime": onnxruntime.__version__}

    def __init__(self, folder, precision: str) -> None:
        super().__init__(folder)
        make = exports.onnx_int8 if precision == "int8" else exports.onnx_fused
        self.parallel, self.single = (self.session(make(folder), n) for n in (1, pairing.THREADS))
        self.names = {node.name for node in self.parallel.get_inputs()}
        self.callers = ThreadPoolExecutor(pairing.THREADS)

    def session(self, path, threads: int) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def call(self, session, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return session.run(None, {name: feed[name] for name in self.names})[0]

    def batches(self, batches):
        return list(self.callers.map(lambda batch: self.call(self.parallel, *batch), batches))

    def run_one(self, text: str) -> None:
        ids = np.array([self.tokenizer.encode(text).ids])
        self.call(self.single, ids, np.ones_like(ids))


if __name__ == "__main__":
    args = pairing.arguments(__doc__, ["f32", "int8"])
    pairing.compare(args, OnnxRuntime(args.model, args.precision))
