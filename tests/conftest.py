"""Small data in the real formats."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import encode, make_image, write_parquet


@pytest.hookimpl(optionalhook=True)  # known where xdist is
def pytest_xdist_auto_num_workers() -> int | None:
    """One process more than there are cores, since tests of sweeps, signals and pages also wait."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + 1


@pytest.fixture(autouse=True, scope="session")
def _own_caches(tmp_path_factory):
    """Nothing is read from or written to the user's caches."""
    folder = tmp_path_factory.mktemp("caches")
    os.environ.update(HF_HOME=str(folder), HF_DATASETS_CACHE=str(folder / "datasets"))


@pytest.fixture(autouse=True, scope="session")
def _forks_can_train():
    """A first backward pass after torch.compile starts threads that keep forks from training; one before does not."""
    import torch

    torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture
def image_folders(tmp_path: Path) -> Path:
    """``root/{train,val}/CLASS/IMAGE``, two classes, 12 + 4 images."""
    root = tmp_path / "images"
    for split, count in (("train", 6), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                make_image(100 * label + i).save(folder / f"{i}.png")
    return root


@pytest.fixture
def image_parquet(tmp_path: Path) -> Path:
    """``root/{train,test}-00000-of-00001.parquet``, two classes, 20 + 4 images."""
    root = tmp_path / "parquet"
    for split, count in (("train", 20), ("test", 4)):
        images = [encode(make_image(i)) for i in range(count)]
        write_parquet(root / f"{split}-00000-of-00001.parquet", images, [i % 2 for i in range(count)], ["cat", "dog"])
    return root


@pytest.fixture(scope="session")
def street_folders(tmp_path_factory):
    """ADE20K's layout, four classes: six images to train, five of several sizes to validate.

    The brightness is the label; the last row is ignored.
    """
    root = tmp_path_factory.mktemp("streets")
    draw = np.random.default_rng(0)
    for split, sizes in (
        ("training", [(48, 40)] * 6),
        ("validation", [(48, 40), (36, 60), (33, 33), (70, 40), (20, 90)]),
    ):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for i, (height, width) in enumerate(sizes):
            coarse = draw.integers(0, 4, (1 + height // 16, 1 + width // 16))
            classes = coarse.repeat(16, 0).repeat(16, 1)[:height, :width]
            labels = (classes + 1).astype(np.uint8)
            labels[-1] = 0
            grey = (classes * 80 + draw.integers(0, 16, classes.shape)).astype(np.uint8)
            Image.fromarray(grey).convert("RGB").save(root / f"images/{split}/{i}.png")
            Image.fromarray(labels).save(root / f"annotations/{split}/{i}.png")
    return root


@pytest.fixture
def hub_folder(tmp_path):
    """A data set as it lies on the hub: four training shards of 10 images, a validation shard of 6."""
    root = tmp_path / "hub"
    for shard in range(4):
        images = [encode(make_image(10 * shard + i), "JPEG") for i in range(10)]
        write_parquet(
            root / f"data/train-0000{shard}-of-00004.parquet", images, [i % 2 for i in range(10)], ["cat", "dog"]
        )
    images = [encode(make_image(100 + i), "JPEG") for i in range(6)]
    write_parquet(root / "data/validation-00000-of-00001.parquet", images, [0, 1] * 3, ["cat", "dog"])
    return root
