"""Check a download of ADE20K (ADEChallengeData2016), or a data set in its layout, before training on it.

    python scripts/prepare_ade20k.py ADEChallengeData2016 --workers 8
    python scripts/prepare_ade20k.py CAMVID --num-classes 11 --counts none

Reads every file: folders, counts, pairs of image and annotation, sizes, labels. Prints a line for each problem and
exits with 1 if there is one. Writes classes.txt (for data.class_names) from the download's objectInfo150.txt.
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path

from neutreno.errors import InputError, check_number, report

DOWNLOAD = """\
ADE20K is at http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip (about 1 GB). Unpack it anywhere;
the folder ADEChallengeData2016 in it is ROOT and data.root: it holds {images,annotations}/{training,validation}."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", metavar="ROOT", type=Path, help="folder with images/ and annotations/")
    parser.add_argument("--workers", metavar="N", type=int, default=os.cpu_count(), help="processes (%(default)s)")
    parser.add_argument("--num-classes", metavar="N", type=int, default=150, help="default: %(default)s")
    parser.add_argument(
        "--counts", metavar="TRAIN,VAL", default="20210,2000", help="images, or none; default: %(default)s"
    )
    parser.add_argument("--show", metavar="N", type=int, default=20, help="problems to list (%(default)s)")
    arguments = parser.parse_args()
    try:
        for name in ("workers", "num_classes", "show"):
            check_number(f"--{name.replace('_', '-')}", getattr(arguments, name), 1, integer=True)
        problems = check_files(arguments.root, arguments.num_classes, arguments.counts, arguments.workers)
        problems += check_names(arguments.root, arguments.num_classes)
    except Exception as error:
        return report(error)
    for problem in problems[: arguments.show]:
        print(f"problem: {problem}")
    if len(problems) > arguments.show:
        print(f"… and {len(problems) - arguments.show:,} more")
    print(
        f"problems: {len(problems):,}\n{DOWNLOAD}" if problems else f"complete; train with data.root={arguments.root}"
    )
    return 1 if problems else 0


def check_files(root: Path, num_classes: int, counts: str, workers: int) -> list[str]:
    from tqdm.contrib.concurrent import process_map

    from neutreno.data.mask_files import ADE20K, Labels, find_folders, find_pairs, missing_folder, pair_problem

    expected = [None, None] if counts == "none" else counts.split(",")
    if len(expected) != 2 or not all(n is None or n.isdecimal() for n in expected):
        raise InputError(f"--counts={counts} is neither TRAIN,VAL nor none")
    problems = []
    for name, count in zip(("train", "val"), expected, strict=True):
        if (folders := find_folders(root, name)) is None:
            problems.append(str(missing_folder(root, name)))
            continue
        pairs, unpaired = find_pairs(*folders)
        problems += unpaired
        split = ADE20K[name]
        if count is not None and len(pairs) != int(count):
            problems.append(
                f"{root} has {len(pairs):,} pairs in {split}, not {int(count):,}; --counts none: any number"
            )
        look = partial(pair_problem, labels=Labels.numbered(num_classes, void=0))
        found = process_map(look, pairs, max_workers=workers, chunksize=16, desc=split, disable=None)
        problems += filter(None, found)
        print(f"{split}: {len(pairs):,} images with annotations, {found.count(None):,} of them good")
    return problems


def check_names(root: Path, num_classes: int) -> list[str]:
    from neutreno.data.mask_files import read_class_names

    file, info = root / "classes.txt", root / "objectInfo150.txt"
    if not file.exists() and info.exists():  # a table whose last column holds synonyms: building, edifice
        rows = [line.split("\t") for line in info.read_text(encoding="utf-8", errors="replace").splitlines()[1:]]
        try:
            file.write_text("".join(f"{row[-1].split(',')[0].strip()}\n" for row in rows))
            print(f"wrote {file}")
        except OSError as error:
            print(f"could not write {file} ({error.strerror})")
    if not file.exists():
        print("no classes.txt: results will name the classes by number")
        return []
    try:
        read_class_names(file, num_classes)
    except InputError as error:
        return [str(error)]
    print("name the classes in results with data.class_names=classes.txt")
    return []


if __name__ == "__main__":
    sys.exit(main())
