"""Where the time of a training step goes."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

import benchmarks
from benchmarks.term import CASES
from benchmarks.text import lm_steps
from neutreno.attention import NeutrenoAttention
from neutreno.evaluation.step_time import training_step
from neutreno.models.vit import VisionTransformer

KINDS = {  # of operations, by their names
    "matrix products and fused attention": r"(add|b|baddb)?mm|_scaled_dot_product.*",
    "dropout's random numbers": r"bernoulli_",
    "log-softmax": r"_log_softmax.*",
    "filling, copying, adding and scaling": r"(fill|copy|add|mul)_?|cat",
}


def bench_shares(repeats: int) -> Iterator[tuple[str, str]]:
    if benchmarks.DEVICE.type != "cpu":
        yield "where the time of a training step goes", "measured on the CPU only"
        return
    default = "the default run (mini, digits)"
    network, shape = CASES[default]
    model = VisionTransformer(attention=partial(NeutrenoAttention, lam=0.6), **network)
    own, released = lm_steps(4)
    steps = {default: training_step(model, torch.randn(*shape)), "the language model": own}
    for name, step in {**steps, "the released language model": released}.items():
        step()
        found = [shares(step) for _ in range(repeats)]
        said = [f"{kind} {100 * statistics.median(one[kind] for one in found):.0f} %" for kind in found[0]]
        yield f"time of a training step of {name}", ", ".join(said)


def shares(step: Callable[[], None]) -> dict[str, float]:
    """Of a step's time that of each of ``KINDS``, of all other operations, and of what is none, as Python is."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiled:
        start = time.perf_counter()
        step()
        whole = 1e6 * (time.perf_counter() - start)
    events = [(event.key.removeprefix("aten::"), event.self_cpu_time_total) for event in profiled.key_averages()]
    found = {kind: sum(t for name, t in events if re.fullmatch(names, name)) for kind, names in KINDS.items()}
    within = sum(t for _, t in events)
    found |= {"other operations": within - sum(found.values()), "in no operation": whole - within}
    return {kind: spent / whole for kind, spent in found.items()}
