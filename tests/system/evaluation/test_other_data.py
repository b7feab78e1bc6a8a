"""A run evaluated on data that it was not trained for: refused where figures would mean something else, else noted."""

import json
import shutil

import pytest
from support import assert_one_line_error, make_image, run_forked

SMALL = ["model.depth=1", "model.embed_dim=16", "model.num_heads=1", "data.num_workers=0", "probe.num_samples=4"]


def images(folder, counts, first=0):
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            make_image(first + i, 32).save(folder / name / f"{i}.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    home = tmp_path_factory.mktemp("trained")
    images(home / "drawn", {"cat": 12, "dog": 12})
    for split in ("train", "val"):
        images(home / "split" / split, {"cat": 8, "dog": 8}, first=10)
    for name in ("drawn", "split"):
        words = ["data=images", f"data.root={name}", "data.batch_size=8", "data.img_size=32", "trainer.max_epochs=1"]
        done = run_forked("train.py", *words, *SMALL, f"name={name}", cwd=home)
        assert done.returncode == 0, done.stderr
        assert json.loads((home / f"outputs/{name}/result.json").read_text())["classes"] == ["cat", "dog"]
    return home


def evaluate(home, run, folder):
    return run_forked("evaluate.py", f"outputs/{run}", f"data.root={folder}", "evaluators=[metrics]", cwd=home)


def test_images_that_would_be_drawn_anew_from_the_training_ones_are_refused(trained):
    shutil.copytree(trained / "drawn", trained / "more")
    make_image(99, 32).save(trained / "more/cat/new.png")
    assert_one_line_error(evaluate(trained, "drawn", "more"), "may have been trained on", "val splits differ")
    moved = trained / "moved"
    shutil.copytree(trained / "drawn", moved)
    done = evaluate(trained, "drawn", moved)
    assert done.returncode == 0 and "note: this is not" not in done.stdout, done.stderr


def test_other_validation_images_are_noted(trained):
    images(trained / "others/val", {"cat": 5, "dog": 5}, first=50)
    done = evaluate(trained, "split", "others")
    assert done.returncode == 0, done.stderr
    assert "note: this is not the data that the run had: the val split differs" in done.stdout
    record = json.loads((trained / "outputs/split/evaluation.json").read_text())
    assert any("is not the data" in note for note in record["data_notes"])


@pytest.mark.parametrize("names, refused", [(("cat", "emu"), True), (("lion", "wolf"), False)])
def test_classes_that_are_partly_others_are_refused_and_wholly_others_noted(trained, names, refused):
    folder = trained / "-".join(names)
    images(folder / "val", dict.fromkeys(names, 5), first=70)
    done = evaluate(trained, "split", folder)
    said = f"the run's classes are cat, dog, those here {', '.join(names)}"
    if refused:
        assert_one_line_error(done, said, "labels would be taken for others")
    else:
        assert done.returncode == 0 and f"note: {said}; labels are compared by their numbers" in done.stdout
