"""A linear layer of dropped features, which takes no time for those that are zero: bags of words hardly hold others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.weak import WeakTensorKeyDictionary

SPARSE = 0.1  # share of other entries up to which zeros are left out


@dataclass(frozen=True)
class NonZeros:
    """The entries of a matrix (N, F) that are not zero, by rows, and how to find those of its transpose.

    Attributes:
        values: (n,). starts, columns: where they stand, as in a CSR matrix; ``transposed``: the same of the transpose,
            whose values are ``values[order]``.
    """

    shape: tuple[int, int]
    values: Tensor
    starts: Tensor
    columns: Tensor
    transposed: tuple[Tensor, Tensor]
    order: Tensor
    version: int

    @classmethod
    def of(cls, x: Tensor) -> NonZeros:
        rows, columns = x.nonzero(as_tuple=True)
        order = (columns * len(x) + rows).argsort()

        def starts(index: Tensor, size: int) -> Tensor:
            counts = torch.bincount(index, minlength=size)
            return torch.cat([counts.new_zeros(1), counts.cumsum(0)])

        transposed = starts(columns, x.shape[1]), rows[order]
        return cls(tuple(x.shape), x[rows, columns], starts(rows, len(x)), columns, transposed, order, x._version)

    def matrix(self, values: Tensor, transposed: bool = False) -> Tensor:
        if transposed:
            return torch.sparse_csr_tensor(
                *self.transposed, values[self.order], self.shape[::-1], check_invariants=False
            )
        return torch.sparse_csr_tensor(self.starts, self.columns, values, self.shape, check_invariants=False)


class _Product(torch.autograd.Function):
    """X Wᵀ with the gradient of W alone: X is data."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, values: Tensor, entries: NonZeros) -> Tensor:
        ctx.values, ctx.entries = values, entries
        return entries.matrix(values) @ weight.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return (ctx.entries.matrix(ctx.values, transposed=True) @ grad).mT, None, None


_known = WeakTensorKeyDictionary()  # features that were looked at: their entries, None where most are not zero


def _entries(x: Tensor) -> NonZeros | None:
    """The non-zeros of features that come in every step; None where leaving out zeros would not pay."""
    found = _known.get(x, False)
    if found is False or (found is not None and found.version != x._version):
        sparse = x.count_nonzero() <= SPARSE * x.numel()
        found = _known[x] = NonZeros.of(x[0]) if sparse else None
    return found


class DropLinear(nn.Linear):
    """``linear(dropout(x))``: (1, N, F) → (1, N, d). Of data that is mostly zero, the rest alone is dropped and used.

    Args:
        drop_rate: of the features.
        features: x is data, the same tensor in every step.
    """

    def __init__(self, dim_in: int, dim: int, bias: bool = True, drop_rate: float = 0.0, features: bool = False):
        super().__init__(dim_in, dim, bias=bias)
        self.drop_rate, self.features = drop_rate, features

    def forward(self, x: Tensor) -> Tensor:
        entries = _entries(x) if self.features and not x.requires_grad else None
        if entries is None:
            return super().forward(F.dropout(x, self.drop_rate, self.training))
        with torch.autocast(x.device.type, enabled=False):  # sparse products know no mixed precision
            values = F.dropout(entries.values, self.drop_rate, self.training)
            out = _Product.apply(self.weight, values, entries)[None]
        return out if self.bias is None else out + self.bias
