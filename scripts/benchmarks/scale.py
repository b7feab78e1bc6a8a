"""What training on many GPUs takes, counted without one: operations and memory of a step on tensors without content."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.flop_counter import FlopCounterMode

from neutreno.attention import NeutrenoAttention, SoftmaxAttention
from neutreno.models.vit import VisionTransformer

IMAGES = 300 * 1251 * 1024  # the recipe's 300 epochs of whole batches
PEAK = 312e12  # operations a second of an A100 in bf16 (NVIDIA's data sheet)
# Shares of the peak that others reached: DeiT-B, 17.6 G multiply-adds, in 53 hours on eight V100 of 125 TFLOP/s (its
# paper, section 5.6), and NVIDIA's ViT-g/14 in NeMo, 267 G, 693 images/s on eight A100.
REACHED = (0.21, 0.44)
NETWORKS = {  # their arguments, images on each GPU, GPUs
    "DeiT-tiny": ({"size": "tiny"}, 128, 8),
    "DeiT-small": ({"size": "small"}, 128, 8),
    "ViT-L/16": ({"embed_dim": 1024, "depth": 24, "num_heads": 16}, 64, 64),
}


class Step(NamedTuple):
    """Of a training step: operations (two for a multiply-add), bytes at its peak, and those of the weights."""

    operations: int
    peak: int
    weights: int


def without_content(model: nn.Module) -> nn.Module:
    """``model`` with tensors of the same shapes and nothing in them, within ``FakeTensorMode``."""
    for module in model.modules():
        for kind, make in ((module._parameters, nn.Parameter), (module._buffers, lambda tensor: tensor)):
            for name, tensor in kind.items():
                if tensor is not None:
                    kind[name] = make(torch.empty(tensor.shape, dtype=tensor.dtype))
    return model


def counted_step(network: dict, images: int, lam: float, checkpointed: bool, precision: torch.dtype) -> Step:
    """A step of AdamW at 224 pixels; weights, gradients and AdamW's state in float32 count, libraries do not."""
    rule = partial(NeutrenoAttention, lam=lam) if lam else SoftmaxAttention
    with torch.device("meta"):
        model = VisionTransformer(attention=rule, **network).train()
    model.set_grad_checkpointing(checkpointed)
    with FakeTensorMode():
        optimizer = torch.optim.AdamW(without_content(model).parameters())
        batch = torch.empty(images, 3, 224, 224)

        def step() -> None:
            with torch.autocast("cpu", precision, enabled=precision != torch.float32):
                loss = model(batch).float().sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        with FlopCounterMode(display=False) as counter:
            step()  # which makes the optimizer's state, too
        gc.collect()  # of cycles that keep what the step made
        tracker = MemTracker()
        tracker.track_external(model, optimizer, batch)
        with tracker:  # alone: within another mode, checkpointed blocks keep more
            step()
        (peak,) = (kinds["Total"] for kinds in tracker.get_tracker_snapshot("peak").values())
    return Step(counter.get_total_flops(), peak, 4 * sum(p.numel() for p in model.parameters()))


def counted_image(lam: float, checkpointed: bool) -> float:
    """MiB that a further image takes in DeiT-tiny in float32, itself left out; ``memory`` measures the same."""
    few, many = (counted_step({"size": "tiny"}, n, lam, checkpointed, torch.float32).peak for n in (8, 24))
    return ((many - few) / 16 - 4 * 3 * 224 * 224) / 2**20


def bench_scale(repeats: int) -> Iterator[tuple[str, str]]:
    """Counts, so once whatever ``repeats`` is."""
    for again in (False, True):
        said = f"softmax {counted_image(0.0, again):.1f} MiB, the term {counted_image(0.6, again):.1f} MiB"
        yield "activations of an image of 224 pixels, DeiT-tiny, float32" + ", checkpointed" * again, said
    for name, (network, images, gpus) in NETWORKS.items():
        step = partial(counted_step, network, images, precision=torch.bfloat16)
        memory = {(lam, again): step(lam=lam, checkpointed=again) for lam in (0.0, 0.6) for again in (False, True)}
        plain = memory[0.0, False]
        gib = {key: (found.peak + 2 * found.weights) / 2**30 for key, found in memory.items()}  # EMA, gradient buckets
        yield f"{name}: operations of a training step, an image", f"{plain.operations / images / 1e9:.1f} G"
        what = f"{name}: memory of each of {gpus} GPUs, {images} images in bf16"
        for again in (False, True):
            said = f"softmax {gib[0.0, again]:.2f} GiB, the term {gib[0.6, again]:.2f} GiB"
            yield what + ", checkpointed" * again, said
        standing = 3 * plain.weights + images * 4 * 3 * 224 * 224  # weights, AdamW's state and the images
        mib = {lam: (memory[lam, False].peak - standing) / 2**20 for lam in (0.0, 0.6)}
        yield what + ", gradients and activations alone", f"softmax {mib[0.0]:,.0f} MiB, the term {mib[0.6]:,.0f} MiB"
        hours = [plain.operations / images * IMAGES / (gpus * PEAK * share) / 3600 for share in REACHED]
        what = f"{name}: hours of {IMAGES / 1e6:.0f} million images on {gpus} GPUs, and images to load a second"
        speeds = (f"{IMAGES / 3600 / h:,.0f}" for h in hours)
        yield what, "; ".join(f"{h:.1f} hours at {speed} images/s" for h, speed in zip(hours, speeds, strict=True))
