"""Data for node classification: one graph whose nodes are split, all of them seen at once (transductive)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from sklearn.datasets import load_digits
from sklearn.neighbors import kneighbors_graph
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from neutreno.config.options import EXECUTION, FREE, Count, Reader, ReaderArgs, Root, Rule, Share, checked
from neutreno.data.fingerprint import digest, of_array
from neutreno.data.graph_files import (
    SPLITS,
    UNLABELLED,
    Graph,
    check_graph,
    check_masks,
    draw_masks,
    undirected,
)
from neutreno.data.graph_files.npz import read_npz
from neutreno.data.graph_files.planetoid import read_planetoid
from neutreno.data.graph_files.pyg import read_pyg
from neutreno.data.images import SPLIT_SEED
from neutreno.data.kinds import SteppedData
from neutreno.data.loading import Resumable, derive_seed
from neutreno.errors import InputError

FileName = Annotated[
    str,
    Rule(
        lambda name: Path(name).name == name and name not in ("", "..") and not {*"*?["} & {*name},
        "should be the name of a file or folder, without those above it and without *, ? and [",
    ),
]
One = Literal[1]  # a batch is the whole graph


class WholeGraph(Sequence):
    """A split: one batch, the features of all nodes (1, N, F) and labels (1, N), ``UNLABELLED`` at nodes of other
    splits. The tensors are the same each time, so that they are moved to a device only once.

    It has no ``sampler`` on purpose: Lightning takes an evaluation loader that has one for PyTorch's.
    """

    def __init__(self, *batch: Tensor) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return (self.batch,)[index]


class StepLoader(Resumable):
    """The one batch of a split, ``steps`` times in what Lightning calls an epoch."""

    def __init__(self, split: WholeGraph, steps: int) -> None:
        self.split, self.steps = split, steps
        self.sampler = self  # where Lightning sets the epoch

    def __len__(self) -> int:
        return self.steps

    def batches_from(self, first: int) -> Iterator[tuple[Tensor, ...]]:
        return itertools.repeat(self.split[0], len(self) - first)


class GraphData(SteppedData):
    """One graph with features, each node's divided by their sum of magnitudes, and classes of its nodes.

    A subclass reads it (:meth:`read_graph`). One optimizer step is one pass over the whole graph. The edges belong to
    the model, see :meth:`model_arguments`.

    Args:
        missing: share of the nodes outside the training split whose features are set to zero, drawn with ``seed``;
            1: of all of them (Zhou et al., 2020).
        per_class: ``{train: 20, val: 30}`` draws so many nodes of each class with ``seed``, and the rest to test; null:
            the data set's own split.
        batch_size, eval_batch_size, micro_batch_size, repeats, num_workers, max_corrupt: there is nothing to choose.
        kwargs: of :class:`neutreno.data.kinds.SteppedData`.
    """

    samples_are = "nodes"

    @checked
    def __init__(
        self,
        missing: Share = 0.0,
        per_class: dict[Literal["train", "val"], Count] | None = None,
        batch_size: One = 1,
        eval_batch_size: Annotated[One, EXECUTION] = 1,
        micro_batch_size: Annotated[One | Literal["auto"] | None, EXECUTION] = None,
        repeats: One = 1,
        num_workers: Annotated[Literal[0], EXECUTION] = 0,
        max_corrupt: Annotated[Annotated[float, Ge(0), Le(0)], FREE] = 0.0,
        **kwargs,
    ) -> None:
        batches = {"batch_size": batch_size, "eval_batch_size": eval_batch_size, "micro_batch_size": micro_batch_size}
        super().__init__(**batches, repeats=repeats, num_workers=num_workers, max_corrupt=max_corrupt, **kwargs)
        if per_class is not None and len(per_class) < 2:
            raise InputError("data.per_class needs both numbers: 'data.per_class={train:20,val:30}'")
        self.missing, self.per_class = missing, per_class
        self.graph: Graph | None = None
        self._moved = WeakTensorKeyDictionary()

    def read_graph(self) -> tuple[Graph, str]:
        """The graph, and what error messages call it."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        if self.graph is not None:
            return
        graph, where = self.read_graph()
        check_graph(graph, where)
        self.masks = graph.masks
        if self.per_class is not None:
            self.masks = draw_masks(graph.labels, self.per_class, derive_seed(self.seed))
        if not self.masks:
            raise InputError(f"{where} has no split of its own; draw one: 'data.per_class={{train:20,val:30}}'")
        check_masks(self.masks, graph, where)
        self.graph = graph
        x, labels = self._features()[None], torch.from_numpy(graph.labels)[None]
        train, val, test = (labels.where(torch.from_numpy(self.masks[s]), UNLABELLED) for s in SPLITS)
        self.splits = {"train": WholeGraph(x, train, val), "val": WholeGraph(x, val), "test": WholeGraph(x, test)}

    def _features(self) -> Tensor:
        """What the model sees, (N, F)."""
        x = F.normalize(torch.from_numpy(self.graph.features), p=1)
        others = np.flatnonzero(~self.masks["train"])
        drawn = np.random.default_rng(derive_seed(self.seed, 1)).permutation(others)
        x[drawn[: int(self.missing * len(others))]] = 0
        return x

    def count(self, split: str) -> int:
        return int(self.masks[split].sum())

    def model_arguments(self) -> dict[str, Any]:
        """Sizes, and the edges (2, E): both directions of each, without self-loops and duplicates."""
        self.setup("validate")
        nodes, features = self.graph.features.shape
        sizes = {"num_nodes": nodes, "num_features": features, "num_classes": self.graph.num_classes}
        return {**sizes, "edges": torch.from_numpy(self.graph.edges)}

    def accumulated_batches(self, world: int, micro_batches: int = 1, fits: int | None = None) -> int:
        if world > 1:
            raise InputError(f"a graph is one batch, for one process, not {world}: set trainer.devices=1")
        if micro_batches > 1:
            said = f"trainer.accumulate_grad_batches={micro_batches}: a graph is one batch, and cannot be split"
            raise InputError(f"{said}; leave it out")
        return 1

    @cached_property
    def digests(self) -> dict[str, str]:
        """Of the graph as it was read: what a seed draws does not make it another one."""
        parts = (self.graph.features, self.graph.edges, self.graph.labels, *self.graph.masks.values())
        return {"graph": digest(map(of_array, parts))}

    def record(self) -> dict[str, Any]:
        splits = {split: self.count(split) for split in SPLITS}
        return {**super().record(), "graph": {**self.graph.sizes, "splits": splits}}

    @property
    def samples_per_step(self) -> int:
        return len(self.graph.labels)

    def train_dataloader(self) -> StepLoader:
        return StepLoader(self.splits["train"], self.val_every_n_steps)

    def _eval_loader(self, split: str) -> WholeGraph:
        self.accumulated_batches(self.trainer.world_size)
        return self.splits[split]

    def transfer_batch_to_device(self, batch: Sequence[Tensor], device: torch.device, dataloader_idx: int) -> tuple:
        """Each tensor is moved once and kept there: every step takes the same ones."""
        return tuple(self._on(device, tensor) for tensor in batch)

    def _on(self, device: torch.device, tensor: Tensor) -> Tensor:
        if tensor.device == device:
            return tensor
        if (held := self._moved.get(tensor)) is None or held.device != device:
            with torch.inference_mode(False):  # an evaluation may come first, and training goes on with it
                held = self._moved[tensor] = tensor.to(device)
        return held

    def probe_samples(self, num_samples: int) -> tuple[Tensor, Tensor]:
        """Features (1, N, F) and labels (1, N) of all nodes, which are one sample."""
        return self.splits["val"][0][0], torch.from_numpy(self.graph.labels)[None]


class DigitsGraph(GraphData):
    """The embedded graph: scikit-learn's 1,797 handwritten digits, each joined to those nearest by cosine similarity.

    A fixed split, the same for every seed: 20 digits of each class to train, 40 to validate, the other 1,197 to test.

    Args:
        neighbours: how many nearest digits each is joined to; edges have no direction, so some have more.
    """

    @checked
    def __init__(self, neighbours: Annotated[int, Ge(1), Le(1000)] = 8, **kwargs) -> None:
        super().__init__(**kwargs)
        self.neighbours = neighbours

    def read_graph(self) -> tuple[Graph, str]:
        pixels, labels = load_digits(return_X_y=True)
        nearest = kneighbors_graph(pixels, self.neighbours, metric="cosine").tocoo()
        where = f"the digits joined to {self.neighbours} neighbours"
        edges = undirected(np.stack(nearest.coords), len(labels), where)
        masks = draw_masks(labels, {"train": 20, "val": 40}, SPLIT_SEED)
        return Graph(pixels.astype(np.float32), edges, labels.astype(np.int64), masks), where


class GraphFiles(GraphData):
    """A graph from files under ``root`` (:meth:`read_files` of a subclass), or from PyTorch Geometric.

    Args:
        root: folder of the data set; with ``reader``, where it keeps its files.
        reader: instead of files ``pyg/NAME``, a class of ``torch_geometric.datasets`` with one graph.
        reader_args: further arguments of that class, ``name`` among them.
        split: which of a reader's splits, where it has several; null: the first.

    Raises:
        InputError: ``split`` is given without a reader, or where the split is drawn.
    """

    @checked
    def __init__(
        self,
        root: Root,
        reader: Reader = None,
        reader_args: ReaderArgs = None,
        split: Annotated[int, Ge(0), Le(10**6)] | None = None,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if split is not None and reader is None:
            raise InputError(f"data.split={split} goes with data.reader; leave it out")
        if split is not None and self.per_class is not None:
            raise InputError(f"data.split={split} is the reader's, and data.per_class draws another; leave one out")
        self.root, self.reader, self.reader_args, self.split = root, reader, reader_args or {}, split

    def read_files(self) -> Graph:
        raise NotImplementedError

    def read_graph(self) -> tuple[Graph, str]:
        if self.reader is None:
            return self.read_files(), f"data.root={self.root}"
        return read_pyg(self.reader, self.root, self.reader_args, self.split), f"data.reader={self.reader}"


class Planetoid(GraphFiles):
    """A citation graph with its public split, see :func:`neutreno.data.graph_files.planetoid.read_planetoid`.

    Args:
        name: of the raw files ``ind.NAME.*``.
    """

    @checked
    def __init__(self, name: Literal["cora", "citeseer", "pubmed"], **kwargs) -> None:
        super().__init__(**kwargs)
        self.name = name

    def read_files(self) -> Graph:
        return read_planetoid(self.root, self.name)


class NpzGraph(GraphFiles):
    """A graph of Shchur et al. (2018) in one npz file, see :func:`neutreno.data.graph_files.npz.read_npz`.

    Args:
        file: its name.
        folders: names of folders below ``root`` in which it may lie, itself or in one named raw.
    """

    @checked
    def __init__(self, file: FileName, folders: Annotated[list[FileName], EXECUTION] = (), **kwargs) -> None:
        super().__init__(**kwargs)
        self.file, self.folders = file, folders

    def read_files(self) -> Graph:
        return read_npz(self.root, self.file, self.folders)
