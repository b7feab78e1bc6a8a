"""Loading images: small ones kept on the device, and JPEG files to training tensors, against other libraries."""

from __future__ import annotations

import io
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from timm.data import create_loader
from timm.data.dataset import ImageDataset
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import decode_jpeg
from torchvision.transforms import v2

import benchmarks
from benchmarks.cpu import cpu_ratio, cpu_seconds
from neutreno.data.classification import ImageClassification
from neutreno.data.digits import Digits
from neutreno.data.loading import AugmentedDataset, OnImage, OnImages, derive_seed
from neutreno.evaluation.step_time import ratio, seconds


def bench_loading(repeats: int) -> list[tuple[str, str]]:
    """An epoch of batches of small images, cropped and flipped: kept on the device against read one by one."""
    shape = {"img_size": 32, "in_chans": 3, "num_classes": 2, "batch_size": 128, "crop_padding": 4, "crop_pct": 1.0}
    shape |= {"mean": [0.5] * 3, "std": [0.2] * 3, "augment": {"color_jitter": None, "re_prob": 0.0}}
    rows = []
    with tempfile.TemporaryDirectory() as root:
        noise = np.random.default_rng(0)
        for i in range(2048):
            file = Path(root) / "train" / f"class{i % 2}" / f"{i}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file)

        def epoch(workers: int, on_device: bool) -> Callable[[], None]:
            data = ImageClassification(root=root, num_workers=workers, on_device=on_device, **shape)
            data.setup()
            data.trainer = SimpleNamespace(
                accumulate_grad_batches=1,
                world_size=1,
                global_rank=0,
                strategy=SimpleNamespace(root_device=benchmarks.DEVICE),
            )
            loader = data.train_dataloader()

            def once() -> None:
                for images, _ in loader:
                    images.to(benchmarks.DEVICE)

            return once

        held = epoch(0, True)
        for workers in (0, 2):
            what = "the training process" if workers == 0 else f"{workers} workers"
            rows.append(
                (
                    f"loading 32-pixel JPEGs: on the device against one by one in {what}",
                    ratio(held, epoch(workers, False), repeats),
                )
            )
        held_s = statistics.median(seconds(held) for _ in range(repeats))
        rows.append(("images/s loaded from the device", f"{1842 // 128 * 128 / held_s:,.0f}"))
    return rows


def bench_digits(repeats: int) -> list[tuple[str, str]]:
    """A batch of the default run: its images moved together, and one by one as torchvision does."""
    data = Digits(rotate=10.0, translate=0.05, img_size=8, in_chans=1, num_classes=10)
    data.setup()
    split, transform = data.splits["train"], data.train_transform()
    keys = [(i, derive_seed(i)) for i in range(32)]
    together = partial(AugmentedDataset(split, OnImages(transform)).__getitems__, keys)
    one_by_one = AugmentedDataset(split, OnImage(v2.Compose([transform.affine, transform.then])))
    what = "augmenting a batch of the default run: together against image by image"
    milliseconds = 1000 * statistics.median(cpu_seconds(together) for _ in range(20 * repeats))
    alone = partial(one_by_one.__getitems__, keys)
    return [(what, ratio(together, alone, 20 * repeats)), ("the same, together", f"{milliseconds:.1f} ms")]


LIGHT = {"color_jitter": None, "re_prob": 0.0}
# DeiT's but for the magnitude, 9 there: with Pillow 13 timm's own loader fails where 10 is drawn.
STRONG = {"auto_augment": "rand-m8-mstd0.5-inc1", "color_jitter": 0.4, "re_prob": 0.25, "re_mode": "pixel"}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def picture(draw: np.random.Generator) -> bytes:
    """A JPEG file of 500 x 375 pixels and some 85 kB, shapes and grain."""
    shapes = Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((500, 375), Image.BICUBIC)
    grainy = np.asarray(shapes) + draw.normal(0, 12, (375, 500, 3))
    Image.fromarray(grainy.clip(0, 255).astype(np.uint8)).save(content := io.BytesIO(), "JPEG", quality=90)
    return content.getvalue()


def bench_jpeg(repeats: int) -> Iterator[tuple[str, str]]:
    """A pass over JPEG files of ImageNet's size in one process, per core therefore, in CPU time."""
    count, draw = 128, np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as root:
        for i in range(count + 2):
            file = Path(root) / ("train" if i < count else "val") / f"class{i % 2}" / f"{i}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(picture(draw))

        def epoch(loader: Iterable) -> Callable[[], None]:
            return lambda: [None for _ in loader]

        def ours(augment: dict) -> Iterable:
            shape = {
                "img_size": 224,
                "in_chans": 3,
                "num_classes": 2,
                "batch_size": 32,
                **IMAGENET,
            }
            data = ImageClassification(root=root, num_workers=0, augment=augment, **shape)
            data.trainer = SimpleNamespace(accumulate_grad_batches=1, world_size=1, global_rank=0)
            data.setup()
            return data.train_dataloader()

        def timms(augment: dict) -> Iterable:
            files = ImageDataset(f"{root}/train")
            settings = {"is_training": True, "use_prefetcher": False, "num_workers": 0, "persistent_workers": False}
            return create_loader(files, (3, 224, 224), 32, interpolation="bicubic", **settings, **augment, **IMAGENET)

        plain = [v2.RandomResizedCrop(224, interpolation=v2.InterpolationMode.BICUBIC), v2.RandomHorizontalFlip()]
        plain += [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(**IMAGENET)]
        torchvisions = DataLoader(ImageFolder(f"{root}/train", v2.Compose(plain)), 32, shuffle=True, drop_last=True)

        for name, augment in {"crop and flip": LIGHT, "RandAugment and erasing": STRONG}.items():
            own = epoch(ours(augment))
            others = {"timm.create_loader": timms(augment)} | (
                {"torchvision": torchvisions} if augment is LIGHT else {}
            )
            spent = statistics.median(cpu_seconds(own) for _ in range(repeats))
            yield f"JPEG files of 500 x 375, {name}: images a second and core", f"{count / spent:.0f}"
            for other, loader in others.items():
                yield f"the same: CPU time of {other} over ours", cpu_ratio(own, epoch(loader), repeats)
    files = [picture(draw) for _ in range(32)]
    pillow = lambda: [Image.open(io.BytesIO(file)).convert("RGB") for file in files]  # noqa: E731
    turbo = lambda: [decode_jpeg(torch.frombuffer(bytearray(file), dtype=torch.uint8)) for file in files]  # noqa: E731
    milliseconds = 1000 * statistics.median(cpu_seconds(pillow) for _ in range(repeats)) / len(files)
    yield "decoding alone, Pillow", f"{milliseconds:.2f} ms a file"
    yield "the same: CPU time of Pillow over torchvision.io's decoder", cpu_ratio(turbo, pillow, repeats)
