"""The language model: its training step against the released code's attention, and preparing WikiText-103's size."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

import benchmarks
from benchmarks.cpu import cpu_ratio
from benchmarks.released_lm import ReleasedModel
from neutreno.attention import NeutrenoAttention
from neutreno.evaluation.step_time import ratio, seconds


def lm_steps(rows: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """A training step of ours, with fused Adam as the recipe has it, and of the released model with plain Adam. Both
    start from the same weights."""
    from neutreno.models.language_model import LanguageModel, own_names

    words, cutoffs = 267_735, [20_000, 40_000, 200_000]
    draw = np.random.default_rng(0)
    ids = torch.from_numpy(zipf(draw, words, (rows, 257))).to(benchmarks.DEVICE)
    ours = LanguageModel(words, cutoffs=cutoffs, attention=partial(NeutrenoAttention, lam=0.4))
    released = ReleasedModel(words, dim=128, depth=16, heads=8, hidden=2048, cutoffs=cutoffs, lam=0.4)
    for parameter in released.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.02)
    ours.load_state_dict(own_names(released.state_dict()))
    passes: dict[torch.nn.Module, Callable[[], torch.Tensor]] = {
        ours: lambda: ours(ids[:, :-1], ids[:, 1:]),
        released: lambda: released(ids[:, :-1].T, ids[:, 1:].T).T,
    }
    with torch.no_grad():
        torch.testing.assert_close(*(call() for model, call in passes.items() if model.to(benchmarks.DEVICE).eval()))

    def step(model: torch.nn.Module, fused: bool) -> Callable[[], None]:
        optimizer = torch.optim.Adam(model.train().parameters(), lr=0.0, fused=fused)

        def once() -> None:
            optimizer.zero_grad()
            passes[model]().mean().backward()
            optimizer.step()

        return once

    return step(ours, True), step(released, False)


def bench_lm(repeats: int) -> list[tuple[str, str]]:
    rows = 4 if benchmarks.DEVICE.type == "cpu" else 96
    own, theirs = lm_steps(rows)
    what = f"training step of the paper's language model, {rows} x 256 tokens"
    speed = 256 * rows / statistics.median(seconds(own) for _ in range(repeats))
    return [
        (f"{what}: ours against the released model", ratio(own, theirs, repeats)),
        (f"{what}: CPU time of the released model's over ours", cpu_ratio(own, theirs, repeats)),
        (f"{what}: tokens/s", f"{speed:,.0f}"),
    ]


def zipf(draw: np.random.Generator, words: int, shape: int | tuple[int, ...]) -> np.ndarray:
    """Ranks of words whose frequency falls as 1 / rank."""
    share = np.cumsum(1 / np.arange(1, words + 1))
    return np.searchsorted(share, draw.random(shape) * share[-1])


def bench_prepare(repeats: int) -> list[tuple[str, str]]:
    """Words to ids of a text of WikiText-103's size, and its checksums when a run starts again."""
    draw = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    spelling = ["".join(letters[draw.integers(0, 26, 1 + 2 * i.bit_length() // 5)]) for i in range(300_000)]
    known = np.array(list(dict.fromkeys(spelling + [f"{word}s" for word in spelling]))[:267_733], dtype=object)
    with tempfile.TemporaryDirectory() as root:
        for split, tokens in {"train": 101_400_000, "valid": 214_000, "test": 241_000}.items():
            with open(Path(root) / f"{split}.txt", "w") as file:
                if split == "train":  # each word at least once
                    file.write(" ".join(known) + "\n")
                for start in range(0, tokens, 1_000_000):
                    drawn = known[zipf(draw, len(known), min(1_000_000, tokens - start))]
                    file.writelines(" ".join(drawn[i : i + 57]) + " \n" for i in range(0, len(drawn), 57))
        size = (Path(root) / "train.txt").stat().st_size
        words = [sys.executable, sys.argv[0], "--prepare", root]
        first, again = (
            subprocess.run(words, capture_output=True, text=True, check=True).stdout.split() for _ in range(2)
        )
    what = f"{int(first[2]):,} tokens, {int(first[3]):,} words, {size / 1e6:,.0f} MB of text"
    return [
        (f"preparing {what}", f"{float(first[0]):.0f} s, peak RSS {float(first[1]):.2f} GiB, libraries included"),
        ("the same again, from its cache", f"{float(again[0]):.1f} s, peak RSS {float(again[1]):.2f} GiB"),
    ]


def measure_prepare(root: str) -> str:
    """Seconds, peak GiB of this process, tokens, words."""
    from neutreno.data.language_modeling import TextFiles

    data = TextFiles(root, sequence_length=256, val_every_n_steps=1, batch_size=96)
    spent = seconds(data.setup)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    return f"{spent} {peak} {len(data.splits['train'])} {len(data.vocabulary)}"
