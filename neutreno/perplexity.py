"""Perplexity of a language model on a text, by windows that slide over it: exact, whatever the stride."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from neutreno.errors import InputError, check_number


def windows(tokens: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(first word, end, words to score) of every window over ``tokens`` words that predict another one each.

    Windows begin at the multiples of ``stride``; the first scores all its words, every other one those that none before
    it has scored: its last ``stride``, and the last window, which may be shorter, what is left. Each word is scored
    exactly once. ``stride = window`` are independent segments, ``stride = 1`` gives each word the longest context.
    """
    yield 0, min(window, tokens), min(window, tokens)
    for start in range(stride, tokens - window + stride, stride):
        end = min(start + window, tokens)
        yield start, end, end - (start - stride + window)


@torch.no_grad()
def score(
    model: nn.Module, ids: np.ndarray, window: int, stride: int, batch_size: int, limit: int | None = None
) -> dict[str, Any]:
    """Perplexity of ``model`` on the text ``ids``, each word predicted from at most ``window`` words before it.

    The text's first word has nothing before it and is not scored. In evaluation mode and the caller's precision,
    windows of equal size in batches.

    Args:
        ids: (T,). limit: score only so many words from the text's beginning on.

    Returns:
        ``ppl``, ``loss`` (nats per word), ``tokens`` (how many were scored), ``windows``.
    """
    model.eval()
    device = next(model.parameters()).device
    tokens = len(ids) - 1 if limit is None else min(limit, len(ids) - 1)
    total, scored, count = 0.0, 0, 0
    for batch in _batches(windows(tokens, window, stride), batch_size):
        words = np.stack([ids[start : end + 1] for start, end, _ in batch]).astype(np.int64)
        words, new = torch.from_numpy(words).to(device), batch[0][2]
        nll = model(words[:, :-1], words[:, -new:])
        total += nll.double().sum().item()
        scored += nll.numel()
        count += len(batch)
    return {"ppl": math.exp(total / scored), "loss": total / scored, "tokens": scored, "windows": count}


def _batches(found: Iterator[tuple[int, int, int]], batch_size: int) -> Iterator[list[tuple[int, int, int]]]:
    """Windows in batches of equal length and equally many words to score."""
    batch: list[tuple[int, int, int]] = []
    for start, end, new in found:
        like = batch and (end - start, new) == (batch[0][1] - batch[0][0], batch[0][2])
        if batch and (not like or len(batch) == batch_size):
            yield batch
            batch = []
        batch.append((start, end, new))
    if batch:
        yield batch


def protocols(sliding: Sequence[Any], window: int) -> list[tuple[int, int | None]]:
    """(stride, limit) of every protocol: independent segments, and what ``sliding`` asks for, each a stride or
    ``{stride: …, tokens: …}``, the latter on the text's first words alone.

    Raises:
        InputError: not of that form, or a stride longer than the window.
    """
    if not isinstance(sliding, Sequence) or isinstance(sliding, str):
        raise InputError(
            f"sliding={sliding} is no list; write e.g. sliding=[32] or sliding=[{{stride: 1, tokens: 10000}}]"
        )
    found: list[tuple[int, int | None]] = [(window, None)]
    for entry in sliding:
        asked = dict(entry) if isinstance(entry, dict) else {"stride": entry}
        if not {"stride"} <= asked.keys() <= {"stride", "tokens"}:
            raise InputError(f"sliding: {entry} is neither a stride nor {{stride: …, tokens: …}}")
        check_number("sliding: stride", asked["stride"], 1, window, integer=True)
        if asked.get("tokens") is not None:
            check_number("sliding: tokens", asked["tokens"], 1, integer=True)
        found.append((asked["stride"], asked.get("tokens")))
    return list(dict.fromkeys(found))


def perplexities(
    model: nn.Module, texts: dict[str, np.ndarray], window: int, sliding: Sequence[Any], batch_size: int
) -> list[dict[str, Any]]:
    """:func:`score` of every text by every protocol, with ``metric``, ``split``, ``window`` and ``stride``."""
    found = []
    for split, ids in texts.items():
        for stride, limit in protocols(sliding, window):
            metric = f"{split}/ppl" + (f"_stride{stride}" if stride != window else "")
            metric += "" if limit is None else f"_first{limit}"
            scored = score(model, ids, window, stride, batch_size, limit)
            found.append({"metric": metric, "split": split, "window": window, "stride": stride, **scored})
    return found
