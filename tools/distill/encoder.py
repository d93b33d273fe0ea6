"""A BERT encoder over length buckets, for teacher and student alike.

A batch is a list of buckets: `(ids [B, L], lengths [B])`, each bucket padded to its own L only.
All token-wise layers run once on the tokens of all buckets together, attention runs bucket by
bucket, and the result is one pooled vector a text, in the order of the buckets. With a fixed list
of bucket shapes every shape in the network is fixed, so a whole training step can be one CUDA graph.

Parameter names are Hugging Face's, so a state dict is a checkpoint of `transformers.BertModel`.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """What `config.json` of a BERT checkpoint says."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int = 30522
    positions: int = 512
    eps: float = 1e-12


BERT_TINY = Shape(hidden=128, layers=2, heads=2, intermediate=512)
MINILM_L6 = Shape(hidden=384, layers=6, heads=12, intermediate=1536)


class Embeddings(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.word_embeddings = nn.Embedding(shape.vocabulary, shape.hidden)
        self.position_embeddings = nn.Embedding(shape.positions, shape.hidden)
        self.token_type_embeddings = nn.Embedding(2, shape.hidden)
        self.LayerNorm = nn.LayerNorm(shape.hidden, eps=shape.eps)


class SelfAttention(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.query = nn.Linear(shape.hidden, shape.hidden)
        self.key = nn.Linear(shape.hidden, shape.hidden)
        self.value = nn.Linear(shape.hidden, shape.hidden)


class Residual(nn.Module):
    """A linear layer, the residual connection and the norm after it."""

    def __init__(self, inputs: int, shape: Shape):
        super().__init__()
        self.dense = nn.Linear(inputs, shape.hidden)
        self.LayerNorm = nn.LayerNorm(shape.hidden, eps=shape.eps)

    def forward(self, x, residual):
        return self.LayerNorm(self.dense(x) + residual)


class Layer(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.heads = shape.heads
        self.attention = nn.ModuleDict({"self": SelfAttention(shape), "output": Residual(shape.hidden, shape)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(shape.hidden, shape.intermediate)})
        self.output = Residual(shape.intermediate, shape)

    def forward(self, x, masks):
        attention = self.attention["self"]
        weight = torch.cat([attention.query.weight, attention.key.weight, attention.value.weight])
        bias = torch.cat([attention.query.bias, attention.key.bias, attention.value.bias])
        qkv = F.linear(x, weight, bias)
        contexts, start = [], 0
        for mask in masks:
            batch, length = mask.shape[0], mask.shape[-1]
            part = qkv[start : start + batch * length].view(batch, length, 3, self.heads, -1)
            q, k, v = part.permute(2, 0, 3, 1, 4)
            context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            contexts.append(context.transpose(1, 2).reshape(batch * length, -1))
            start += batch * length
        x = self.attention["output"](torch.cat(contexts), x)
        return self.output(F.gelu(self.intermediate["dense"](x)), x)


class Bert(nn.Module):
    """Texts to mean-pooled, normalised vectors."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.embeddings = Embeddings(shape)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer(shape) for _ in range(shape.layers))})

    def forward(self, buckets):
        """`buckets`: list of `(ids [B, L], lengths [B])` to vectors `[sum of B, hidden]` in f32."""
        places = [torch.arange(ids.shape[1], device=ids.device) for ids, _ in buckets]
        masks = [place[None, :] < lengths[:, None] for place, (_, lengths) in zip(places, buckets)]
        ids = torch.cat([ids.reshape(-1) for ids, _ in buckets])
        positions = torch.cat([place.repeat(ids.shape[0]) for place, (ids, _) in zip(places, buckets)])
        embeddings = self.embeddings
        x = embeddings.word_embeddings(ids) + embeddings.position_embeddings(positions)
        x = embeddings.LayerNorm(x + embeddings.token_type_embeddings.weight[0])
        attention_masks = [mask[:, None, None, :] for mask in masks]
        for layer in self.encoder["layer"]:
            x = layer(x, attention_masks)
        vectors, start = [], 0
        for mask in masks:
            states = x[start : start + mask.numel()].view(*mask.shape, -1).float()
            vectors.append((states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True))
            start += mask.numel()
        return F.normalize(torch.cat(vectors), dim=-1)
