"""Graphs of Cora's size: group normalization in closed form against its formula written out, and training steps."""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

import benchmarks
from benchmarks.attention import peak_mib
from neutreno.evaluation.step_time import ratio, seconds
from neutreno.models.graph import GCN
from neutreno.models.graph_norms import GroupNorm, NoNorm
from neutreno.models.sparse import FeatureLinear
from neutreno.oversmoothing.groups import instance_information_gain
from neutreno.oversmoothing.tokens import LayerTokens

NODES, EDGES, FEATURES, CLASSES = 2708, 5278, 1433, 7  # Cora's
PUBMED = 19_717  # nodes


class NaiveGroupNorm(GroupNorm):
    """``H + λ Σ_g BatchNorm_g(S_g ⊙ H)`` written out, with the N × G·d tensor in memory, as in the released code."""

    def forward(self, x):
        h = x.flatten(0, 1)
        parts = (self.assignment(h).T[:, :, None] * h[:, None]).flatten(1)
        normalized = self.bn(parts).view(-1, self.groups, h.shape[-1]).sum(1)
        return x + self.skip_weight * normalized.view_as(x)


NORMS = {"closed": GroupNorm, "naive": NaiveGroupNorm}


def norm_pass(kind: type[GroupNorm], nodes: int) -> Callable[[], None]:
    layer = kind(16, groups=10).to(benchmarks.DEVICE)
    x = torch.randn(1, nodes, 16, device=benchmarks.DEVICE, requires_grad=True)
    return lambda: layer(x).sum().backward()


def gain_pass(nodes: int) -> Callable[[], None]:
    """Instance information gain of a layer; of a small graph, the first call makes what all layers share."""
    tokens = LayerTokens(torch.randn(1, nodes, 16), inputs=torch.rand(1, nodes, 500))
    return lambda: instance_information_gain(tokens)


def features_pass(layer: nn.Module) -> Callable[[], None]:
    """Dropout of Cora's features and a linear layer, forward and backward."""
    layer, x = layer.to(benchmarks.DEVICE).train(), bags_of_words()
    return lambda: layer(x).sum().backward()


def bags_of_words() -> torch.Tensor:
    words = torch.rand(1, NODES, FEATURES, device=benchmarks.DEVICE) < 0.0127  # Cora's share
    return F.normalize(words.float(), p=1.0, dim=-1)


def random_edges(nodes: int, edges: int) -> torch.Tensor:
    """Both directions of random edges, (2, 2 · edges) or a few less: loops and duplicates are left out."""
    pairs = torch.randint(nodes, (2, edges))
    pairs = pairs[:, pairs[0] != pairs[1]]
    return torch.cat([pairs, pairs.flip(0)], 1).unique(dim=1)


def training_step(depth: int, norm: Callable[..., nn.Module]) -> Callable[[], None]:
    network = GCN(FEATURES, CLASSES, random_edges(NODES, EDGES), num_nodes=NODES, depth=depth, norm=norm)
    network.to(benchmarks.DEVICE).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.0)
    x, labels = bags_of_words(), torch.full((NODES,), -100, device=benchmarks.DEVICE)
    labels[: 20 * CLASSES] = torch.arange(20 * CLASSES, device=benchmarks.DEVICE) % CLASSES

    def once() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(x)[0], labels).backward()
        optimizer.step()

    return once


def bench_graph(repeats: int) -> list[tuple[str, str]]:
    rows = []
    for nodes in (NODES, PUBMED):
        what = f"group normalization, N = {nodes:,}, d = 16, G = 10"
        closed, naive = (norm_pass(kind, nodes) for kind in NORMS.values())
        rows.append((f"{what}: closed form against the formula written out", ratio(closed, naive, repeats)))
        for _ in range(3):
            closed()
        spent = statistics.median(seconds(closed) for _ in range(repeats))
        rows.append((f"{what}: forward and backward", f"{1000 * spent:.2f} ms"))
        ours, theirs = (statistics.median(peak_mib(kind, nodes) for _ in range(3)) for kind in NORMS)
        rows.append(("its peak memory", f"{ours:.1f} MiB against {theirs:.1f} MiB"))
    sparse = features_pass(FeatureLinear(FEATURES, 16, drop_rate=0.6))
    dense = features_pass(nn.Sequential(nn.Dropout(0.6), nn.Linear(FEATURES, 16)))
    what = "dropout of Cora's features and X W: of the words that occur against dense"
    rows.append((what, ratio(sparse, dense, repeats)))
    for nodes in (NODES, PUBMED):
        call = gain_pass(nodes)
        first, further = seconds(call), statistics.median(seconds(call) for _ in range(3))
        what = f"instance information gain, N = {nodes:,}: the first layer, a further one, peak memory"
        rows.append((what, f"{first:.2f} s, {further:.2f} s, {peak_mib('gain', nodes):.0f} MiB"))
    for depth in (2, 15, 30):
        for name, norm in {"no": NoNorm, "group": partial(GroupNorm, skip_weight=0.03)}.items():
            step = training_step(depth, norm)
            for _ in range(3):
                step()
            spent = statistics.median(seconds(step) for _ in range(repeats))
            rows.append(
                (
                    f"training step of a GCN on a graph of Cora's size, {depth} layers, {name} norm",
                    f"{1000 * spent:.1f} ms",
                )
            )
    return rows


def bench_epoch(repeats: int) -> list[tuple[str, str]]:
    """What a run adds to an epoch of the embedded graph: loop, choice of the best epoch, logs and checkpoints."""
    from neutreno.config.building import build
    from neutreno.config.composing import compose
    from neutreno.training import train

    words = ["data=digits_graph", "probe.every_n_epochs=1000", f"trainer.accelerator={benchmarks.DEVICE.type}"]

    def run(folder: str, steps: int) -> float:
        composed = compose([*words, f"trainer.max_steps={steps}", f"output_dir={folder}"])
        start = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            train(composed)
        return time.process_time() - start

    settings = compose(words).settings
    data = build(settings["data"])
    data.setup()
    model = build(settings["model"], **data.model_arguments()).to(benchmarks.DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0, weight_decay=0.1)
    x, labels, of_val = (part.to(benchmarks.DEVICE) for part in data.splits["train"].batch)

    def bare() -> None:
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(x)[0], labels[0]).backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            (model(x).argmax(-1) == of_val).sum().item()

    beyond, own, few, many = [], [], 100, 500
    for _ in range(max(3, repeats // 5)):
        with tempfile.TemporaryDirectory() as folder:
            short, whole = run(folder, few), run(folder, many)
        start = time.process_time()
        for _ in range(many - few):
            bare()
        own.append((time.process_time() - start) / (many - few))
        beyond.append((whole - short) / (many - few) - own[-1])
    said = f"{1000 * statistics.median(beyond):.2f} ms (range {1000 * min(beyond):.2f}–{1000 * max(beyond):.2f})"
    return [
        ("CPU time of an epoch of the embedded graph beyond training step and evaluation pass", said),
        ("CPU time of these two", f"{1000 * statistics.median(own):.2f} ms"),
    ]
