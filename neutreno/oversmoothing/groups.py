"""Layer-wise metrics of graphs: distances between classes of nodes, and information on their inputs.

X (N, d) are the features of N nodes, labels (N,) their classes; only classes that occur count. All is computed in
float64, and nothing holds an N × N matrix of a large graph: rows are taken in blocks. (Zhou et al., "Towards Deeper
Graph Neural Networks with Differentiable Group Normalization", NeurIPS 2020.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from neutreno.data.graph_files import UNLABELLED
from neutreno.errors import InputError
from neutreno.oversmoothing.tokens import LayerTokens, check_finite, layerwise_metric

_BLOCK = 2**22  # entries of a block of rows: 32 MiB
_ROUNDING = 1e-24  # a squared distance on the unit sphere that rounding makes
_SHORTEST = 1e-150  # length of a row whose square is still exact
VARIANCE = 0.1  # of the Gaussians around inputs


def unit_rows(x: Tensor) -> Tensor:
    """Rows of length 1 in float64, (…, N, d); zero rows stay zero."""
    return F.normalize(x.double(), dim=-1, eps=_SHORTEST)


def squared_distances(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared distance of unit-length rows within a class, (), and how much more it is between two, (), in O(N d).

    Pairs include a node with itself; every class, and every pair of classes, counts alike. A class of mean m and mean
    squared distance s to it has 2 s within, and ‖m − m'‖² + s + s' to another: the mean of ‖m − m'‖² is the difference.
    """
    unit, (classes, index, counts) = unit_rows(x), labels.unique(return_inverse=True, return_counts=True)
    means = unit.new_zeros(len(classes), unit.shape[1]).index_add(0, index, unit) / counts[:, None]
    squares = (unit - means[index]).square().sum(-1)
    within = 2 * (unit.new_zeros(len(classes)).index_add(0, index, squares) / counts).mean()
    return within, 2 * (means - means.mean(0)).square().sum() / (len(classes) - 1)


def squared_distance_ratio(x: Tensor, labels: Tensor) -> Tensor:
    """The group distance ratio as the released code has it: the mean squared distance of unit-length rows between two
    classes, over that within a class, (): 1 if classes are not apart at all, ∞ if each is a single point.

    NaN counts as 1, as in the released code: of collapsed features, or of a single class.
    """
    within, more = (torch.where(y > _ROUNDING, y, y * 0) for y in squared_distances(x, labels))
    return 1 + (more / within).nan_to_num(nan=0.0, posinf=math.inf)


def distance_ratio(x: Tensor, labels: Tensor) -> Tensor:
    """The group distance ratio as the paper prints it, (): plain distances of the features as they are, summed over the
    C (C − 1) ordered pairs of classes with a factor of ``1 / (C − 1)²``, over the mean within a class. O(N² d).

    NaN counts as 1, as above.
    """
    classes, counts = labels.unique(return_counts=True)
    x = x.double()
    scale = torch.linalg.vector_norm(x)
    x = x - x.mean(0)
    members = (labels[:, None] == classes).double()
    sums = members.new_zeros(len(classes), len(classes))
    for rows in _blocks(len(x)):
        distances = torch.cdist(x[rows], x)
        distances.diagonal(rows.start).zero_()  # by matrix products a node is not quite at its own place
        sums += members[rows].T @ (distances @ members)
    means = sums / counts[:, None] / counts
    within = means.diagonal().mean()
    between = (means.sum() - means.diagonal().sum()) / (len(classes) - 1) ** 2
    within, between = (torch.where(y > 1e-13 * scale, y, y * 0) for y in (within, between))  # no more than rounding
    return (between / within).nan_to_num(nan=1.0, posinf=math.inf)


def kernel(inputs: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """``exp(−‖x − y‖² / (8 · variance))`` of unit-length inputs (N, F), in blocks of rows, each with which rows it has:
    the overlap of two Gaussians, of which a mixture's Bhattacharyya bound is made."""
    unit = unit_rows(inputs)
    squares = unit.square().sum(-1)
    for rows in _blocks(len(unit)):
        block = unit[rows] @ unit.T
        block.mul_(-2).add_(squares).add_(squares[rows, None])
        yield rows, block.mul_(-1 / (8 * VARIANCE)).exp_()


def information_gain(groups: Tensor, kernels: Iterable[tuple[slice, Tensor]]) -> Tensor:
    """I(input; group) in bits, (): the entropy of the inputs, a mixture of Gaussians, less that within a group.

    Both entropies are the lower bound by Bhattacharyya distances, whose constants cancel. (Kolchinsky & Tracey,
    "Estimating Mixture Entropy with Pairwise Distances", Entropy, 2017.)

    Args:
        groups: of the nodes, (N,). kernels: see :func:`kernel`.
    """
    sizes = groups.bincount()[groups].double()
    gain = sizes.new_zeros(())
    for rows, block in kernels:
        own = torch.where(groups[rows, None] == groups, block, 0.0).sum(-1) / sizes[rows]
        gain += (own / block.mean(-1)).log().sum()
    return gain / len(groups) / math.log(2)


def _blocks(rows: int) -> Iterator[slice]:
    size = max(1, _BLOCK // max(1, rows))
    return (slice(start, start + size) for start in range(0, rows, size))


# The layer-wise metrics


@layerwise_metric(needs=["labels"])
def group_distance_ratio(tokens: LayerTokens) -> Tensor:
    """:func:`squared_distance_ratio` of the tokens' own labels; −100 is none."""
    return _by_class(tokens, squared_distance_ratio)


@layerwise_metric(needs=["labels"])
def group_distance_ratio_paper(tokens: LayerTokens) -> Tensor:
    """:func:`distance_ratio` of the tokens' own labels; −100 is none."""
    return _by_class(tokens, distance_ratio)


def _by_class(tokens: LayerTokens, formula: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    check_finite(tokens.features[tokens.counting()], "the group distance ratio")
    shape = tuple(tokens.features.shape[:2])
    if tuple(tokens.labels.shape) != shape:
        labels = tuple(tokens.labels.shape)
        raise InputError(f"the group distance ratio takes a label of every token, {shape}, not labels {labels}")
    chosen = tokens.counting() & (tokens.labels != UNLABELLED)
    samples = zip(tokens.features, tokens.labels, chosen, strict=True)
    return torch.stack([formula(x[mask], labels[mask]) for x, labels, mask in samples])


@layerwise_metric(needs=["inputs"])
def instance_information_gain(tokens: LayerTokens) -> Tensor:
    """What the largest feature of a token tells of its input, in bits: I(input; argmax of the features).

    See :func:`information_gain`; of a network's output, the argmax is the class that it predicts.
    """
    check_finite(tokens.features[tokens.counting()], "instance information gain")
    shape, given = tuple(tokens.features.shape[:2]), tuple(tokens.inputs.shape)
    if len(given) != 3 or given[:2] != shape:
        raise InputError(f"instance information gain takes inputs of every token, {shape} × F, not inputs {given}")
    found = []
    for i, (x, mask) in enumerate(zip(tokens.features, tokens.counting(), strict=True)):
        kernels = _kernel(tokens.inputs, i) if mask.all() else kernel(tokens.inputs[i][mask])
        found.append(information_gain(x[mask].argmax(-1), kernels))
    return torch.stack(found)


_KEPT = WeakTensorKeyDictionary()  # kernels by the inputs that they are of, which all layers of a pass share
_MOST_KEPT = 2**24  # entries of the kernels of all samples: 128 MiB


def _kernel(inputs: Tensor, sample: int) -> Iterable[tuple[slice, Tensor]]:
    if inputs.shape[0] * inputs.shape[1] ** 2 > _MOST_KEPT:
        return kernel(inputs[sample])
    version = None if inputs.is_inference() else inputs._version
    kept = _KEPT.get(inputs)
    if kept is None or version is None or kept[0] != version:
        kept = _KEPT[inputs] = version, {}
    if sample not in kept[1]:
        kept[1][sample] = list(kernel(inputs[sample]))
    return kept[1][sample]
