"""Data for image classification: images from disk or timm's readers."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal
from unittest.mock import patch

import torch
from annotated_types import Ge, Le
from lightning import Trainer
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, default_collate
from torchvision.transforms import v2

from neutreno.config.options import EXECUTION, FREE, Count, Positive, Reader, ReaderArgs, Root, checked
from neutreno.data import image_files, images, readers
from neutreno.data.base import check_root
from neutreno.data.fingerprint import digest
from neutreno.data.kinds import ImageData
from neutreno.data.loading import AugmentedDataset, CorruptSample, OnImage, OnImages, StreamLoader
from neutreno.data.on_device import DeviceEvalLoader, DeviceLoader, load_images
from neutreno.data.split_names import NAMES, split_of
from neutreno.errors import InputError, check_number, one_line

Split = Literal["train", "val", "test"]


class ClassificationData(ImageData):
    """Splits of (image, label), whose transforms act on the image alone."""

    def _dataset(self, split: str, transform: Callable) -> AugmentedDataset:
        return super()._dataset(split, (OnImages if hasattr(transform, "many") else OnImage)(transform))


class ImageClassification(ClassificationData):
    """Images as class folders or parquet under ``root``, or from timm.

    Under ``root`` they lie in splits or without (:mod:`neutreno.data.image_files`); without, they are all training
    images, of which some are held out.

    Args:
        root: folder of the data set; with ``reader``, where it keeps or looks for its files.
        reader: timm's name of a data set: ``hfds/HUB_ID`` (Hugging Face), ``hfids/HUB_ID`` (the same, streamed),
            ``torch/cifar10`` (torchvision), ``wds/…`` (WebDataset), ``tfds/…``.
        splits: the reader's names of the splits; null: there is none (test: null also leaves ``root``'s unread). Of
            ``hfds/…``, null or {} as a whole: by their usual names.
        samples: how many a stream's splits hold, where its library does not know.
        reader_args: the columns ``input_key`` and ``target_key``, and further arguments of ``datasets.load_dataset``
            (``hfds/…``) or timm's ``create_dataset``.
        download: let the reader download (torchvision does so only then).
        classes: keep only these, by name (ImageNet: by synset id), in this order; null: all.
        train_samples: train on a fixed stratified subset of so many images; null: on all.
        val_fraction: share of the training set to validate on, split off by a fixed stratified draw (see
            :func:`neutreno.data.images.hold_out`), when the data set has no validation split; then its test split is
            used once at the end.
        on_device: keep all images on the training device and augment there (random crop and flip alone), if they have
            ``img_size`` already.
        mean, std: normalisation per channel; released ViT weights expect 0.5, DeiT's the values of ImageNet.
        crop_pct: evaluation resizes to img_size / crop_pct and crops the centre.
        augment: arguments of timm's ``create_transform`` in training.
        crop_padding: pad by so many pixels and crop at random, instead of cropping at random size; DeiT's rule for
            images of 32 pixels.

    Raises:
        InputError: nothing at ``root``, no classes, or another number of them than ``num_classes``; a stream without
            ``num_classes``.
    """

    @checked
    def __init__(
        self,
        root: Root,
        mean: Annotated[Sequence[float], FREE],
        std: Annotated[Sequence[Positive], FREE],
        reader: Reader = None,
        splits: Annotated[dict[Split, str | None] | None, FREE] = None,
        samples: Annotated[dict[Split, Count | None] | None, FREE] = None,
        reader_args: ReaderArgs = None,
        download: Annotated[bool, EXECUTION] = False,
        classes: Annotated[Sequence[str] | None, FREE] = None,
        train_samples: Count | None = None,
        val_fraction: Annotated[Annotated[float, Ge(0), Le(0.99)], FREE] = 0.1,
        on_device: Annotated[bool, FREE] = False,
        crop_pct: Annotated[Annotated[float, Ge(0.01), Le(1)], FREE] = 0.875,
        interpolation: Annotated[str, FREE] = "bicubic",
        augment: dict[str, Any] | None = None,
        crop_padding: Annotated[int, Ge(0), Le(65_536)] | None = None,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.check_channels(mean=mean, std=std)
        self.root, self.reader, self.reader_args, self.download = root, reader, reader_args or {}, download
        self.reader_splits, self.samples, self.classes = splits or {}, samples or {}, classes
        self.train_samples, self.val_fraction, self.on_device = train_samples, val_fraction, on_device
        self.crop_pct, self.crop_padding, self.augment = crop_pct, crop_padding, dict(augment or {})
        self._found: int | None = None  # number of classes; of a stream nobody knows
        self._held: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.common = {"input_size": self.image_shape, "interpolation": interpolation}
        self.mean, self.std = tuple(mean), tuple(std)
        self.common |= {"mean": self.mean, "std": self.std}
        if clash := {"is_training", *self.common} & self.augment.keys():
            raise InputError(f"data.augment.{min(clash)} is settled by the data set; leave it out")
        other = {k: v for k, v in self.augment.items() if (v != 0.5 if k == "hflip" else v)}
        if on_device and (other or crop_padding is None or crop_pct != 1):
            raise InputError("data.on_device=true crops (data.crop_padding) and flips; for more data.on_device=false")

    @property
    def streams(self) -> bool:
        return self.reader is not None and self.reader.startswith(readers.STREAMS)

    def read(self) -> dict[str, Sequence | None]:
        splits = self._read_root() if self.reader is None else self._read_reader()
        if splits["train"] is None and (self.trains or splits["val"] is None):
            raise InputError(self._no_training())
        if self.streams:
            return self._check_streams(splits)
        if splits["test"] is not None and splits["test"].labels.max() < 0:  # ImageNet's public test split
            splits["test"] = None
        if splits["train"] is not None:
            for split in filter(None, (splits["val"], splits["test"])):
                images.number_alike(split, splits["train"].classes)
        if self.classes is not None:
            splits = {name: split and images.choose_classes(split, self.classes) for name, split in splits.items()}
        if splits["val"] is None:
            splits["train"], splits["val"] = images.hold_out(splits["train"], self.val_fraction)
            self.held_out = True
            counts = f"{len(splits['val']):,} of {len(splits['train']) + len(splits['val']):,}"
            self.notes.append(f"no val split: {counts} training images are held out (data.val_fraction)")
        self._found = images.check_splits(splits, self.root or self.reader)
        if self.num_classes is None:
            names = splits["val"].classes
            shown = one_line(", ".join(names[:3])) + ", …" * (len(names) > 3)
            self.notes.append(f"{len(names):,} classes: {shown}")
        self.num_classes = self.num_classes or self._found
        if self.train_samples is not None and splits["train"] is not None:
            check_number("data.train_samples", self.train_samples, 1, len(splits["train"]), integer=True)
            if self.train_samples < len(splits["train"]):
                _, splits["train"] = images.split_off(splits["train"], self.train_samples, "data.train_samples")
        if self.on_device:  # other sizes are resized one by one, as the transforms do
            self.on_device = self._first_size(splits["val"]) == (self.img_size, self.img_size)
        return splits

    def _no_training(self) -> str:
        if self.reader is not None:
            return "data.splits.train is not set: name the reader's training split"
        if found := image_files.outside_splits(Path(self.root)):
            names = one_line(", ".join(path.name for path in found[:3])) + ", …" * (len(found) > 3)
            return f"data.root={self.root} holds {names} beside a val or test split; move them into {self.root}/train"
        said = f"no training data in data.root={self.root}: expected train/CLASS/IMAGE or train*.parquet"
        return f"{said}, or CLASS/IMAGE or *.parquet without splits"

    def check_read(self) -> None:
        if self._found not in (None, self.num_classes):
            said = f"{self.root or self.reader} holds {self._found} classes, data.num_classes={self.num_classes}"
            raise InputError(f"{said}; set data.num_classes={self._found}")

    def input_facts(self) -> dict[str, Any]:
        return super().input_facts() | {"interpolation": self.common["interpolation"], "crop_pct": self.crop_pct}

    @property
    def label_names(self) -> list[str] | None:
        return None if self.streams else list(self.splits["val"].classes)

    @cached_property
    def digests(self) -> dict[str, str]:
        return {"stream": digest(self._shards())} if self.streams else super().digests

    def _shards(self) -> Iterator[str]:
        """Name and size of each file of a stream that lies here; of one that does not, where it is."""
        kind, _, name = self.reader.partition("/")
        folder = Path(name if kind == "hfids" or self.root is None else self.root)  # of hfids, root is a cache
        files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
        yield from (f"{path.relative_to(folder)} {path.stat().st_size}" for path in files)
        yield from (str((name, self.reader_splits.get(name), self.samples.get(name))) for name in self.splits)
        if not files:
            yield self.reader

    def check_readable(self) -> None:
        if not self.streams:
            super().check_readable()

    def check_limits(self, trainer: Trainer) -> None:
        limit = trainer.limit_val_batches
        if self.streams and isinstance(limit, float) and limit != 1.0:
            raise InputError(f"trainer.limit_val_batches={limit:g}: of a stream give a number of batches, not a share")
        super().check_limits(trainer)

    @staticmethod
    def _first_size(samples: Sequence) -> tuple[int, int] | None:
        for i in range(len(samples)):
            with contextlib.suppress(CorruptSample):
                return samples[i][0].size
        return None

    def _read_root(self) -> dict[str, Sequence | None]:
        root = check_root(self.root)
        splits = {name: image_files.open_split(root, name, self.mode) for name in ("train", "val")} | {"test": None}
        if self.reader_splits.get("test", "test") is not None:
            try:
                splits["test"] = image_files.open_split(root, "test", self.mode)
            except images.Unlabelled as error:  # ImageNet's test images lie in one folder
                self.notes.append(f"the test split is not used: {error}")
        if all(split is None for split in splits.values()):
            return splits | {"train": image_files.open_whole(root, self.mode)}
        for name, split in image_files.seeming_splits(root).items():
            if splits[split] is None and self.reader_splits.get(split, split) is not None:
                self.notes.append(f"{one_line(name)} is not read; if it is the {split} split, rename it {split}")
        return splits

    def _read_reader(self) -> dict[str, Sequence | None]:
        if self.streams and self.num_classes is None:
            raise InputError(f"data.reader={self.reader} is a stream, which tells no classes: set data.num_classes")
        if not self.reader_splits and self.reader.startswith("hfds/"):
            columns = ("input_key", "target_key")
            more = {key: value for key, value in self.reader_args.items() if key not in columns}
            there = readers.load_hub(self.reader, cache_dir=self.root, **more)
            usual = {split: [name for name in there if split_of(name) == split] for split in NAMES}
            self.reader_splits = {split: names[0] for split, names in usual.items() if names}
            if "train" not in self.reader_splits or any(len(names) > 1 for names in usual.values()):
                said = f"data.reader={self.reader} has the splits {', '.join(there)}"
                raise InputError(f"{said}; name those to use, 'data.splits={{train: …, val: …, test: …}}'")
        return {name: self._open(name) for name in ("train", "val", "test")}

    def _open(self, split: str, **kwargs):
        if (name := self.reader_splits.get(split)) is None:
            return None
        if self.streams:
            kwargs |= {"is_training": split == "train", "seed": self.seed, "num_samples": self.samples.get(split)}
        kwargs |= self.reader_args
        return readers.open_reader(self.reader, name, self.root, self.mode, self.download, **kwargs)

    def _check_streams(self, splits: dict) -> dict:
        unfit = {"classes": self.classes, "train_samples": self.train_samples, "repeats": self.repeats > 1}
        if wrong := [key for key, value in {**unfit, "on_device": self.on_device}.items() if value]:
            raise InputError(f"data.reader={self.reader} is a stream, without random access: unset data.{wrong[0]}")
        if splits["val"] is None:
            raise InputError(f"data.reader={self.reader} is a stream: name its validation split, data.splits.val=NAME")
        return splits

    def train_dataloader(self):
        if self.streams:
            micro_batches = self.trainer.accumulate_grad_batches
            share = self.batch_size // (micro_batches * self.trainer.world_size)
            stream = self._stream("train", self.train_transform(), batch_size=share)
            return StreamLoader(stream, self.whole_epoch * micro_batches, share, num_workers=self.workers)
        if self.on_device:
            return DeviceLoader(*self._images("train"), self._normalize(), self._train_sampler(), self.crop_padding)
        return super().train_dataloader()

    def _eval_loader(self, split: str):
        if self.streams:
            if self.trainer.world_size > 1 and not self.reader.startswith("hfids/"):
                raise InputError(
                    f"data.reader={self.reader} repeats samples when several processes validate on it; use class "
                    "folders, parquet or hfds/… for validation, or one process"
                )
            stream = self._stream(split, self.eval_transform())
            return DataLoader(stream, batch_size=self.eval_batch_size, num_workers=min(self.workers, 1))
        if self.on_device:
            return DeviceEvalLoader(*self._images(split), self._normalize(), self.eval_batch_size, **self._share)
        return super()._eval_loader(split)

    def _stream(self, split: str, transform: Callable, **kwargs) -> readers.Stream:
        rank = self.trainer.global_rank
        return readers.Stream(partial(self._open, split, **kwargs), transform, self.num_classes, self.seed, rank)

    def probe_samples(self, num_samples: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        if not self.streams:
            return super().probe_samples(num_samples)
        transform = self.eval_transform()
        samples = [(transform(x), y) for x, y in itertools.islice(self.splits["val"], num_samples)]
        return tuple(default_collate(samples))

    def _images(self, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A split on the training device, read once."""
        if split not in self._held:
            where = self.trainer.strategy.root_device
            how = {"num_workers": self.workers, "replace": split == "train"}
            self._held[split] = load_images(self.splits[split], where, self.corrupt, **how)
        return self._held[split]

    def _normalize(self) -> Callable:
        return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(self.mean, self.std)])

    def eval_transform(self) -> Callable:
        return self._timms(is_training=False, crop_pct=self.crop_pct)

    def _timms(self, **settings: Any) -> Callable:
        """timm's transform.

        Raises:
            InputError: timm cannot make it of these settings; says what it says.
        """
        from timm.data import auto_augment, create_transform

        operations = auto_augment.NAME_TO_OP
        own = {name: _posterize for name, of_timm in operations.items() if of_timm is auto_augment.posterize}
        try:
            with patch.dict(operations, own):
                return create_transform(**self.common, **settings)
        except (ValueError, TypeError, AssertionError, RuntimeError, KeyError, AttributeError, IndexError) as error:
            said = " ".join(str(error).split()) or type(error).__name__
            given = "data.augment and data.interpolation"
            raise InputError(f"the transforms cannot be built from {given}: {said}") from error

    def train_transform(self) -> Callable:
        transform = self._timms(is_training=True, **self.augment)
        if self.crop_padding is not None:
            side = self.img_size
            transform.transforms[0] = v2.Compose([v2.Resize((side, side)), v2.RandomCrop(side, self.crop_padding)])
        return transform


def _posterize(image: Image.Image, bits: int, **_) -> Image.Image:
    """Keep so many bits of a pixel. At large magnitudes RandAugment keeps none, or fewer (``mmax`` beyond 10), which
    makes the image black; Pillow 13 refuses what earlier ones did, and timm's own function with it."""
    return ImageOps.posterize(image, min(bits, 8)) if bits > 0 else Image.new(image.mode, image.size)
