"""Input embedding and output distribution over a large vocabulary, from one matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neutreno.errors import InputError


class AdaptiveSoftmax(nn.Module):
    """Adaptive softmax (Grave et al., 2017) whose output matrix is the input embedding too; every word has width C.

    The words, from frequent to rare, are cut at ``cutoffs`` into a shortlist and tail clusters 1 … n. A *head* knows
    the shortlist and one logit per cluster, ``p(word) = p(cluster) p(word | cluster)``, so a rare word's logits are
    computed only for the tokens that are in its cluster: nothing of size tokens x vocabulary is held in training. As in
    the released code cluster i reads the head's logit −i, counted from the end. No cutoffs: a plain softmax.

    ``torch.nn.AdaptiveLogSoftmaxWithLoss`` does not serve: its tails have projections and matrices of their own, which
    cannot be tied, and it reads the clusters in the other order.

    Args:
        vocab_size: V. dim: C.
        cutoffs: the shortlist's end and that of every cluster but the last, increasing.

    Raises:
        InputError: cutoffs that do not increase or lie beyond the vocabulary.
    """

    def __init__(self, vocab_size: int, dim: int, cutoffs: Sequence[int] | None = None) -> None:
        super().__init__()
        cutoffs = [] if cutoffs is None else list(cutoffs)
        if any(type(c) is not int or c < 1 for c in cutoffs) or cutoffs != sorted(set(cutoffs)):
            raise InputError(f"model.cutoffs={cutoffs} are no increasing whole numbers; write e.g. [20000,40000]")
        if cutoffs and cutoffs[-1] >= vocab_size:
            raise InputError(
                f"model.cutoffs={cutoffs} go beyond the vocabulary of {vocab_size:,} words; lower them, or take "
                "model.cutoffs=[] for a plain softmax"
            )
        self.bounds = [*cutoffs, vocab_size]
        self.weight = nn.Parameter(torch.zeros(vocab_size, dim))
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.cluster_weight = nn.Parameter(torch.zeros(len(cutoffs), dim)) if cutoffs else None
        self.cluster_bias = nn.Parameter(torch.zeros(len(cutoffs))) if cutoffs else None

    def embed(self, ids: Tensor) -> Tensor:
        """Word ids (…) → vectors (…, C), scaled by √C."""
        return F.embedding(ids, self.weight) * math.sqrt(self.weight.shape[1])

    def _head(self, hidden: Tensor) -> Tensor:
        shortlist = self.bounds[0]
        weight, bias = self.weight[:shortlist], self.bias[:shortlist]
        if self.cluster_weight is not None:
            weight, bias = torch.cat([weight, self.cluster_weight]), torch.cat([bias, self.cluster_bias])
        return F.linear(hidden, weight, bias)

    def _tails(self) -> list[tuple[int, int, int]]:
        """(column of the head, first word, end) of every tail cluster."""
        clusters = len(self.bounds) - 1
        return [(self.bounds[0] + clusters - i, self.bounds[i - 1], self.bounds[i]) for i in range(1, clusters + 1)]

    def nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood of ``targets`` (…), given the hidden states (…, C) that predict them."""
        shape, hidden, targets = targets.shape, hidden.flatten(0, -2), targets.flatten()
        column, rows, tails = targets, [], []
        for place, first, end in self._tails():
            inside = (targets >= first) & (targets < end)
            column = torch.where(inside, place, column)
            row = inside.nonzero().squeeze(1)
            logits = F.linear(hidden[row], self.weight[first:end], self.bias[first:end])
            rows.append(row)
            tails.append(F.cross_entropy(logits, targets[row] - first, reduction="none"))
        nll = F.cross_entropy(self._head(hidden), column, reduction="none")
        if tails:
            tail = torch.cat(tails)
            nll = nll.index_add(0, torch.cat(rows), tail.to(nll.dtype))
        return nll.view(shape)

    def log_prob(self, hidden: Tensor) -> Tensor:
        """Log-probabilities of all words, (…, C) → (…, V)."""
        head = F.log_softmax(self._head(hidden), dim=-1)
        parts = [head[..., : self.bounds[0]]]
        for place, first, end in self._tails():
            tail = F.log_softmax(F.linear(hidden, self.weight[first:end], self.bias[first:end]), dim=-1)
            parts.append(head[..., place, None] + tail)
        return torch.cat(parts, dim=-1)
