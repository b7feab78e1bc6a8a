"""Perplexity of a language model on a text, by windows that slide over it: exact, whatever the stride."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby, product
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from neutreno.attention import needs_others
from neutreno.config.options import Count, checked
from neutreno.errors import InputError, check_number
from neutreno.evaluation.base import Evaluator, Findings, NothingToMeasure, Subject
from neutreno.reports.evaluation import Table


def windows(tokens: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(first token, end, tokens to score) of every window over ``tokens`` that each predict the next.

    Windows begin at the multiples of ``stride``; the first scores all its tokens, every other one those not scored
    before: its last ``stride``, and the last window, which may be shorter, what is left. Each token is scored
    exactly once. ``stride = window`` are independent sequences, ``stride = 1`` gives each token the longest context.
    """
    yield 0, min(window, tokens), min(window, tokens)
    for start in range(stride, tokens - window + stride, stride):
        end = min(start + window, tokens)
        yield start, end, end - (start - stride + window)


@torch.no_grad()
def score(
    model: nn.Module, ids: np.ndarray, window: int, stride: int, batch_size: int, limit: int | None = None
) -> dict[str, Any]:
    """Perplexity of ``model`` on the text ``ids``, each token predicted from at most ``window`` tokens before it.

    The text's first token has nothing before it and is not scored. In evaluation mode and the caller's precision,
    windows of equal size in batches.

    Args:
        ids: (T,). limit: score only so many tokens from the text's beginning on.

    Returns:
        ``ppl``, ``loss`` (nats per token), ``tokens`` (how many were scored), ``windows``.
    """
    model.eval()
    device = next(model.parameters()).device
    tokens = len(ids) - 1 if limit is None else min(limit, len(ids) - 1)
    total, scored, count = 0.0, 0, 0
    for (length, new), alike in groupby(windows(tokens, window, stride), lambda w: (w[1] - w[0], w[2])):
        starts = np.array([start for start, *_ in alike])
        for part in np.array_split(starts, range(batch_size, len(starts), batch_size)):
            sequences = torch.from_numpy(ids[part[:, None] + np.arange(length + 1)].astype(np.int64)).to(device)
            nll = model(sequences[:, :-1], sequences[:, -new:])
            total += nll.double().sum().item()
            scored += nll.numel()
        count += len(starts)
    return {"ppl": math.exp(total / scored), "loss": total / scored, "tokens": scored, "windows": count}


def strides_and_limits(sliding: Sequence[int | dict[str, int]], window: int) -> list[tuple[int, int | None]]:
    """(stride, limit) of every protocol: independent sequences, and what ``sliding`` asks for, each a stride or
    ``{stride: …, tokens: …}``, the latter on the text's first tokens alone.

    Raises:
        InputError: an entry says no stride, or one that is longer than the window.
    """
    found: list[tuple[int, int | None]] = [(window, None)]
    for entry in sliding:
        asked = entry if isinstance(entry, dict) else {"stride": entry}
        if "stride" not in asked:
            raise InputError(f"evaluator.perplexity.sliding: {entry} is neither a stride nor {{stride: …, tokens: …}}")
        check_number("evaluator.perplexity.sliding: stride", asked["stride"], 1, window, integer=True)
        found.append((asked["stride"], asked.get("tokens")))
    return list(dict.fromkeys(found))


class Perplexity(Evaluator):
    """:func:`score` of the validation and the test text by every protocol; metrics such as ``test/ppl_stride32``.

    Args:
        sliding: strides beside independent sequences, each a number or ``{stride: …, tokens: …}``; None: an eighth of
            the sequence length.
    """

    alone = True

    @checked
    def __init__(self, sliding: list[Count | dict[Literal["stride", "tokens"], Count]] | None = None) -> None:
        self.sliding = sliding

    def strides(self, sequence_length: int) -> list[int | dict[str, int]]:
        return [max(1, sequence_length // 8)] if self.sliding is None else self.sliding

    def check(self, subject: Subject) -> None:
        if not hasattr(subject.data, "sequence_length"):
            raise NothingToMeasure("evaluator.perplexity is for language models, whose data is text; leave it out")
        if others := needs_others(subject.task.model):
            said = f"evaluator.perplexity reads windows one at a time, where a text ends, but {others}; leave it out"
            raise NothingToMeasure(said, unexpected=True)
        strides_and_limits(self.strides(subject.data.sequence_length), subject.data.sequence_length)

    def run(self, subject: Subject) -> Findings:
        data, found = subject.data, []
        window = data.sequence_length
        protocols = strides_and_limits(self.strides(window), window)
        with subject.trainer.precision_plugin.forward_context():
            for split, (stride, limit) in product(("val", "test"), protocols):
                metric = f"{split}/ppl" + (f"_stride{stride}" if stride != window else "")
                metric += "" if limit is None else f"_first{limit}"
                scored = score(subject.task.model, data.splits[split], window, stride, data.eval_batch_size, limit)
                found.append({"metric": metric, "split": split, "window": window, "stride": stride, **scored})
        rows = [
            [r["split"], str(r["stride"]), f"{r['tokens']:,}", f"{r['windows']:,}", f"{r['ppl']:.3f}"] for r in found
        ]
        first = f"perplexity, windows of {window} tokens"
        table = Table([first, "stride", "tokens scored", "windows", "perplexity"], rows)
        return Findings(metrics={r["metric"]: r["ppl"] for r in found}, tables=[table], record=found)
