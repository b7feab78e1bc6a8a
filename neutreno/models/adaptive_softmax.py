"""Input embedding and output distribution over a large vocabulary, from one matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neutreno.errors import InputError


class AdaptiveSoftmax(nn.Module):
    """Adaptive softmax (Grave et al., 2017) whose output matrix is the input embedding too; every token has width C.

    The tokens, from frequent to rare, are cut at ``cutoffs`` into a shortlist and tail clusters 1 … n. A *head* knows
    the shortlist and one logit per cluster, ``p(token) = p(cluster) p(token | cluster)``, so a rare token's logits are
    computed only for the tokens that are in its cluster: nothing of size tokens x vocabulary is held in training. As in
    the released code cluster i reads the head's logit −i, counted from the end. No cutoffs: a plain softmax.

    ``torch.nn.AdaptiveLogSoftmaxWithLoss`` does not serve: its tails have separate projections and matrices, which
    cannot be tied, and it reads the clusters in the other order.

    Args:
        vocab_size: V. dim: C.
        cutoffs: the shortlist's end and that of every cluster but the last, increasing.

    Raises:
        InputError: cutoffs that do not increase or lie beyond the vocabulary.
    """

    def __init__(self, vocab_size: int, dim: int, cutoffs: Sequence[int] | None = None) -> None:
        super().__init__()
        cutoffs = list(cutoffs or [])
        if any(type(c) is not int or c < 1 for c in cutoffs) or cutoffs != sorted(set(cutoffs)):
            raise InputError(f"model.cutoffs={cutoffs} are no increasing whole numbers; write e.g. [20000,40000]")
        if cutoffs and cutoffs[-1] >= vocab_size:
            what = f"model.cutoffs={cutoffs} go beyond the vocabulary of {vocab_size:,} tokens"
            raise InputError(f"{what}; lower them, or take model.cutoffs=[] for a plain softmax")
        self.bounds = [0, *cutoffs, vocab_size]
        self.sizes = [end - first for first, end in pairwise(self.bounds)]
        self.weight = nn.Parameter(torch.zeros(vocab_size, dim))
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.cluster_weight = nn.Parameter(torch.zeros(len(cutoffs), dim)) if cutoffs else None
        self.cluster_bias = nn.Parameter(torch.zeros(len(cutoffs))) if cutoffs else None

    def embed(self, ids: Tensor) -> Tensor:
        """Word ids (…) → vectors (…, C), scaled by √C."""
        return F.embedding(ids, self.weight) * math.sqrt(self.weight.shape[1])

    def _parts(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of the head and of every tail cluster."""
        # split, not slices: the gradient of each slice would be as large as the whole matrix
        (weight, *tails), (bias, *tail_biases) = self.weight.split(self.sizes), self.bias.split(self.sizes)
        if self.cluster_weight is not None:
            weight, bias = torch.cat([weight, self.cluster_weight]), torch.cat([bias, self.cluster_bias])
        return [(weight, bias), *zip(tails, tail_biases, strict=True)]

    def _column(self, cluster: int) -> int:
        """Of the head, for tail cluster 1 … n."""
        return self.sizes[0] + len(self.sizes) - 1 - cluster

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood of ``targets`` (…), given the hidden states (…, C) that predict them."""
        shape, hidden, targets = targets.shape, hidden.flatten(0, -2), targets.flatten()
        head, *tails = self._parts()
        column, rows, tail_nll = targets, [], []
        for i, tail in enumerate(tails, 1):
            inside = (targets >= self.bounds[i]) & (targets < self.bounds[i + 1])
            column = torch.where(inside, self._column(i), column)
            row = inside.nonzero().squeeze(1)
            rows.append(row)
            logits = F.linear(hidden[row], *tail)
            tail_nll.append(F.cross_entropy(logits, targets[row] - self.bounds[i], reduction="none"))
        nll = F.cross_entropy(F.linear(hidden, *head), column, reduction="none")
        if tails:
            nll = nll.index_add(0, torch.cat(rows), torch.cat(tail_nll))
        return nll.view(shape)

    def log_prob(self, hidden: Tensor) -> Tensor:
        """Log-probabilities of all tokens, (…, C) → (…, V)."""
        head, *tails = (F.log_softmax(F.linear(hidden, *part), dim=-1) for part in self._parts())
        clusters = [tail + head[..., self._column(i), None] for i, tail in enumerate(tails, 1)]
        return torch.cat([head[..., : self.sizes[0]], *clusters], dim=-1)
