"""Parts of ``scripts/gpu_kit.py``: what is measured, in order of worth, and what a part is given."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
Row = dict[str, Any]
Cases = dict[str, Callable[[], Row]]


class Missing(Exception):
    """What a part or a case needs and this machine lacks: its line, not its end."""


@dataclass(frozen=True)
class Part:
    """A measurement in a process of its own.

    ``cases`` of :class:`Kit` → functions of plain data, named ``module:function``; ``least`` seconds make it worth
    beginning; after ``most`` it is stopped, and what its cases have found is kept.
    """

    cases: str
    title: str
    least: float = 20
    most: float = float("inf")


PARTS = {
    "tests": Part("runs:tests", "Tests marked `gpu`", most=120),
    "steps": Part("measure:steps", "Training step of DeiT, bf16, eager", most=90),
    "compiled": Part("measure:compiled", "Training step of DeiT, bf16, compiled", least=60, most=120),
    "attention": Part("measure:attention", "Attention alone, bf16, forward and backward", most=40),
    "auto": Part("runs:auto", "`data.micro_batch_size=auto`", least=40, most=120),
    "graph": Part("measure:graph", "Graph breaks and kernels that the fidelity term adds", least=30, most=90),
    "cifar10": Part("runs:cifar10", "CIFAR-10: images per second, share of time that the GPU is busy", 40, 150),
    "train": Part("runs:train", "CIFAR-10: DeiT-tiny/4, softmax and NeuTRENO", least=150),
}


DRAWN = ("steps", "attention", "memory", "similarity")


@dataclass
class Kit:
    """What a part knows: where and how large, the seconds it has, and what other parts have found, by part and case."""

    device: str
    small: bool
    work: Path
    cifar10: Path | None
    seconds: float
    rows: dict[str, dict[str, Row]] = field(default_factory=dict)

    @classmethod
    def of(cls, arguments: argparse.Namespace, rows: dict[str, dict[str, Row]]) -> Kit:
        unpacked = Path("cifar10")  # in the working folder, so that commands are printed without its path
        root = arguments.cifar10 or (unpacked if (arguments.work / unpacked).is_dir() else None)
        return cls(arguments.device, arguments.small, arguments.work, root, arguments.seconds, rows)

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"
