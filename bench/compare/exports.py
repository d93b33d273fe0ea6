"""ONNX and OpenVINO forms of a BERT folder, made when first asked for and kept beside the model.

The graph holds pooling, by the first token or the mean as the folder says, and L2 normalisation. It is
fused by ONNX Runtime's transformer optimiser, and quantised as each project recommends: dynamically
and per channel for ONNX Runtime, weights and activations by NNCF with 300 calibration texts for
OpenVINO.
"""

import json
from pathlib import Path

import pairing


def onnx(folder: Path) -> Path:
    path = folder / "fletcher-compare.onnx"
    if path.exists():
        return path
    import torch
    from transformers import AutoModel

    first = pairing.pools_first(folder)
    inner = AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()

    class Embedding(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, input_ids, attention_mask, token_type_ids):
            hidden = self.inner(input_ids, attention_mask, token_type_ids).last_hidden_state
            weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
            mean = lambda: (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
            pooled = hidden[:, 0] if first else mean()
            return pooled / pooled.norm(dim=-1, keepdim=True).clamp(min=1e-12)

    ids = torch.randint(1000, 2000, (2, 24))
    mask = torch.ones_like(ids)
    mask[1, 16:] = 0
    names = ["input_ids", "attention_mask", "token_type_ids"]
    axes = {name: {0: "batch", 1: "tokens"} for name in names} | {"vector": {0: "batch"}}
    torch.onnx.export(
        Embedding().eval(), (ids, mask, torch.zeros_like(ids)), str(path), dynamo=False,
        opset_version=17, input_names=names, output_names=["vector"], dynamic_axes=axes,
    )
    return path


def onnx_fused(folder: Path) -> Path:
    path = folder / "fletcher-compare-fused.onnx"
    if not path.exists():
        from onnxruntime.transformers import optimizer
        from onnxruntime.transformers.fusion_options import FusionOptions

        config = json.loads((folder / "config.json").read_text())
        optimizer.optimize_model(
            str(onnx(folder)), model_type="bert", num_heads=config["num_attention_heads"],
            hidden_size=config["hidden_size"], optimization_options=FusionOptions("bert"), opt_level=0,
        ).save_model_to_file(str(path))
    return path


def onnx_int8(folder: Path) -> Path:
    path = folder / "fletcher-compare-int8.onnx"
    if not path.exists():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            str(onnx_fused(folder)), str(path), weight_type=QuantType.QInt8, per_channel=True,
            reduce_range=False, extra_options={"DefaultTensorType": 1},
        )
    return path


def openvino_int8(folder: Path, texts: Path) -> Path:
    path = folder / "fletcher-compare-int8.xml"
    if not path.exists():
        import nncf
        import numpy as np
        import openvino

        tokenizer = pairing.BatchPeer(folder).tokenizer
        rows = [np.array([tokenizer.encode(text).ids]) for text in pairing.texts_of(texts, 300)]
        names = ("input_ids", "attention_mask", "token_type_ids")
        feed = lambda ids: dict(zip(names, (ids, np.ones_like(ids), np.zeros_like(ids))))
        quantised = nncf.quantize(
            openvino.convert_model(str(onnx(folder))), nncf.Dataset([feed(ids) for ids in rows]),
            model_type=nncf.ModelType.TRANSFORMER, subset_size=len(rows),
        )
        openvino.save_model(quantised, str(path), compress_to_fp16=False)
    return path
