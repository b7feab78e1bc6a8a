"""The language model: its training step against the released code's attention, and preparing WikiText-103's size."""

from __future__ import annotations

import math
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
from neutreno.attention import NeutrenoAttention
from neutreno.evaluation.step_time import ratio, seconds


class ReleasedAttention(NeutrenoAttention):
    """Causal NeuTRENO as the released language model computes it: time first, einsum, a mask, the N × N matrix."""

    def mix(self, q, k, v, v0):
        q, k, v = (x.permute(2, 0, 1, 3) for x in (q, k, v))
        scores = torch.einsum("ibnd,jbnd->ijbn", q, k) / math.sqrt(q.shape[-1])
        future = torch.ones(scores.shape[:2], dtype=torch.bool, device=q.device).triu(1)
        a = torch.softmax(scores.masked_fill(future[:, :, None, None], -math.inf), dim=1)
        out = torch.einsum("ijbn,jbnd->ibnd", a, v)
        if v0 is not None:
            out = out + self.lam * (v0.permute(2, 0, 1, 3) - v)
        return out.permute(1, 2, 0, 3)


def bench_lm(repeats: int) -> list[tuple[str, str]]:
    from neutreno.models.language_model import LanguageModel

    rows, words = 4 if benchmarks.DEVICE.type == "cpu" else 96, 267_735
    draw = np.random.default_rng(0)
    ids = torch.from_numpy(zipf(draw, words, (rows, 257))).to(benchmarks.DEVICE)

    def step(attention: type[NeutrenoAttention]) -> Callable[[], None]:
        model = LanguageModel(words, cutoffs=[20_000, 40_000, 200_000], attention=partial(attention, lam=0.4))
        model.to(benchmarks.DEVICE).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.0)

        def once() -> None:
            optimizer.zero_grad()
            model(ids[:, :-1], ids[:, 1:]).mean().backward()
            optimizer.step()

        return once

    ours, released = step(NeutrenoAttention), step(ReleasedAttention)
    what = f"training step of the paper's language model, {rows} x 256 tokens"
    speed = 256 * rows / statistics.median(seconds(ours) for _ in range(repeats))
    return [
        (f"{what}: fused attention against the released code's", ratio(ours, released, repeats)),
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
