"""Data for semantic segmentation: images and masks in ADE20K's folders, or two columns of a Hugging Face data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from neutreno.config.options import FREE, Count, NonNegative, Positive, Reader, Root, Share, Size, checked
from neutreno.data.base import check_root
from neutreno.data.fingerprint import of_files
from neutreno.data.images import EncodedImages, decode, load_hub
from neutreno.data.joint_transforms import IGNORE, FitResize, PadTo, PhotometricDistortion, VariedCrop
from neutreno.data.kinds import ImageData
from neutreno.errors import InputError, check_number

Pair = tuple[tv_tensors.Image, tv_tensors.Mask]
ENDINGS = {"images": (".jpg", ".jpeg", ".png"), "annotations": (".png",)}
TO_FLOAT = v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}, scale=True)
FOLDERS = {"train": "training", "val": "validation"}


class SegmentationData(ImageData):
    """Splits of (image uint8 (C, H, W), mask uint8 (H, W)), as ``tv_tensors``; :data:`IGNORE` marks ignored pixels.

    A training sample is (image float (C, S, S), mask int64 (S, S)) with S = ``img_size``. A sample to evaluate is
    (image float (C, h, w), resized; mask int64 (H, W), as it is stored), and a batch of them a list.

    Args:
        num_classes: ignored pixels are not one of them.
        mean, std: normalisation per channel.
        class_names: in order; None: by number.
        kwargs: of :class:`neutreno.data.kinds.ImageData`; ``img_size`` is the side of the training crop.
    """

    @checked
    def __init__(
        self,
        num_classes: Annotated[Annotated[int, Ge(2), Le(IGNORE)], FREE],  # masks are bytes
        mean: Annotated[Sequence[NonNegative], FREE],
        std: Annotated[Sequence[Positive], FREE],
        class_names: Annotated[Sequence[str] | None, FREE] = None,
        **kwargs,
    ) -> None:
        super().__init__(num_classes=num_classes, **kwargs)
        self.check_channels(mean=mean, std=std)
        self._normalize = v2.Normalize(list(mean), list(std))
        self.class_names = list(class_names or (f"class {i + 1}" for i in range(num_classes)))

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


def _transform_alone(transform: Callable, image: tv_tensors.Image, mask: tv_tensors.Mask) -> tuple[Tensor]:
    """Without the mask, which is of another size for every image."""
    return (transform(image),)


class SegmentationFolders(SegmentationData):
    """Images and annotations in the layout of ADEChallengeData2016, or of a Hugging Face data set.

    ``root/images/{training,validation}/NAME.jpg`` and ``root/annotations/{training,validation}/NAME.png``: one channel
    of class numbers from 1 on, 0 where pixels are ignored. Training follows the released Segmenter (mmsegmentation):
    resize, crop, flip, photometric distortion, normalise, pad.

    Args:
        root: folder of the data set; with ``reader``, where it keeps its files.
        reader: ``hfds/HUB_ID`` or ``hfds/FOLDER``: Hugging Face ``datasets`` instead of folders; null: folders.
        splits: the reader's names of the splits (train, val).
        reader_args: the reader's columns (image, annotation).
        class_names: text file with a name per line, under ``root`` unless absolute; null: by number.
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
        self.limits, self.train_samples = resize, train_samples
        crop, flips = VariedCrop(self.img_size, max_class_share, crop_tries), v2.RandomHorizontalFlip(flip)
        self.geometric = [FitResize(resize, scale), crop, flips]
        self.photometric = [PhotometricDistortion()] if photometric else []

    def read(self) -> dict[str, Sequence[Pair] | None]:
        splits = self._read_root() if self.reader is None else self._read_hub()
        if self.class_names_file is not None:
            self.class_names = read_class_names(Path(self.root or ".", self.class_names_file), self.num_classes)
        if self.train_samples is not None and splits["train"] is not None:
            count = len(splits["train"])
            check_number("data.train_samples", self.train_samples, 1, count, integer=True)
            chosen = np.linspace(0, count - 1, self.train_samples).round().astype(int)
            splits["train"] = torch.utils.data.Subset(splits["train"], chosen.tolist())
        return {**splits, "test": None}

    def _read_root(self) -> dict[str, Sequence[Pair] | None]:
        root, splits = check_root(self.root), {"train": None}
        for split, name in FOLDERS.items():
            if split == "val" or self.trains or (root / "images" / name).is_dir():
                found, problems = find_pairs(root, name)
                if problems:
                    raise InputError(problems[0] + (f" ({len(problems)} such files)" if problems[1:] else ""))
                splits[split] = FolderPairs(found, self.num_classes, self.mode)
        return splits

    def _read_hub(self) -> dict[str, Sequence[Pair] | None]:
        if not self.reader.startswith("hfds/"):
            raise InputError(f"data.reader={self.reader}: segmentation reads hfds/HUB_ID, hfds/FOLDER or data.root")
        if unknown := sorted(self.columns.keys() - {"image", "annotation"}):
            raise InputError(f"data.reader_args.{unknown[0]}: only the columns image and annotation can be named")
        if missing := [name for name in FOLDERS if self.reader_splits[name] is None]:
            raise InputError(f"data.splits.{missing[0]} is not set: name the reader's split")
        args = (self.root, self.columns, self.num_classes, self.mode)
        wanted = [name for name in FOLDERS if name == "val" or self.trains]
        return {"train": None} | {name: HubPairs(self.reader, self.reader_splits[name], *args) for name in wanted}

    def train_transform(self) -> Callable:
        return super().train_transform(self.geometric, self.photometric)

    def resize(self) -> list[v2.Transform]:
        return [] if self.limits is None else [FitResize(self.limits, masks=False)]


def read_class_names(file: Path, num_classes: int) -> list[str]:
    """A name per line.

    Raises:
        InputError: not readable, or another number of names than ``num_classes``.
    """
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"data.class_names: {file} is not a readable text file; null names by number") from error
    if len(names) != num_classes:
        raise InputError(f"{file} names {len(names)} classes, data.num_classes={num_classes}; correct one of them")
    return names


def find_pairs(root: Path, split: str) -> tuple[list[tuple[Path, Path]], list[str]]:
    """(image, annotation) files of a split by name, in order, and a line for every file that does not pair up.

    Raises:
        InputError: a folder is missing or holds no image.
    """
    folders = {"images": root / "images" / split, "annotations": root / "annotations" / split}
    files, problems = {kind: {} for kind in folders}, []
    for kind, folder in folders.items():
        if not folder.is_dir():
            raise InputError(f"{folder} is missing; expected {root}/{{images,annotations}}/{{training,validation}}")
        for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in ENDINGS[kind] and p.name[0] != "."):
            if (first := files[kind].setdefault(path.stem, path)) != path:
                problems.append(f"{path} and {first.name} have the same name; remove one")
    images, annotations = files.values()
    if not images:
        raise InputError(f"{folders['images']} holds no .jpg or .png image")
    for name in [name for name in images if name not in annotations]:
        missing = f"annotation {folders['annotations'] / name}.png; add it or remove the image"
        problems.append(f"{images[name]} has no {missing}")
    for name in [name for name in annotations if name not in images]:
        missing = f"image {folders['images'] / name}.jpg or .png; add it or remove the annotation"
        problems.append(f"{annotations[name]} has no {missing}")
    return [(path, annotations[name]) for name, path in images.items() if name in annotations], problems


def read_pair(
    files: Sequence[str | Path | bytes], num_classes: int, mode: str = "RGB", names: Sequence[str] | None = None
) -> Pair:
    """Decode an image and its annotation: label i → class i - 1, label 0 → :data:`IGNORE`.

    Args:
        files: image and annotation, each a file or its content; ``names`` is what errors call them.

    Raises:
        CorruptSample: one of them cannot be read.
        InputError: they do not fit each other or ``num_classes``.
    """
    first, second = names or map(str, files)
    picture, labels = decode(files[0], first, mode), decode(files[1], second, None)
    array = np.asarray(labels)
    if array.ndim != 2 or array.dtype.kind not in "bui":
        raise InputError(f"{second} has the mode {labels.mode}: an annotation is one channel of class numbers")
    if picture.size != labels.size:
        sizes = [f"{width} x {height}" for width, height in (picture.size, labels.size)]
        raise InputError(f"{first} has {sizes[0]} pixels, {second} {sizes[1]}; replace one of them")
    if (wrong := int(array.max())) > num_classes or (wrong := int(array.min())) < 0:
        raise InputError(
            f"{second} holds the label {wrong}, data.num_classes={num_classes} allows 0 (ignored) to {num_classes}; "
            "set data.num_classes=, or replace it"
        )
    return tv_tensors.Image(picture), tv_tensors.Mask(torch.from_numpy(array.astype(np.uint8) - np.uint8(1)))


def pair_problem(files: tuple[Path, Path], num_classes: int) -> str | None:
    """What is wrong with an image and its annotation, in a line, if anything is."""
    try:
        read_pair(files, num_classes)
    except InputError as error:
        return str(error)
    return None


class FolderPairs(Sequence):
    """Files of :func:`find_pairs`, decoded by :func:`read_pair`."""

    def __init__(self, files: list[tuple[Path, Path]], num_classes: int, mode: str) -> None:
        self.files, self._args = files, (num_classes, mode)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Pair:
        return read_pair(self.files[index], *self._args)

    def facts(self) -> Iterator[str]:
        for files in zip(*self.files, strict=True):
            yield from of_files(files, files[0].parent)


class HubPairs(Sequence):
    """The same out of two columns of a Hugging Face data set.

    Raises:
        InputError: it cannot be opened, or has no such columns.
    """

    def __init__(
        self, reader: str, split: str, root: str | None, columns: dict[str, str], num_classes: int, mode: str
    ) -> None:
        from datasets import Image

        table, self._args = load_hub(reader, split, cache_dir=root), (num_classes, mode)
        for key, column in columns.items():
            if not isinstance(table.features.get(column), Image):
                there = f"{reader} has no such column of images, only {', '.join(table.column_names)}"
                raise InputError(f"data.reader_args.{key}={column}: {there}")
        self._columns = [EncodedImages(table, columns[key]) for key in ("image", "annotation")]
        self._names = [f"{reader}, {split}, {columns[key]}" for key in ("image", "annotation")]

    def __len__(self) -> int:
        return len(self._columns[0])

    def __getitem__(self, index: int) -> Pair:
        names = [f"{name}, row {index}" for name in self._names]
        return read_pair([column[index] for column in self._columns], *self._args, names)

    def facts(self) -> Iterator[str]:
        yield str(len(self))
        for column in self._columns:
            yield from column.facts()
