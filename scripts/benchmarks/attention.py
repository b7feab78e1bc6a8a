"""NeuTRENO on fused attention against the N × N matrix, alone and in a training step; speed and memory."""

from __future__ import annotations

import gc
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import timm
import torch

import benchmarks
from neutreno.attention import NeutrenoAttention, SoftmaxAttention
from neutreno.evaluation.step_time import ratio, training_step
from neutreno.models.vit import VisionTransformer


class ExplicitNeutreno(NeutrenoAttention):
    """The equation written out, with the N × N matrix in memory, as the released code does."""

    def mix(self, q, k, v, v0):
        a = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1)
        return a @ v if v0 is None else a @ v + self.lam * (v0 - v)


# glibc gives the memory of a freed tensor back at once, so that what a process holds is what its tensors are.
AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
ATTENTIONS = {"fused": NeutrenoAttention, "explicit": ExplicitNeutreno}


def bench_step(repeats: int) -> list[tuple[str, str]]:
    images = torch.randn(8 if benchmarks.DEVICE.type == "cpu" else 128, 3, 224, 224, device=benchmarks.DEVICE)
    reference = training_step(timm.create_model("deit_tiny_patch16_224"), images)
    softmax = training_step(VisionTransformer("tiny", attention=SoftmaxAttention), images)
    neutreno = training_step(VisionTransformer("tiny", attention=partial(NeutrenoAttention, lam=0.6)), images)
    explicit = training_step(VisionTransformer("tiny", attention=partial(ExplicitNeutreno, lam=0.6)), images)
    what = f"training step of DeiT-tiny, 224 px, batch {len(images)}"
    return [
        (f"{what}: our softmax against timm's model", ratio(softmax, reference, repeats)),
        (f"{what}: NeuTRENO against our softmax", ratio(neutreno, softmax, repeats)),
        (f"{what}: NeuTRENO against an explicit N × N NeuTRENO", ratio(neutreno, explicit, repeats)),
    ]


def attention_pass(kind: type[NeutrenoAttention], tokens: int) -> Callable[[], None]:
    layer = kind(192, num_heads=3, lam=0.6).to(benchmarks.DEVICE)
    x = torch.randn(1, tokens, 192, device=benchmarks.DEVICE, requires_grad=True)
    v0 = torch.randn(1, 3, tokens, 64, device=benchmarks.DEVICE)
    return lambda: layer(x, v0)[0].sum().backward()


def peak_mib(kind: str, tokens: int) -> float:
    """Memory of one forward and backward pass beyond what stood before it, in a separate process."""
    words = [sys.executable, sys.argv[0], "--peak", kind, str(tokens), "--device", benchmarks.DEVICE.type]
    environment = {**os.environ, **AT_ONCE}
    return float(subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout)


def measure_peak(make: Callable[[int], Callable[[], None]], tokens: int) -> float:
    make(8)()  # load the libraries
    return peak_of(make(tokens))


def peak_of(call: Callable[[], None]) -> float:
    """MiB of a call beyond what stood before it."""
    if benchmarks.DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
    status = lambda key: int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0])  # noqa: E731
    before = status("VmRSS")
    call()
    return (status("VmHWM") - before) / 1024


def bench_attention(repeats: int) -> list[tuple[str, str]]:
    rows = []
    for tokens in (197, 1025, 4097):
        calls = attention_pass(NeutrenoAttention, tokens), attention_pass(ExplicitNeutreno, tokens)
        rows.append((f"attention of DeiT-tiny, N = {tokens}: NeuTRENO against explicit N × N", ratio(*calls, repeats)))
        fused, explicit = (statistics.median(peak_mib(k, tokens) for _ in range(3)) for k in ("fused", "explicit"))
        rows.append((f"its peak memory, N = {tokens}", f"{fused:.1f} MiB against {explicit:.1f} MiB"))
    return rows


SIZES = {  # and a part of the blocks of a ViT-L, which as a whole does not fit in a small machine
    "ViT-Ti": ({"size": "tiny"}, (8, 24)),
    "8 blocks of ViT-L": ({"embed_dim": 1024, "depth": 8, "num_heads": 16}, (2, 6)),
}
MODELS = {
    f"{name}, {'the term' if lam else 'softmax'}{', checkpointed' if again else ''}": (network, lam, again)
    for name, (network, _) in SIZES.items()
    for lam in (0.0, 0.6)
    for again in (False, True)
}


def model_pass(name: str, images: int) -> Callable[[], None]:
    """Forward and backward of a ViT at 224 pixels, whose gradients are there already."""
    network, lam, again = MODELS[name]
    rule = partial(NeutrenoAttention, lam=lam) if lam else SoftmaxAttention
    model = VisionTransformer(attention=rule, **network).to(benchmarks.DEVICE).train()
    model.set_grad_checkpointing(again)
    batch = torch.randn(images, 3, 224, 224, device=benchmarks.DEVICE)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return lambda: model(batch).sum().backward()


def bench_memory(repeats: int) -> Iterator[tuple[str, str]]:
    """What a further image costs, from two batches, so that neither weights nor the program count."""
    for name in MODELS:
        few, many = SIZES[name.partition(",")[0]][1]
        small, large = (statistics.median(peak_mib(name, count) for _ in range(repeats)) for count in (few, many))
        yield f"activations of an image of 224 pixels, {name}", f"{(large - small) / (many - few):.1f} MiB"
