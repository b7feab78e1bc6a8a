"""Training steps, attention alone, graph breaks and kernels."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import benchmarks
import timm
import torch
from benchmarks.attention import peak_of
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from kit import Cases, Kit, Missing, Row
from neutreno.attention import NeutrenoAttention, SoftmaxAttention
from neutreno.evaluation.step_time import paired, training_step
from neutreno.models.vit import VisionTransformer

LAM = 0.6
WIDTHS = {"tiny": (192, 3), "small": (384, 6)}
SHAPES = [(224, 128), (512, 24), (1024, 6)]  # pixels and images: 197, 1025 and 4097 tokens, some 25,000 in a batch
SMALL_SHAPES = [(64, 2)]
INNER = 10  # calls of attention in a timed one, so that starting and waiting do not count
Call = Callable[[], None]


def shapes(kit: Kit) -> dict[str, tuple[str, int, int]]:
    """Size, pixels and batch of the cases, by their name."""
    benchmarks.DEVICE = torch.device(kit.device)
    found = [(size, *shape) for shape in (SMALL_SHAPES if kit.small else SHAPES) for size in WIDTHS]
    return {f"{size}, N = {(pixels // 16) ** 2 + 1}": (size, pixels, batch) for size, pixels, batch in found}


def compare(first: Call, second: Call, repeats: int, calls: int = 1) -> Row:
    """Speed of ``first`` relative to ``second``, as in ``benchmark.py``: median and quartiles of paired ratios."""
    pairs = paired(first, second, repeats)
    low, median, high = statistics.quantiles([b / a for a, b in pairs], n=4)
    ms = [1000 * statistics.median(times) / calls for times in zip(*pairs, strict=True)]
    return {"ratio": median, "low": low, "high": high, "n": repeats, "ms": ms}


def repeats(kit: Kit) -> int:
    return 3 if kit.small else 15


def peaks(kit: Kit, calls: dict[str, Call]) -> Row:
    if not kit.on_gpu:
        return {"note": "peak memory needs a GPU"}
    return {"peak MiB": {name: peak_of(call) for name, call in calls.items()}}


def models(kit: Kit, size: str, pixels: int) -> dict[str, nn.Module]:
    more = {"img_size": pixels, **({"depth": 2} if kit.small else {})}
    return {
        "timm": timm.create_model(f"deit_{size}_patch16_224", **more),
        "softmax": VisionTransformer(size, attention=SoftmaxAttention, **more),
        "NeuTRENO": VisionTransformer(size, attention=partial(NeutrenoAttention, lam=LAM), **more),
    }


def compile_in_place(kit: Kit, model: nn.Module) -> None:
    """Static shapes; at reduced size without code generation, which takes half a minute and is not what is tried."""
    model.compile(dynamic=False, backend="eager" if kit.small else "inductor")


def train_steps(kit: Kit, size: str, pixels: int, batch: int, compiled: bool) -> dict[str, Call]:
    torch._dynamo.reset()  # past a few recompilations of one function it silently stops compiling
    images = torch.randn(batch, 3, pixels, pixels, device=kit.device)
    found = {}
    for name, model in models(kit, size, pixels).items():
        found[name] = training_step(model, images, torch.bfloat16)
        if compiled:
            compile_in_place(kit, model)
    return found


def step_row(kit: Kit, *case: Any, compiled: bool) -> Row:
    calls = train_steps(kit, *case, compiled)
    for call in calls.values():
        call()
    return {
        "batch": case[-1],
        "softmax against timm": compare(calls["softmax"], calls["timm"], repeats(kit)),
        "NeuTRENO against softmax": compare(calls["NeuTRENO"], calls["softmax"], repeats(kit)),
        **peaks(kit, calls),
    }


def steps(kit: Kit) -> Cases:
    return {name: partial(step_row, kit, *case, compiled=False) for name, case in shapes(kit).items()}


def compiled(kit: Kit) -> Cases:
    return {name: partial(step_row, kit, *case, compiled=True) for name, case in shapes(kit).items()}


def attention_row(kit: Kit, size: str, pixels: int, batch: int) -> Row:
    (dim, heads), tokens = WIDTHS[size], (pixels // 16) ** 2 + 1
    make = partial(torch.randn, batch, heads, tokens, dim // heads, device=kit.device, dtype=torch.bfloat16)
    inputs = [make(requires_grad=True) for _ in range(4)]
    gradient = make()

    def passes(layer: SoftmaxAttention, calls: int = INNER) -> None:
        for _ in range(calls):
            torch.autograd.grad(layer.mix(*inputs), inputs, gradient, allow_unused=True)  # plain attention has no V_0

    layers = {"SDPA": SoftmaxAttention(dim, heads), "NeuTRENO": NeutrenoAttention(dim, heads, lam=LAM)}
    calls = {name: partial(passes, layer) for name, layer in layers.items()}
    return {
        "batch": batch,
        "NeuTRENO against SDPA": compare(calls["NeuTRENO"], calls["SDPA"], repeats(kit), INNER),
        **peaks(kit, {name: partial(passes, layer, 1) for name, layer in layers.items()}),
    }


def attention(kit: Kit) -> Cases:
    return {name: partial(attention_row, kit, *case) for name, case in shapes(kit).items()}


def breaks(kit: Kit, size: str, pixels: int, batch: int) -> Row:
    images = torch.randn(2, 3, pixels, pixels, device=kit.device)
    found = {}
    for name, model in models(kit, size, pixels).items():
        torch._dynamo.reset()
        found[name] = torch._dynamo.explain(model.to(kit.device).train())(images).graph_break_count
    return {"graph breaks": found}


def is_kernel(event: Any) -> bool:
    on_gpu = event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    return on_gpu and not event.name.startswith(("Memcpy", "Memset", "ProfilerStep", "Optimizer."))


def kernels_in(profiled: profile) -> tuple[int, float]:
    """Kernels on the GPU, and the seconds that they ran."""
    found = [event for event in profiled.events() if is_kernel(event)]
    return len(found), sum(event.self_device_time_total for event in found) / 1e6


def kernels_of(call: Call, calls: int = 3) -> tuple[float, float]:
    """Kernels of a call on the GPU, and the milliseconds that they run."""
    call()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    count, seconds = kernels_in(profiled)
    return count / calls, 1000 * seconds / calls


def kernels(kit: Kit, *case: Any, compiled: bool) -> Row:
    if not kit.on_gpu:
        raise Missing("kernels need a GPU")
    found = {name: kernels_of(call) for name, call in train_steps(kit, *case, compiled).items()}
    return {
        "batch": case[-1],
        "kernels of a step": {name: count for name, (count, _) in found.items()},
        "ms in kernels": {name: ms for name, (_, ms) in found.items()},
        "kernels that the term adds": found["NeuTRENO"][0] - found["softmax"][0],
    }


def graph(kit: Kit) -> Cases:
    name, case = next(iter(shapes(kit).items()))
    return {
        f"{name}, graph breaks": partial(breaks, kit, *case),
        f"{name}, eager": partial(kernels, kit, *case, compiled=False),
        f"{name}, compiled": partial(kernels, kit, *case, compiled=True),
    }
