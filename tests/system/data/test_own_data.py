"""Own images, text and masks as a user brings them: one command, and one message with all that does not fit."""

import json

import numpy as np
import pytest
from PIL import Image
from support import make_image, run_forked, train

SMALL = ["model.depth=1", "model.embed_dim=16", "model.num_heads=1", "data.num_workers=0", "probe.num_samples=4"]


@pytest.fixture
def pets(tmp_path):
    for name, count in {"cat": 12, "dog": 9, "olm": 1}.items():
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(count):
            make_image(i, 40).save(tmp_path / "pets" / name / f"{i}.jpg")
    palette = make_image(0, 40).convert("P")  # of which Pillow warns
    palette.save(tmp_path / "pets/cat/0.png", transparency=bytes([0, 255] * 8))
    (tmp_path / "pets/cat/0.jpg").unlink()
    return tmp_path / "pets"


def test_own_images_train_and_evaluate_without_a_word_on_classes(pets, tmp_path):
    words = ["data=images", f"data.root={pets}", "data.batch_size=8", "data.img_size=32", "trainer.max_epochs=2"]
    done = run_forked("train.py", *words, *SMALL, "name=x", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "note: no val split: 2 of 22 training images are held out" in done.stdout
    assert "note: 3 classes: cat, dog, olm" in done.stdout
    assert "note: no test split: the figures at the end are the validation split's" in done.stdout
    result = json.loads((tmp_path / "outputs/x/result.json").read_text())
    assert "val/top1" in result["metrics"] and "test/top1" not in result["metrics"]
    assert [note.split(":")[0] for note in result["data_notes"]] == ["no val split", "3 classes", "no test split"]
    again = run_forked("evaluate.py", "outputs/x", "evaluators=[metrics]", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    evaluation = json.loads((tmp_path / "outputs/x/evaluation.json").read_text())
    assert evaluation["metrics"]["val/loss"] == pytest.approx(result["metrics"]["val/loss"])


def test_all_that_does_not_fit_own_images_is_said_at_once(pets, tmp_path):
    done = run_forked("train.py", "data=images", f"data.root={pets}", "data.img_size=100", *SMALL, cwd=tmp_path)
    assert done.returncode == 2 and not (tmp_path / "outputs").exists()
    assert done.stderr.splitlines() == [
        "error: data.batch_size=64 is larger than the training set of 20; type data.batch_size=16, or less",
        "error: patch_size=16 does not divide img_size=100; change one of them, e.g. to img_size=96",
    ]


def test_all_that_does_not_fit_a_folder_taken_for_imagenet_is_said_at_once(pets, tmp_path):
    done = run_forked("train.py", "data=imagenet", f"data.root={pets}", "data.img_size=100", *SMALL, cwd=tmp_path)
    classes, batch, patch = done.stderr.splitlines()
    assert classes.endswith("pets holds 3 classes, data.num_classes=1000; set data.num_classes=3")
    assert "data.batch_size=1024 is larger than the training set of 20" in batch and "patch_size=16" in patch


def test_a_finished_run_on_own_images_is_known_again(pets, tmp_path):
    words = ["data=images", f"data.root={pets}", "data.batch_size=8", "data.img_size=32", "trainer.max_epochs=1"]
    run = train([*words, *SMALL], tmp_path)
    done = run_forked("train.py", *words, *SMALL, "name=x", "resume=true", cwd=tmp_path)
    assert done.returncode == 0 and f"{run.relative_to(tmp_path)} is finished; nothing to do" in done.stdout


def test_own_text_trains_from_a_file_and_says_how_it_was_cut(tmp_path):
    (tmp_path / "book.txt").write_text("".join(f"the cat w{i % 9} saw {i % 5} .\n" for i in range(600)))
    words = ["data=text", f"data.root={tmp_path / 'book.txt'}", "model.depth=1", "model.embed_dim=16"]
    words += ["model.num_heads=1", "trainer.max_steps=4", "data.val_every_n_steps=2", "data.sequence_length=16"]
    done = run_forked("train.py", *words, "name=x", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    note = "no valid and no test text: cut by position of book.txt, train 80%, val 10%, test 10%"
    assert f"note: {note}" in done.stdout
    result = json.loads((tmp_path / "outputs/x/result.json").read_text())
    assert result["data_notes"] == [note] and result["metrics"]["test/ppl"] > 1
    assert run_forked("evaluate.py", "outputs/x", "evaluators=[metrics]", cwd=tmp_path).returncode == 0


def test_own_masks_train_and_evaluate_without_a_word_on_classes(tmp_path):
    for split, count in (("train", 8), ("val", 2)):
        for kind in ("images", "masks"):
            (tmp_path / "own" / split / kind).mkdir(parents=True)
        for i in range(count):
            image, labels = make_image(i, 40), np.random.default_rng(i).choice(np.uint8([0, 1, 5, 255]), (40, 40))
            image.save(tmp_path / "own" / split / "images" / f"{i}.jpg")
            Image.fromarray(labels).save(tmp_path / "own" / split / "masks" / f"{i}.png")
    words = [
        "data=masks",
        f"data.root={tmp_path / 'own'}",
        "data.batch_size=4",
        "data.img_size=32",
        "data.resize=[64,32]",
    ]
    words += ["trainer.max_epochs=5", "model.decoder_depth=1", *SMALL]
    done = run_forked("train.py", *words, "name=x", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "note: the masks hold 3 classes, the labels 0, 1, 5 (data.num_classes=…" in done.stdout
    rows = (tmp_path / "outputs/x/class_iou.csv").read_text()
    assert all(name in rows for name in ("class_0", "class_1", "class_5"))
    again = run_forked("evaluate.py", "outputs/x", "evaluators=[metrics]", cwd=tmp_path)
    assert again.returncode == 0, again.stderr


def test_masks_of_another_size_are_said_before_anything_is_written(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / "own" / kind).mkdir(parents=True)
    for i in range(8):
        make_image(i, 40).save(tmp_path / f"own/images/{i}.jpg")
        labels = np.random.default_rng(i).choice(np.uint8([0, 1]), (40, 30 if i else 40))
        Image.fromarray(labels).save(tmp_path / f"own/masks/{i}.png")
    done = run_forked("train.py", "data=masks", f"data.root={tmp_path / 'own'}", *SMALL, cwd=tmp_path)
    assert done.returncode == 2 and not (tmp_path / "outputs").exists()
    first, *_ = lines = done.stderr.splitlines()
    assert "images/1.jpg has 40 x 40 pixels" in first and first.endswith("; and 4 more such files"), lines
