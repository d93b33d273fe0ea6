"""Fletcher beside OpenVINO: f32, bf16, int8 (NNCF), or int8 with the rest in bf16.

    python vs_openvino.py MODEL [--precision f32|bf16|int8|int8-bf16] [--texts corpus.jsonl] [--record FOLDER]

Throughput is of OpenVINO's own: the THROUGHPUT hint, one stream per core, an asynchronous queue, and
the static shape [32, 64] for the workload of ids; latency is of a model compiled with the LATENCY hint.
"""

import exports
import pairing
import numpy as np
import openvino


class OpenVino(pairing.BatchPeer):
    name = "OpenVINO"
    versions = {"openvino": openvino.__version__.split("-")[0]}

    def __init__(self, folder, precision: str, texts) -> None:
        super().__init__(folder)
        quantised = precision.startswith("int8")
        path = exports.openvino_int8(folder, texts) if quantised else exports.onnx(folder)
        self.core = openvino.Core()
        self.hint = "bf16" if precision.endswith("bf16") else "f32"
        self.fixed = self.compile(path, "THROUGHPUT", [pairing.BATCH, 64])
        self.queue_fixed = openvino.AsyncInferQueue(self.fixed)
        self.dynamic = self.compile(path, "THROUGHPUT", None)
        self.queue = openvino.AsyncInferQueue(self.dynamic)
        self.single = self.compile(path, "LATENCY", None).create_infer_request()
        self.names = [node.get_any_name() for node in self.dynamic.inputs]

    def compile(self, path, hint: str, shape) -> openvino.CompiledModel:
        model = self.core.read_model(str(path))
        if shape:
            model.reshape({node.get_any_name(): shape for node in model.inputs})
        settings = {
            "PERFORMANCE_HINT": hint,
            "INFERENCE_NUM_THREADS": pairing.THREADS,
            "INFERENCE_PRECISION_HINT": self.hint,
        }
        if hint == "THROUGHPUT":
            settings["NUM_STREAMS"] = pairing.THREADS
        return self.core.compile_model(model, "CPU", settings)

    def feed(self, ids: np.ndarray, mask: np.ndarray) -> dict:
        all_inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return {name: all_inputs[name] for name in self.names}

    def batches(self, batches):
        same = all(ids.shape == (pairing.BATCH, 64) for ids, _ in batches)
        queue = self.queue_fixed if same else self.queue
        out = [None] * len(batches)

        def done(request, at: int) -> None:
            out[at] = request.get_output_tensor(0).data.copy()

        queue.set_callback(done)
        for at, batch in enumerate(batches):
            queue.start_async(self.feed(*batch), at)
        queue.wait_all()
        return out

    def run_one(self, text: str) -> None:
        ids = np.array([self.tokenizer.encode(text).ids])
        self.single.infer(self.feed(ids, np.ones_like(ids)), share_inputs=True)


if __name__ == "__main__":
    args = pairing.arguments(__doc__, ["f32", "bf16", "int8", "int8-bf16"])
    if args.precision.startswith("int8") and not args.texts:
        raise SystemExit("--texts is needed to calibrate int8")
    pairing.compare(args, OpenVino(args.model, args.precision, args.texts))
