"""What travels to a machine without a network: wheels that it lacks, and as many images of CIFAR-10 as then fit."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from kit.supervise import ARCHIVE, last_line, needed, plain
from neutreno.errors import InputError
from neutreno.files import replacing

BARE = ("torch", "torchvision", "timm", "lightning")  # what the machine has, with all that they pull in
TARGET = {"python_version": "3.12", "python_full_version": "3.12.0", "sys_platform": "linux"}
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 17)] + ["manylinux2014_x86_64", "manylinux1_x86_64"]
JPEG = b"\xff\xd8"


def carry(folder: Path, cifar10: Path | None, limit: int, have: Iterable[str] = ()) -> None:
    """Fill ``folder`` anew, with at most ``limit`` bytes, and say what is in it and what is not."""
    wanted = to_carry(have)
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.whl"), *folder.glob(ARCHIVE)):
        old.unlink()
    with tempfile.TemporaryDirectory() as scratch:
        files = [wheel(name, version, Path(scratch) / name) for name, version in wanted.items()]
        chosen, left_out = choose([(file, file.stat().st_size) for file in files], limit)
        for file in chosen:
            shutil.move(file, folder)
    taken = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{len(chosen)} wheels, {taken / 1e6:.1f} MB: {', '.join(file.name.split('-')[0] for file in chosen)}")
    if left_out:
        print(f"left out: {', '.join(file.name for file in left_out)}; --have names what the machine has already")
    if cifar10 is None:
        print("no images: give --cifar10 FOLDER")
    else:
        count = pack(cifar10, folder / ARCHIVE, limit - taken)
        print(f"{count['train']:,} training and {count['test']:,} test images of CIFAR-10")
    print(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.1f} MB")


def to_carry(have: Iterable[str] = ()) -> dict[str, str]:
    """Distributions that the kit needs and a bare machine lacks, in the versions that are here."""
    bare = {*closure([*BARE, *have])}
    return {name: version for name, version in closure(needed()).items() if name not in bare}


def closure(roots: Iterable[str]) -> dict[str, str]:
    """Distributions and all that they require on the target, as far as they are installed here: name → version."""
    from packaging.requirements import Requirement

    found: dict[str, str] = {}
    todo, seen = [Requirement(root) for root in roots], set()
    while todo:
        requirement = todo.pop(0)
        name, extras = plain(requirement.name), requirement.extras or {""}
        if (name, *sorted(extras)) in seen:
            continue
        seen.add((name, *sorted(extras)))
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # of another platform, such as CUDA's libraries
            continue
        found[name] = distribution.version
        for inner in map(Requirement, distribution.requires or []):
            if inner.marker is None or any(inner.marker.evaluate({**TARGET, "extra": extra}) for extra in extras):
                todo.append(inner)
    return found


def wheel(name: str, version: str, folder: Path) -> Path:
    """The wheel of a distribution for the target, built here where the index has only its source, packed tightly.

    Raises:
        InputError: there is none, or what was built fits this machine alone.
    """
    pip = [sys.executable, "-m", "pip"]
    target = ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
    target += [word for platform in PLATFORMS for word in ("--platform", platform)]
    wanted = ["--quiet", "--no-deps", f"{name}=={version}"]
    done = subprocess.run([*pip, "download", *wanted, *target, "-d", str(folder)], capture_output=True, text=True)
    if done.returncode:
        done = subprocess.run([*pip, "wheel", *wanted, "-w", str(folder)], capture_output=True, text=True)
        if done.returncode:
            raise InputError(f"{name} {version}: neither a wheel nor a source that builds: {last_line(done.stderr)}")
    (file,) = folder.glob("*.whl")
    if not fits_target(file.name):
        raise InputError(f"{file.name} was built for this machine; Python 3.12 on x86-64 needs another")
    return squeezed(file)


def fits_target(wheel: str) -> bool:
    """Whether a wheel of this name can be installed on the target."""
    from packaging.utils import parse_wheel_filename

    tags = parse_wheel_filename(wheel)[3]
    return any(
        (tag.interpreter in ("py3", "py312", "cp312") or tag.abi == "abi3")
        and (tag.platform == "any" or tag.platform.endswith("x86_64"))
        for tag in tags
    )


def squeezed(file: Path) -> Path:
    """The same wheel without its package's tests and packed by LZMA, which pip reads all the same: half the size."""
    packed = file.with_suffix(".smaller")
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(packed, "w") as new:
        for info in old.infolist():
            if "/tests/" not in info.filename:
                new.writestr(info, old.read(info), zipfile.ZIP_LZMA)
    return packed.replace(file) if packed.stat().st_size < file.stat().st_size else file


def choose(sized: list[tuple[Path, int]], limit: int) -> tuple[list[Path], list[Path]]:
    """The smallest files first while there is room, and those for which there is none."""
    chosen, left_out, taken = [], [], 0
    for file, size in sorted(sized, key=lambda pair: pair[1]):
        fits = taken + size <= limit
        (chosen if fits else left_out).append(file)
        taken += size if fits else 0
    return chosen, left_out


def images_of(root: Path, split: str) -> Iterator[tuple[str, bytes]]:
    """Class and encoded image, as they are stored, in any layout that ``data.root`` may have."""
    from neutreno.data.image_files import open_split

    images = open_split(root, split) if root.is_dir() else None
    for index, label in enumerate(() if images is None else images.labels):
        content, _ = images.content(index)
        yield images.classes[label], content if isinstance(content, bytes) else Path(content).read_bytes()


def pack(root: Path, archive: Path, room: int) -> dict[str, int]:
    """As many images as fit in ``room`` bytes, as ``SPLIT/CLASS/NUMBER``, the same share of every class; their counts.

    Raises:
        InputError: there are none, or not one of each class fits.
    """
    images: dict[str, list[bytes]] = {}
    for split in ("train", "test"):
        for label, content in images_of(root, split):
            images.setdefault(f"{split}/{label}", []).append(content)
    if not {"train", "test"} == {name.partition("/")[0] for name in images}:
        raise InputError(f"--cifar10 {root}: expected train and test as class folders or parquet files")
    share = 1.0
    while write_archive(archive, images, share) > room:
        share *= 0.97 * room / archive.stat().st_size  # small images share most of their bytes, so none says its size
        if share * min(map(len, images.values())) < 1:
            archive.unlink()
            raise InputError(f"{room / 1e6:.1f} MB are left for images; raise --limit-mb, or name packages in --have")
    kept = {name: int(share * len(contents)) for name, contents in images.items()}
    return {split: sum(n for name, n in kept.items() if name.startswith(split)) for split in ("train", "test")}


def write_archive(archive: Path, images: dict[str, list[bytes]], share: float) -> int:
    """The first ``share`` of every folder's images as one solid archive; its bytes."""
    with replacing(archive, "wb") as file, tarfile.open(fileobj=file, mode="w:xz") as packed:
        for name, contents in images.items():
            for number, content in enumerate(contents[: int(share * len(contents))]):
                entry = tarfile.TarInfo(f"{name}/{number:05}.{'jpg' if content.startswith(JPEG) else 'png'}")
                entry.size = len(content)
                packed.addfile(entry, io.BytesIO(content))
    return archive.stat().st_size
