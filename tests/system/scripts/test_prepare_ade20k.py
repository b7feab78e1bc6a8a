"""The check of a download, run as a user runs it, on small data in the real layout."""

import numpy as np
import pytest
from PIL import Image
from support import assert_one_line_error, assert_problems, make_image, run_forked

SCRIPT = "scripts/prepare_ade20k.py"
SMALL = ["--counts", "6,2", "--workers", "2"]


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    for split, count in (("training", 6), ("validation", 2)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            make_image(i).save(root / f"images/{split}/{i}.jpg")
            labels = np.random.default_rng(i).integers(0, 151, (12, 12), dtype=np.uint8)
            Image.fromarray(labels).save(root / f"annotations/{split}/{i}.png")
    rows = ["Idx\tRatio\tTrain\tVal\tName", "1\t0.16\t11664\t1172\twall", "2\t0.11\t6046\t612\tbuilding, edifice"]
    rows += [f"{i} \t0.01\t10\t1\tclass {i}, other name " for i in range(3, 151)]
    (root / "objectInfo150.txt").write_text("\n".join(rows) + "\n")
    return root


def test_a_complete_download_passes_and_its_classes_are_written(root):
    done = run_forked(SCRIPT, str(root), *SMALL, cwd=root)
    assert done.returncode == 0 and f"complete; train with data.root={root}" in done.stdout, done.stdout + done.stderr
    assert "training: 6 images with annotations, 6 of them good" in done.stdout
    names = (root / "classes.txt").read_text().splitlines()
    assert len(names) == 150 and names[:3] == ["wall", "building", "class 3"]


def test_every_problem_gets_a_line(root):
    (root / "annotations/training/0.png").unlink()
    (root / "images/training/1.jpg").write_bytes((root / "images/training/1.jpg").read_bytes()[:300])
    Image.fromarray(np.zeros((9, 12), np.uint8)).save(root / "annotations/training/2.png")
    Image.fromarray(np.full((12, 12), 151, np.uint8)).save(root / "annotations/training/3.png")
    (root / "annotations/validation/0.png").write_bytes(b"")
    (root / "classes.txt").write_text("wall\n")
    done = run_forked(SCRIPT, str(root), *SMALL, cwd=root)
    expected = [
        "training/0.jpg has no annotation",
        "has 5 pairs in training, not 6",
        "training/1.jpg is not a readable image",
        "training/2.jpg has 12 x 12 pixels",
        "training/3.png holds the label 151",
        "validation/0.png is empty",
        "classes.txt names 1 classes",
    ]
    assert_problems(done, *expected)
    assert "problems: 7" in done.stdout and "ADEChallengeData2016.zip" in done.stdout and "Traceback" not in done.stderr
    shown = run_forked(SCRIPT, str(root), *SMALL, "--show", "2", cwd=root).stdout
    assert shown.count("problem: ") == 2 and "… and 5 more" in shown


def test_an_empty_place_says_where_to_get_the_data(tmp_path):
    done = run_forked(SCRIPT, str(tmp_path / "nowhere"), cwd=tmp_path)
    assert done.returncode == 1 and "ADEChallengeData2016.zip" in done.stdout
    assert "nowhere/images/training is missing" in done.stdout and "nowhere/images/validation is missing" in done.stdout


def test_other_data_sets_in_the_layout(root):
    for file in root.glob("annotations/*/*.png"):
        Image.fromarray(np.asarray(Image.open(file)) % 4).save(file)
    (root / "objectInfo150.txt").unlink()
    done = run_forked(SCRIPT, str(root), "--num-classes", "3", "--counts", "none", "--workers", "1", cwd=root)
    assert done.returncode == 0 and "no classes.txt" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    "option, value, words",
    [
        ("--workers", "0", "--workers=0 is not a whole number ≥ 1"),
        ("--num-classes", "0", "--num-classes=0 is not a whole number ≥ 1"),
        ("--counts", "many", "--counts=many is neither TRAIN,VAL nor none"),
    ],
)
def test_wrong_options_are_named(root, option, value, words):
    assert_one_line_error(run_forked(SCRIPT, str(root), option, value, cwd=root), words)
