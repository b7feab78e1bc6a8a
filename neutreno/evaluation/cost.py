"""What a model costs: parameters, multiply-adds, images per second, memory; and the same as columns of a table."""

from __future__ import annotations

import gc
import logging
import resource
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from neutreno.config.options import Size, checked
from neutreno.evaluation.base import Evaluator, Findings, NothingToMeasure, Subject
from neutreno.evaluation.step_time import training_step, untrained
from neutreno.reports.comparison import Group


@torch.no_grad()
def multiply_adds(model: nn.Module, images: Tensor) -> int:
    """Multiply-adds of one forward pass: matrix products, convolutions and attention, also where PyTorch fuses it.

    What is not a product of matrices (norms, activations, NeuTRENO's fidelity term) is not counted, as is usual.
    """
    with FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops() // 2


@torch.no_grad()
def images_per_second(model: nn.Module, images: Tensor, seconds: float) -> float:
    """Median speed of a forward pass over some ``seconds``, after a warm-up."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # warns of a compiler without a GPU
    from torch.utils.benchmark import Timer

    call = {"model": model, "images": images}
    timer = Timer("model(images)", globals=call, num_threads=torch.get_num_threads())
    return len(images) / timer.blocked_autorange(min_run_time=seconds).median


def measure_cost(model: nn.Module, shape: tuple[int, int, int], batch_size: int = 32, seconds: float = 5) -> dict:
    """Cost of ``model`` on images of ``shape`` (C, H, W), in evaluation mode, on the device where it lies.

    The caller's autocast holds for throughput and memory. On CUDA memory is what one forward pass of a batch allocates
    at most, weights included; on the CPU there is no such figure, and what the process held at most stands under its
    own name: libraries, data and all.

    Returns:
        ``parameters``, ``multiply_adds`` (of one image), ``image_size``, ``images_per_s``, ``batch_size``, ``device``,
        ``peak_cuda_memory_mib`` (None on the CPU), ``process_peak_rss_mib``.
    """
    model.eval()
    device = next(model.parameters()).device
    images = torch.randn(batch_size, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    result: dict[str, Any] = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "multiply_adds": multiply_adds(model, images[:1]),
        "image_size": list(shape),
        "batch_size": batch_size,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "peak_cuda_memory_mib": None,
    }
    if images.is_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    result["images_per_s"] = images_per_second(model, images, seconds)
    if images.is_cuda:
        peak = torch.cuda.max_memory_allocated(device) / 2**20
        result |= {"device": torch.cuda.get_device_name(device), "threads": None, "peak_cuda_memory_mib": peak}
    unit = 1 if sys.platform == "darwin" else 1024  # bytes; the operating systems do not agree
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {**result, "process_peak_rss_mib": rss / 2**20}


class Cost(Evaluator):
    """:func:`measure_cost` of the model, on images as the data makes them.

    Args:
        batch_size: images at once.
        seconds: for throughput, at most.
    """

    alone = True

    @checked
    def __init__(self, batch_size: Size = 32, seconds: Annotated[float, Ge(0), Le(86_400)] = 5) -> None:
        self.batch_size, self.seconds = batch_size, seconds

    def check(self, subject: Subject) -> None:
        if subject.data.image_shape is None:
            raise NothingToMeasure("evaluator.cost measures the cost per image, and this data has none; leave cost out")

    def run(self, subject: Subject) -> Findings:
        with subject.trainer.precision_plugin.forward_context():
            found = measure_cost(subject.task.model, subject.data.image_shape, self.batch_size, self.seconds)
        found["precision"] = str(subject.trainer.precision)
        return Findings(figures=figures(found), record=found)


def giga_multiply_adds(group: Group, baseline: Group | None, trust: Sequence[str] = ()) -> str:
    """A table's column: :func:`multiply_adds` of one image, in 10⁹; nothing where the data says no sizes of images."""
    if (made := untrained(group, trust)) is None:
        return ""
    model, images = made
    return f"{multiply_adds(model.to(images.device).eval(), images[:1]) / 1e9:.3f}"


def training_memory_mib(group: Group, baseline: Group | None, trust: Sequence[str] = ()) -> str:
    """A table's column: CUDA memory that a training step in float32 allocates at most, with weights, gradients, AdamW's
    state and the batch of images; ``no GPU`` without one, nothing where the data says no sizes of images."""
    gc.collect()  # of what was measured before
    before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    if (made := untrained(group, trust)) is None:
        return ""
    if not torch.cuda.is_available():
        return "no GPU"
    step = training_step(*made)
    step()  # which makes the optimizer's state
    torch.cuda.reset_peak_memory_stats()
    step()
    return f"{(torch.cuda.max_memory_allocated() - before) / 2**20:,.0f}"


def figures(cost: dict[str, Any]) -> list[tuple[str, str]]:
    size = " x ".join(map(str, cost["image_size"]))
    threads = "" if cost["threads"] is None else f", {cost['threads']} threads"
    how = f"batch {cost['batch_size']}, {cost['precision']}, {cost['device']}{threads}"
    memory, mib = "peak RSS of the process, data and libraries included", cost["process_peak_rss_mib"]
    if cost["peak_cuda_memory_mib"] is not None:
        memory, mib = "peak CUDA memory", cost["peak_cuda_memory_mib"]
    return [
        ("parameters", f"{cost['parameters']:,}"),
        (f"multiply-adds per image, {size}", f"{cost['multiply_adds'] / 1e9:.3f} G"),
        (f"images/s, {how}", f"{cost['images_per_s']:.1f}"),
        (memory, f"{mib:,.0f} MiB"),
    ]
