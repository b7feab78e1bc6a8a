"""Data for image classification: how splits are batched on every device, and images from disk or timm's readers."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from lightning import LightningDataModule
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from neutreno.data.images import Stream, open_reader, open_split
from neutreno.data.loading import (
    AugmentedDataset,
    CorruptLog,
    CorruptSample,
    ResumableLoader,
    StreamLoader,
    TrainBatchSampler,
    collate_readable,
)
from neutreno.data.on_device import DeviceEvalLoader, DeviceLoader, load_images
from neutreno.data.splits import check_splits, choose_classes, split_off
from neutreno.errors import InputError, check_number


class ClassificationData(LightningDataModule):
    """Splits of (image, label) and how they are batched. Subclasses say what the splits and transforms are.

    Args:
        img_size: side of the square images that the model sees, in pixels.
        in_chans, num_classes: of the model that fits the data.
        batch_size: global, i.e. what the optimizer sees in one step over all processes and accumulated batches.
        eval_batch_size: per process.
        device_batch: at most so many samples at once on a device; the rest of its share is accumulated. None: its whole
            share at once. "auto": as many as fit into a GPU's memory, on a CPU the whole share.
        num_workers: loading processes per training process; 0 loads in the training process.
        seed: of the order and the augmentation.
        repeats: of repeated augmentation; 1 switches it off.
        max_corrupt: a run skips, notes and counts corrupt images up to this share of the training and validation
            set, then stops.

    ``corrupt`` is where they are noted (see :meth:`note_corrupt`); until it is set, the first one is an error.
    """

    def __init__(
        self,
        img_size: int,
        in_chans: int,
        num_classes: int,
        batch_size: int = 128,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        seed: int = 0,
        repeats: int = 1,
        max_corrupt: float = 0.001,
        device_batch: int | str | None = None,
    ) -> None:
        super().__init__()
        check_number("data.repeats", repeats, 1, integer=True)
        check_number("data.max_corrupt", max_corrupt, most=0.5)
        check_number("data.batch_size", batch_size, 1, integer=True)
        check_number("data.eval_batch_size", eval_batch_size, 1, integer=True)
        check_number("data.num_workers", num_workers, 0, integer=True)
        check_number("data.num_classes", num_classes, 2, integer=True)
        if device_batch not in (None, "auto"):
            check_number("data.device_batch", device_batch, 1, integer=True)
        self.device_batch = device_batch
        self.img_size, self.in_chans, self.num_classes = img_size, in_chans, num_classes
        self.batch_size, self.eval_batch_size, self.num_workers, self.seed = (
            batch_size,
            eval_batch_size,
            num_workers,
            seed,
        )
        self.repeats, self.max_corrupt = repeats, max_corrupt
        self.splits: dict[str, Sequence | None] = {}
        self.corrupt: CorruptLog | None = None
        self.trains = True

    def note_corrupt(self, path: str | Path) -> None:
        """From now on skip corrupt images and name them in the file ``path``, up to ``max_corrupt`` of all."""
        samples = sum(len(self.splits[name]) for name in ("train", "val") if self.splits[name] is not None)
        self.corrupt = CorruptLog(path, int(self.max_corrupt * samples))

    def read(self) -> dict[str, Sequence | None]:
        """``{"train": …, "val": …, "test": … or None}``, each a sequence of (image, label).

        Where ``self.trains`` is False, there may be no training split.
        """
        raise NotImplementedError

    def train_transform(self) -> Callable:
        raise NotImplementedError

    def eval_transform(self) -> Callable:
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        if not self.splits:
            self.trains = stage != "validate"
            self.splits = self.read()
        train = self.splits["train"]
        if self.trains and self.batch_size > (samples := len(train)):
            raise InputError(f"data.batch_size={self.batch_size} is larger than the training set of {samples}")
        try:
            self.train_transform(), self.eval_transform()
        except (ValueError, TypeError, AssertionError, RuntimeError, KeyError) as error:
            raise InputError(f"the transforms cannot be built from these data settings: {error}") from error

    def accumulated_batches(self, world: int, parts: int = 1, fits: int | None = None) -> int:
        """Into how many batches each of ``world`` processes cuts its share of the global batch: ``parts`` if more than
        one, else as few equal ones as leave at most ``device_batch`` samples each (``fits`` where that is "auto").

        Raises:
            InputError: they cannot share it, or ``parts`` leaves more than that.
        """
        device_batch = fits if self.device_batch == "auto" else self.device_batch
        share, rest = divmod(self.batch_size, world * parts)
        if rest:
            raise InputError(
                f"data.batch_size={self.batch_size} is no multiple of {world} processes x {parts} accumulated batches"
            )
        if device_batch is None or share <= device_batch:
            return parts
        if parts > 1:
            raise InputError(
                f"trainer.accumulate_grad_batches={parts} leaves {share} samples at once on a device, "
                f"data.device_batch={device_batch} allows fewer; set only one of them"
            )
        fitting = [n for n in range(2, share + 1) if share % n == 0 and share // n <= device_batch]
        return next((n for n in fitting if share // n % 2 == 0), fitting[0])  # mixup needs even batches

    @property
    def has_test(self) -> bool:
        """Whether there is a test split apart from the validation split (ImageNet's labels end with the latter)."""
        return self.splits.get("test") is not None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one epoch."""
        steps = len(self.splits["train"]) // self.batch_size
        limit = self.trainer.limit_train_batches if self.trainer else None
        if isinstance(limit, float):
            return max(1, int(steps * limit))
        return steps if limit is None else max(1, min(steps, limit // self.trainer.accumulate_grad_batches))

    def _train_sampler(self) -> TrainBatchSampler:
        parts, world = self.trainer.accumulate_grad_batches, self.trainer.world_size
        return TrainBatchSampler(
            len(self.splits["train"]), self.batch_size, self.seed, parts, world, self.trainer.global_rank, self.repeats
        )

    def train_dataloader(self) -> DataLoader:
        images = AugmentedDataset(self.splits["train"], self.train_transform(), self.corrupt)
        return ResumableLoader(images, batch_sampler=self._train_sampler(), **self._loading())

    def val_dataloader(self) -> DataLoader:
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader("test")

    def probe_batch(self, num_samples: int) -> torch.Tensor:
        """Images (n, C, H, W) spread evenly over the validation set, the same for every run and seed."""
        data = AugmentedDataset(self.splits["val"], self.eval_transform(), self.corrupt)
        indices = np.linspace(0, len(data) - 1, min(num_samples, len(data))).round().astype(int)
        return collate_readable([data[int(i)] for i in indices])[0]

    def _eval_loader(self, split: str) -> DataLoader:
        data = AugmentedDataset(self.splits[split], self.eval_transform(), self.corrupt)
        share = {"num_replicas": self.trainer.world_size, "rank": self.trainer.global_rank}
        sampler = UnrepeatedDistributedSampler(data, **share, shuffle=False)  # no sample counted twice
        loading = {"collate_fn": collate_readable, **self._loading()}
        return DataLoader(data, batch_size=self.eval_batch_size, sampler=sampler, **loading)

    def _loading(self) -> dict:
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }


class ImageClassification(ClassificationData):
    """Images as class folders or parquet under ``root`` (see :func:`neutreno.data.images.open_split`), or from timm.

    Args:
        root: folder of the data set; with ``reader``, where it keeps or looks for its files.
        reader: timm's name of a data set: ``hfds/HUB_ID`` (Hugging Face), ``hfids/HUB_ID`` (the same, streamed),
            ``torch/cifar10`` (torchvision), ``wds/…`` (WebDataset), ``tfds/…``.
        splits: the reader's names of the splits; null: there is none (test: null also leaves ``root``'s unread).
        samples: how many a stream's splits hold, where its library does not know.
        reader_args: further arguments of timm's ``create_dataset`` (``input_key``, ``target_key``, …).
        download: let the reader download (torchvision does so only then).
        classes: keep only these, by name (ImageNet: by synset id), in this order; null: all.
        train_samples: train on a fixed stratified subset of so many images; null: on all.
        val_fraction: share of the training set to validate on, split off by a fixed stratified draw, when the data set
            brings no validation split of its own; then its test split is used once at the end.
        on_device: keep all images on the training device and augment there (random crop and flip alone), if they have
            ``img_size`` already.
        mean, std: normalisation per channel; released ViT weights expect 0.5, DeiT's the values of ImageNet.
        crop_pct: evaluation resizes to img_size / crop_pct and crops the centre.
        augment: arguments of timm's ``create_transform`` in training.
        crop_padding: pad by so many pixels and crop at random, instead of cropping at random size; DeiT's rule for
            images of 32 pixels.

    Raises:
        InputError: nothing at ``root``, no classes, or another number of them than ``num_classes``.
    """

    def __init__(
        self,
        root: str | None,
        mean: Sequence[float],
        std: Sequence[float],
        reader: str | None = None,
        splits: dict[str, str | None] | None = None,
        samples: dict[str, int | None] | None = None,
        reader_args: dict | None = None,
        download: bool = False,
        classes: Sequence[str] | None = None,
        train_samples: int | None = None,
        val_fraction: float = 0.1,
        on_device: bool = False,
        crop_pct: float = 0.875,
        interpolation: str = "bicubic",
        augment: dict | None = None,
        crop_padding: int | None = None,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.root, self.reader, self.download = root, reader, download
        self.reader_splits, self.samples = dict(splits or {}), dict(samples or {})
        self.reader_args = dict(reader_args or {})
        self.classes, self.train_samples, self.val_fraction = classes, train_samples, val_fraction
        self.on_device, self.crop_padding = on_device, crop_padding
        self.crop_pct, self.augment = crop_pct, dict(augment or {})
        self._held: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.mode = "L" if self.in_chans == 1 else "RGB"
        self.common = {
            "input_size": (self.in_chans, self.img_size, self.img_size),
            "interpolation": interpolation,
            "mean": tuple(mean),
            "std": tuple(std),
        }
        self._check_settings()
        other = {k: v for k, v in self.augment.items() if (v != 0.5 if k == "hflip" else v)}
        if on_device and (other or crop_padding is None or crop_pct != 1):
            raise InputError(
                "data.on_device=true crops with data.crop_padding and flips, no more: set data.on_device=false for "
                "data.augment or data.crop_pct"
            )

    def _check_settings(self) -> None:
        check_number("data.crop_pct", self.crop_pct, 0.01, 1)
        check_number("data.val_fraction", self.val_fraction, 0, 0.99)
        if self.crop_padding is not None:
            check_number("data.crop_padding", self.crop_padding, 0, integer=True)
        for name in ("mean", "std"):
            if len(self.common[name]) != self.in_chans:
                raise InputError(f"data.{name} has {len(self.common[name])} values for {self.in_chans} channels")
        if isinstance(self.classes, str):
            raise InputError(f"data.classes={self.classes} is no list; write data.classes=[{self.classes}]")

    @property
    def streams(self) -> bool:
        return self.reader is not None and self.reader.startswith(("hfids/", "tfds/", "wds/"))

    def read(self) -> dict[str, Sequence | None]:
        if self.reader is None:
            splits = self._read_root()
        else:
            splits = {name: self._open(name) for name in ("train", "val", "test")}
            if splits["train"] is None and (self.trains or splits["val"] is None):
                raise InputError("data.splits.train is not set: name the reader's training split")
        if self.streams:
            return self._check_streams(splits)
        if splits["test"] is not None and splits["test"].labels.max() < 0:  # ImageNet's public test split
            splits["test"] = None
        if self.classes is not None:
            splits = {name: images and choose_classes(images, self.classes) for name, images in splits.items()}
        if splits["val"] is None:
            splits["train"], splits["val"] = split_off(splits["train"], self.val_fraction, "data.val_fraction")
        check_splits(splits, self.num_classes, self.root or self.reader)
        if self.train_samples is not None and splits["train"] is not None:
            check_number("data.train_samples", self.train_samples, 1, len(splits["train"]), integer=True)
            if self.train_samples < len(splits["train"]):
                _, splits["train"] = split_off(splits["train"], self.train_samples, "data.train_samples")
        if self.on_device:  # other sizes are resized one by one, as the transforms do
            self.on_device = self._first_size(splits["val"]) == (self.img_size, self.img_size)
        return splits

    @staticmethod
    def _first_size(images: Sequence) -> tuple[int, int] | None:
        for i in range(len(images)):
            with contextlib.suppress(CorruptSample):
                return images[i][0].size
        return None

    def _read_root(self) -> dict[str, Sequence | None]:
        if self.root is None:
            raise InputError("data.root is not set: give the folder of the data set, data.root=FOLDER")
        if not Path(self.root).is_dir():
            raise InputError(f"data.root={self.root} is not a folder; give the folder of the data set")
        splits = {name: open_split(self.root, name, self.mode) for name in ("train", "val")}
        splits["test"] = None
        if self.reader_splits.get("test", "test") is not None:
            with contextlib.suppress(InputError):  # ImageNet's test images lie in one folder, without labels
                splits["test"] = open_split(self.root, "test", self.mode)
        if splits["train"] is None and (self.trains or splits["val"] is None):
            raise InputError(f"no training data in data.root={self.root}: expected train/CLASS/IMAGE or train*.parquet")
        return splits

    def _open(self, split: str, **kwargs):
        if (name := self.reader_splits.get(split)) is None:
            return None
        if self.streams:
            training = split == "train"
            kwargs = {"is_training": training, "seed": self.seed, "num_samples": self.samples.get(split), **kwargs}
        kwargs |= self.reader_args
        return open_reader(self.reader, name, self.root, self.mode, download=self.download, **kwargs)

    def _check_streams(self, splits: dict) -> dict:
        unfit = {"classes": self.classes, "train_samples": self.train_samples, "on_device": self.on_device}
        if wrong := [f"data.{key}" for key, value in unfit.items() if value] + ["data.repeats"] * (self.repeats > 1):
            raise InputError(f"data.reader={self.reader} is a stream, which has no random access: unset {wrong[0]}")
        if splits["val"] is None:
            raise InputError(f"data.reader={self.reader} is a stream: name its validation split, data.splits.val=NAME")
        return splits

    def train_dataloader(self):
        if self.streams:
            parts = self.trainer.accumulate_grad_batches
            share = self.batch_size // (parts * self.trainer.world_size)
            stream = self._stream("train", self.train_transform(), batch_size=share)
            batches = len(self.splits["train"]) // self.batch_size * parts
            return StreamLoader(stream, batches, share, num_workers=self.num_workers)
        if self.on_device:
            return DeviceLoader(*self._images("train"), self._normalize(), self._train_sampler(), self.crop_padding)
        return super().train_dataloader()

    def _eval_loader(self, split: str):
        world, rank = self.trainer.world_size, self.trainer.global_rank
        if self.streams:
            if world > 1 and not self.reader.startswith("hfids/"):
                raise InputError(
                    f"data.reader={self.reader} repeats samples when several processes validate on it; use class "
                    "folders, parquet or hfds/… for validation, or one process"
                )
            stream = self._stream(split, self.eval_transform())
            return DataLoader(stream, batch_size=self.eval_batch_size, num_workers=min(self.num_workers, 1))
        if self.on_device:
            return DeviceEvalLoader(*self._images(split), self._normalize(), self.eval_batch_size, world, rank)
        return super()._eval_loader(split)

    def _stream(self, split: str, transform: Callable, **kwargs) -> Stream:
        rank = self.trainer.global_rank
        return Stream(partial(self._open, split, **kwargs), transform, self.num_classes, self.seed, rank)

    def probe_batch(self, num_samples: int) -> torch.Tensor:
        if not self.streams:
            return super().probe_batch(num_samples)
        transform = self.eval_transform()
        return torch.stack([transform(image) for image, _ in itertools.islice(self.splits["val"], num_samples)])

    def _images(self, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A split on the training device, read once."""
        if split not in self._held:
            device = self.trainer.strategy.root_device
            samples, training = self.splits[split], split == "train"
            self._held[split] = load_images(samples, device, self.corrupt, self.num_workers, training)
        return self._held[split]

    def _normalize(self) -> Callable:
        return v2.Compose(
            [v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.common["mean"], self.common["std"])]
        )

    def eval_transform(self) -> Callable:
        from timm.data import create_transform

        return create_transform(**self.common, is_training=False, crop_pct=self.crop_pct)

    def train_transform(self) -> Callable:
        from timm.data import create_transform

        transform = create_transform(**self.common, is_training=True, **self.augment)
        if self.crop_padding is not None:
            side = self.img_size
            transform.transforms[0] = v2.Compose([v2.Resize((side, side)), v2.RandomCrop(side, self.crop_padding)])
        return transform
