"""What a model costs: parameters, multiply-adds, images per second, memory."""

from __future__ import annotations

import logging
import resource
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from neutreno.errors import check_number


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


def check_settings(batch_size: int, seconds: float) -> None:
    """Refuse what :func:`measure_cost` cannot use, before a long evaluation comes to it.

    Raises:
        InputError: the batch size or the seconds are no such numbers.
    """
    check_number("cost.batch_size", batch_size, 1, integer=True)
    check_number("cost.seconds", seconds)


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
    }
    if images.is_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    result |= {
        "images_per_s": images_per_second(model, images, seconds),
        "batch_size": batch_size,
        "device": torch.cuda.get_device_name(device) if images.is_cuda else device.type,
        "threads": None if images.is_cuda else torch.get_num_threads(),
        "peak_cuda_memory_mib": torch.cuda.max_memory_allocated(device) / 2**20 if images.is_cuda else None,
        "process_peak_rss_mib": _peak_rss() / 2**20,
    }
    return result


def _peak_rss() -> int:
    """Bytes; the operating systems do not agree on the unit."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
