"""The released language model as a baseline, built as its code builds it, under its names of parameters.

Time-first tokens, einsum over explicit (i, j, B, H) scores and a mask made in each pass; queries apart from keys and
values; an adaptive softmax over slices of the embedding, whose gradients are each as large as the embedding. (The
structure is that of IDSIA's lmtool-fwp, which NeuTRENO's language code builds on; rewritten, the rule is the paper's.)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, lam: float) -> None:
        super().__init__()
        self.heads, self.lam = heads, lam
        self.q_net, self.kv_net = nn.Linear(dim, dim, bias=False), nn.Linear(dim, 2 * dim, bias=False)
        self.o_net, self.layer_norm = nn.Linear(dim, dim, bias=False), nn.LayerNorm(dim)
        self.drop, self.dropatt = nn.Dropout(0.1), nn.Dropout(0.0)

    def forward(self, h: Tensor, mask: Tensor, v0: Tensor | None) -> tuple[Tensor, Tensor]:
        """h (N, B, C), mask (N, N), true where a token is not seen."""
        q, k, v = (x.view(*h.shape[:2], self.heads, -1) for x in (self.q_net(h), *self.kv_net(h).chunk(2, -1)))
        scores = torch.einsum("ibnd,jbnd->ijbn", q, k).mul_(q.shape[-1] ** -0.5)
        scores.masked_fill_(mask[:, :, None, None], -float("inf"))
        out = torch.einsum("ijbn,jbnd->ibnd", self.dropatt(scores.softmax(1)), v)
        if v0 is not None:
            out = out + self.lam * (v0 - v)
        out = self.drop(self.o_net(out.contiguous().flatten(2)))
        return self.layer_norm(h + out), v


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        layers = [nn.Linear(dim, hidden), nn.ReLU(inplace=True), nn.Dropout(0.1), nn.Linear(hidden, dim)]
        self.CoreNet, self.layer_norm = nn.Sequential(*layers, nn.Dropout(0.1)), nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer_norm(x + self.CoreNet(x))


class AdaptiveSoftmax(nn.Module):
    def __init__(self, embedding: nn.Embedding, cutoffs: list[int]) -> None:
        super().__init__()
        words, dim = embedding.weight.shape
        self.bounds = [0, *cutoffs, words]
        self.out_layers = nn.ModuleList([nn.Linear(dim, words)])
        self.out_layers[0].weight = embedding.weight
        self.cluster_weight = nn.Parameter(torch.zeros(len(cutoffs), dim))
        self.cluster_bias = nn.Parameter(torch.zeros(len(cutoffs)))

    def forward(self, hidden: Tensor, target: Tensor) -> Tensor:
        weight, bias = self.out_layers[0].weight, self.out_layers[0].bias
        parts = [[weight[a:b], bias[a:b]] for a, b in zip(self.bounds, self.bounds[1:], strict=False)]
        parts[0] = [torch.cat([parts[0][0], self.cluster_weight]), torch.cat([parts[0][1], self.cluster_bias])]
        head = F.log_softmax(F.linear(hidden, *parts[0]), 1)
        nll = torch.zeros_like(target, dtype=hidden.dtype)
        for i, (first, end) in enumerate(zip(self.bounds, self.bounds[1:], strict=False)):
            inside = ((target >= first) & (target < end)).nonzero().squeeze(1)
            if not inside.numel():
                continue
            own = target[inside, None] - first
            chosen = head[inside]
            if i == 0:
                log_p = chosen.gather(1, own).squeeze(1)
            else:
                tail = F.log_softmax(F.linear(hidden[inside], *parts[i]), 1)
                log_p = chosen[:, -i] + tail.gather(1, own).squeeze(1)
            nll.index_copy_(0, inside, -log_p)
        return nll


class ReleasedModel(nn.Module):
    def __init__(self, words: int, dim: int, depth: int, heads: int, hidden: int, cutoffs: list[int], lam: float):
        super().__init__()
        self.word_emb = nn.Module()
        self.word_emb.emb_layers = nn.ModuleList([nn.Embedding(words, dim)])
        self.crit = AdaptiveSoftmax(self.word_emb.emb_layers[0], cutoffs)
        parts = ({"dec_attn": Attention(dim, heads, lam), "pos_ff": FeedForward(dim, hidden)} for _ in range(depth))
        self.layers, self.drop = nn.ModuleList(map(nn.ModuleDict, parts)), nn.Dropout(0.1)
        self.register_buffer("inv_freq", 10000 ** -(torch.arange(0.0, dim, 2.0) / dim), persistent=False)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """(N, B) both: the negative log-likelihood of each target, (N, B)."""
        tokens, dim = len(ids), self.crit.cluster_weight.shape[1]
        mask = torch.triu(ids.new_ones(tokens, tokens), diagonal=1).bool()
        angle = torch.arange(tokens - 1, -1, -1.0, device=ids.device).outer(self.inv_freq)
        positions = torch.cat([angle.sin(), angle.cos()], -1)[:, None]
        h, v0 = self.drop(self.word_emb.emb_layers[0](ids) * dim**0.5 + positions), None
        for layer in self.layers:
            h, v = layer["dec_attn"](h, mask, v0)
            h, v0 = layer["pos_ff"](h), v if v0 is None else v0
        return self.crit(self.drop(h).flatten(0, 1), targets.flatten()).view_as(targets)
