"""Data for semantic segmentation: images and masks in folders, or two columns of a Hugging Face data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from neutreno.config.options import FREE, Count, Fraction, NonNegative, Positive, Reader, Root, Share, Size, checked
from neutreno.data.base import check_root
from neutreno.data.images import SPLIT_SEED
from neutreno.data.joint_transforms import IGNORE, FitResize, PadTo, PhotometricDistortion, VariedCrop
from neutreno.data.kinds import ImageData
from neutreno.data.mask_files import (
    FolderPairs,
    HubPairs,
    Labels,
    Pair,
    Pairs,
    find_folders,
    find_pairs,
    is_begun,
    labels_in,
    missing_folder,
    read_class_names,
)
from neutreno.errors import InputError, check_number

TO_FLOAT = v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}, scale=True)


class SegmentationData(ImageData):
    """Splits of (image uint8 (C, H, W), mask uint8 (H, W)), as ``tv_tensors``; :data:`IGNORE` marks ignored pixels.

    A training sample is (image float (C, S, S), mask int64 (S, S)) with S = ``img_size``. A sample to evaluate is
    (image float (C, h, w), resized; mask int64 (H, W), as it is stored), and a batch of them a list.

    Args:
        num_classes: ignored pixels are not one of them. None: a subclass counts them.
        mean, std: normalisation per channel.
        class_names: in order; None: by number.
        kwargs: of :class:`neutreno.data.kinds.ImageData`; ``img_size`` is the side of the training crop.
    """

    @checked
    def __init__(
        self,
        num_classes: Annotated[Annotated[int, Ge(2), Le(IGNORE)] | None, FREE],  # masks are bytes
        mean: Annotated[Sequence[NonNegative], FREE],
        std: Annotated[Sequence[Positive], FREE],
        class_names: Annotated[Sequence[str] | None, FREE] = None,
        **kwargs,
    ) -> None:
        super().__init__(num_classes=num_classes, **kwargs)
        self.check_channels(mean=mean, std=std)
        self.mean, self.std = mean, std
        self._normalize = v2.Normalize(list(mean), list(std))
        self.class_names = list(class_names or (f"class_{i + 1}" for i in range(num_classes or 0)))

    @property
    def label_names(self) -> list[str]:
        return self.class_names

    def resize(self) -> list[v2.Transform]:
        """What evaluation does to a sample before it is normalised; its mask stays as it is stored."""
        return []

    def train_transform(self, first: Sequence[v2.Transform] = (), then: Sequence[v2.Transform] = ()) -> Callable:
        """``first`` are random transforms of uint8 samples and ``then``, after these, of float ones."""
        return v2.Compose([*first, TO_FLOAT, *then, self._normalize, PadTo(self.img_size), v2.ToPureTensor()])

    def eval_transform(self) -> Callable:
        return v2.Compose([*self.resize(), TO_FLOAT, self._normalize, v2.ToPureTensor()])

    def probe_transform(self) -> Callable:
        return partial(_transform_alone, v2.Compose([self.eval_transform(), v2.CenterCrop(self.img_size)]))

    @staticmethod
    def collate_eval(samples: list) -> list[tuple[Tensor, Tensor]]:
        """The samples that could be read, as they are: they differ in size."""
        return [sample for sample in samples if sample is not None]


def _classes_beside(void: int | None, labels: Sequence[int]) -> list[int]:
    return [label for label in labels if label != void]


def _transform_alone(transform: Callable, image: tv_tensors.Image, mask: tv_tensors.Mask) -> tuple[Tensor]:
    """Without the mask, which is of another size for every image."""
    return (transform(image),)


class SegmentationFolders(SegmentationData):
    """Images and masks in the layout of ADEChallengeData2016 or another usual one, or of a Hugging Face data set.

    ``root/images/{training,validation}/NAME.jpg`` and ``root/annotations/{training,validation}/NAME.png``: one channel
    of class numbers; a test split is read where its masks are there, too. Other layouts:
    :mod:`neutreno.data.mask_files`. Training follows the released Segmenter (mmsegmentation): resize, crop, flip,
    photometric distortion, normalise, pad.

    Args:
        root: folder of the data set; with ``reader``, where it keeps its files.
        reader: ``hfds/HUB_ID`` or ``hfds/FOLDER``: Hugging Face ``datasets`` instead of folders; null: folders.
        splits: the reader's names of the splits (train, val, test; the last null: there is none).
        reader_args: the reader's columns (image, annotation).
        class_names: text file with a name per line, under ``root`` unless absolute; null: by label.
        num_classes: null: as many as ``class_names`` (or ``root/classes.txt``) names; without such a file every mask of
            every split is looked at, and each label that occurs is a class.
        void: the label of pixels that are ignored; null: there is none. Classes are numbered from 0 on, from 1 on where
            that is ``void``.
        val_fraction: share of the training images to validate on, a fixed draw, where there is no validation split;
            null: then the data set is refused.
        resize: [long, short] side that images are fitted to, keeping their ratio; null: they keep their size.
        scale: range of a random factor on it in training.
        max_class_share: no class fills more than this of a training crop; 1 switches it off.
        crop_tries: so many crops are tried for it.
        flip: probability of a horizontal flip.
        photometric: whether colours are distorted.
        train_samples: train on so many images, evenly spaced; null: on all.
        drop_last: whether an epoch ends with its last whole batch; false: what is left is a step, too, see
            :class:`neutreno.data.loading.TrainBatchSampler`.

    Raises:
        InputError: files that are missing, do not pair up, or do not fit the settings.
    """

    @checked
    def __init__(
        self,
        root: Root,
        reader: Reader = None,
        splits: Annotated[dict[str, str | None] | None, FREE] = None,
        reader_args: Annotated[dict[str, str] | None, FREE] = None,  # names of columns alone
        class_names: Annotated[str | None, FREE] = None,
        resize: Annotated[Sequence[Size] | None, FREE] = (2048, 512),
        scale: Sequence[Annotated[float, Ge(0.01), Le(100)]] = (0.5, 2.0),
        max_class_share: Annotated[float, Ge(0.01), Le(1)] = 0.75,
        crop_tries: Annotated[int, Ge(1), Le(10_000)] = 10,
        flip: Share = 0.5,
        photometric: bool = True,
        void: Annotated[Literal[0, 255] | None, FREE] = 0,
        val_fraction: Annotated[Fraction | None, FREE] = None,
        train_samples: Count | None = None,
        drop_last: bool = True,
        max_corrupt: Annotated[Annotated[float, Ge(0), Le(0.5)], FREE] = 0.0,
        **kwargs,
    ) -> None:
        super().__init__(max_corrupt=max_corrupt, **kwargs)
        self.root, self.reader, self.class_names_file, self.drop_last = root, reader, class_names, drop_last
        self.reader_splits = {"train": "train", "val": "validation", **(splits or {})}
        self.columns = {"image": "image", "annotation": "annotation", **(reader_args or {})}
        for name, sides in {"resize": resize, "scale": scale}.items():
            if sides is not None and len(sides) != 2:
                raise InputError(f"data.{name}={list(sides)} is not a list of two numbers")
        if scale[0] > scale[1]:
            raise InputError(f"data.scale={list(scale)} must rise, e.g. data.scale=[0.5,2.0]")
        self.limits, self.train_samples, self.void, self.val_fraction = resize, train_samples, void, val_fraction
        crop, flips = VariedCrop(self.img_size, max_class_share, crop_tries), v2.RandomHorizontalFlip(flip)
        self.geometric = [FitResize(resize, scale), crop, flips]
        self.photometric = [PhotometricDistortion()] if photometric else []

    def read(self) -> dict[str, Sequence[Pair] | None]:
        found = self._read_root() if self.reader is None else self._read_hub()
        labels = self._labels([pairs for pairs in found.values() if pairs is not None])
        for pairs in filter(None, found.values()):
            pairs.labels = labels
        splits: dict[str, Sequence[Pair] | None] = dict(found)
        if splits["val"] is None:
            splits |= self._hold_out(splits["train"])
        if self.train_samples is not None and splits["train"] is not None:
            count = len(splits["train"])
            check_number("data.train_samples", self.train_samples, 1, count, integer=True)
            chosen = np.linspace(0, count - 1, self.train_samples).round().astype(int)
            splits["train"] = torch.utils.data.Subset(splits["train"], chosen.tolist())
        return splits

    def _labels(self, splits: Sequence[Pairs]) -> Labels:
        """What the masks' labels mean; sets ``num_classes`` and ``class_names``.

        Raises:
            InputError: the file of names does not fit; or the masks were looked at, and hold fewer than two classes.
        """
        file = self._names_file()
        given = None if self._tells else self.num_classes
        names = [] if file is None else read_class_names(file, given)
        if count := given or len(names):
            labels = Labels.numbered(count, self.void)
        else:
            there = labels_in(splits)
            values = _classes_beside(self.void, there)
            if not 1 < len(values) <= IGNORE:
                void = "" if self.void is None else f" beside data.void={self.void}"
                said = f"the masks hold the labels {', '.join(map(str, values)) or 'of no class'}{void}"
                ways = {0: "0", 255: "255", None: "null"}
                fit = [f"data.void={ways[v]}" for v in ways if 1 < len(_classes_beside(v, there)) <= IGNORE]
                way = f"set {' or '.join(fit)}" if fit else "add masks of another class"
                raise InputError(f"{said}; from two classes to {IGNORE} are needed: {way}")
            labels = Labels(values, self.void)
            gapless = values == list(range(values[0], values[-1] + 1))
            shown = f"{values[0]} to {values[-1]}" if gapless else ", ".join(map(str, values))
            said = f"the masks hold {len(values)} classes, the labels {shown}"
            self.notes.append(f"{said} (data.num_classes=… spares this look at all of them)")
        self.num_classes = len(labels.values)
        self.class_names = names or [f"class_{value}" for value in labels.values]
        return labels

    def _names_file(self) -> Path | None:
        file = Path(self.root or ".", self.class_names_file or "classes.txt")
        return file if self.class_names_file or (self._tells and file.is_file()) else None

    def _hold_out(self, train: Pairs) -> dict[str, Sequence[Pair]]:
        count, share = len(train), self.val_fraction
        held = min(count - 1, max(1, round(share * count)))
        if not share or count < 2:
            raise InputError(
                f"data.val_fraction={share:g} of {count} images leaves none to validate on; give a val split"
            )
        order = np.random.default_rng(SPLIT_SEED).permutation(count)
        self.held_out = True
        self.notes.append(f"no val split: {held:,} of {count:,} training images are held out (data.val_fraction)")
        parts = {"train": order[held:], "val": order[:held]}
        return {split: torch.utils.data.Subset(train, sorted(part.tolist())) for split, part in parts.items()}

    def _needed(self) -> tuple[str, ...]:
        """Splits without which there is no run; labels are counted on the training images, too, in evaluation."""
        train = self.trains or (self._tells and self._names_file() is None)
        return (("train",) if train else ()) + (("val",) if self.val_fraction is None else ())

    def _read_root(self) -> dict[str, Pairs | None]:
        root, splits = check_root(self.root), {}
        for split in ("train", "val", "test"):
            if (folders := find_folders(root, split)) is None:
                if split in self._needed() or (split == "val" and is_begun(root, split)):
                    raise missing_folder(root, split)
                if split == "test" and is_begun(root, split):
                    reason = str(missing_folder(root, split)).partition(";")[0]
                    self.notes.append(f"the test split is not used: {reason}")
                splits[split] = None
                continue
            found, problems = find_pairs(*folders)
            if problems:
                raise InputError(problems[0] + (f" ({len(problems)} such files)" if problems[1:] else ""))
            splits[split] = FolderPairs(found, mode=self.mode)
        if splits["val"] is None and splits["train"] is None:
            raise missing_folder(root, "train")
        return splits

    def _read_hub(self) -> dict[str, Pairs | None]:
        if not self.reader.startswith("hfds/"):
            raise InputError(f"data.reader={self.reader}: segmentation reads hfds/HUB_ID, hfds/FOLDER or data.root")
        if unknown := sorted(self.columns.keys() - {"image", "annotation"}):
            raise InputError(f"data.reader_args.{unknown[0]}: only the columns image and annotation can be named")
        if missing := [name for name in ("train", *self._needed()) if self.reader_splits[name] is None]:
            raise InputError(f"data.splits.{missing[0]} is not set: name the reader's split")
        named = {name: self.reader_splits.get(name) for name in ("train", "val", "test")}
        if "train" not in self._needed() and named["val"] is not None:
            named["train"] = None
        args = (self.root, self.columns)
        return {n: s and HubPairs(self.reader, s, *args, mode=self.mode) for n, s in named.items()}

    def train_transform(self) -> Callable:
        return super().train_transform(self.geometric, self.photometric)

    def resize(self) -> list[v2.Transform]:
        return [] if self.limits is None else [FitResize(self.limits, masks=False)]
