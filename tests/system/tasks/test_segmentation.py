"""The segmentation task: whole runs on small images in ADE20K's layout."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from support import assert_one_line_error, result, run_forked, run_ranks

from neutreno.reports.comparison import group_runs
from neutreno.reports.layers import curve
from neutreno.reports.reading import read_runs

CLASSES = 4
SMALL = [
    "data=ade20k",
    f"data.num_classes={CLASSES}",
    "data.img_size=32",
    "data.resize=[64,32]",
    "data.batch_size=2",
    "data.num_workers=0",
    "model.size=mini",
    "model.depth=2",
    "model.embed_dim=16",
    "model.num_heads=2",
    "task.inference.stride=16",
    "task.protocols={stride480:null,multi_scale:{stride:16,scales:[0.5,1.0]}}",
    "trainer.max_epochs=2",
    "trainer.check_val_every_n_epoch=1",
    "probe.every_n_epochs=1",
    "probe.num_samples=3",
    "trainer.accelerator=cpu",
    "name=x",
]
NO_COST = "evaluators=[metrics,windows,per_layer]"


def table(file):
    return list(csv.DictReader(file.read_text().splitlines()))


def train(street_folders, cwd, *arguments):
    return run_forked("train.py", *SMALL, f"data.root={street_folders}", *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def finished(street_folders, tmp_path_factory):
    cwd = tmp_path_factory.mktemp("finished")
    done = train(street_folders, cwd)
    assert done.returncode == 0, done.stderr
    return cwd


def test_a_run_reports_encoder_and_decoder_and_leaves_figures(finished):
    run = finished / "outputs/x"
    record = result(run)
    assert [len(curve(record["oversmoothing"], stack=f"{part}.blocks")) for part in ("encoder", "decoder")] == [3, 3]
    assert {"val/miou", "val/pixel_acc", "val/mean_acc", "best/val/miou"} == record["metrics"].keys() - {
        "best/val/pixel_acc",
        "best/val/mean_acc",
    }
    logged = (run / "metrics.csv").read_text().splitlines()[0]
    assert "oversmoothing/cosine/layer_02" in logged and "oversmoothing/cosine_decoder/layer_02" in logged
    rows = table(run / "class_iou.csv")
    assert [row["name"] for row in rows] == [f"class_{i + 1}" for i in range(CLASSES)]
    mean = np.mean([float(row["iou"]) for row in rows])
    assert mean == pytest.approx(record["metrics"]["val/miou"], abs=1e-3)
    for figure in ("class_iou.png", "predictions.png", "oversmoothing.png"):
        assert Image.open(run / figure).size[0] > 300


def test_validation_covers_every_labelled_pixel_once(finished, street_folders):
    rows = table(finished / "outputs/x/class_iou.csv")
    labels = np.concatenate(
        [np.asarray(Image.open(p)).ravel() for p in sorted((street_folders / "annotations/validation").iterdir())]
    )
    assert [int(row["pixels"]) for row in rows] == np.bincount(labels, minlength=CLASSES + 1)[1:].tolist()


def test_evaluate_repeats_the_runs_figures_and_adds_its_protocols(finished, street_folders, tmp_path):
    done = run_forked("evaluate.py", "outputs/x", NO_COST, f"name={tmp_path.name}", cwd=finished)
    assert done.returncode == 0, done.stderr
    folder = finished / "outputs/evaluations" / tmp_path.name
    found = json.loads((folder / "evaluation.json").read_text())["metrics"]
    for name, value in result(finished / "outputs/x")["metrics"].items():
        assert found[name] == pytest.approx(value, abs=1e-3), name
    assert 0 < found["val_multi_scale/miou"] != found["val/miou"] and "val_stride480/miou" not in found
    rows = table(folder / "evaluation_class_iou.csv")
    assert {row["split"] for row in rows} == {"val", "val_multi_scale"}
    page = (folder / "evaluation.md").read_text()
    assert "decoder layer" in page and "encoder, patch" in page and "val_multi_scale/miou" in page


@pytest.mark.parametrize("setting, words", [("data.num_classes=5", "made for 4"), ("data.in_chans=1", "made for 3")])
def test_a_run_is_not_evaluated_as_something_else(finished, setting, words):
    assert_one_line_error(run_forked("evaluate.py", "outputs/x", setting, cwd=finished), setting, words)


def test_protocols_can_be_changed_at_evaluation(finished, tmp_path):
    arguments = [NO_COST, f"name={tmp_path.name}", "task.protocols.dense={stride:8}", "task.inference.batch=3"]
    done = run_forked("evaluate.py", "outputs/x", *arguments, cwd=finished)
    assert done.returncode == 0, done.stderr
    found = json.loads((finished / f"outputs/evaluations/{tmp_path.name}/evaluation.json").read_text())["metrics"]
    assert found["val/miou"] == pytest.approx(result(finished / "outputs/x")["metrics"]["val/miou"], abs=1e-3)
    assert "val_dense/miou" in found
    refused = run_forked("evaluate.py", "outputs/x", "task.lr=1", cwd=finished)
    assert_one_line_error(refused, "task.lr")


def test_the_encoder_starts_from_a_run_folder(finished, street_folders, tmp_path):
    run = finished / "outputs/x"
    done = train(street_folders, tmp_path, f"model.encoder_weights={run}", "trainer.limit_train_batches=1")
    assert done.returncode == 0, done.stderr
    started = result(tmp_path / "outputs/x")["initial_weights"]["model.encoder_weights"]
    assert started["source"] == str(run) and len(started["sha256"]) == 64
    assert started["axes"] == result(finished / "outputs/x")["axes"]
    wide = train(street_folders, tmp_path, f"model.encoder_weights={run}", "model.embed_dim=32", "name=wide")
    assert_one_line_error(wide, "model.encoder_weights", "a width of 16, the model of 32")


@pytest.fixture(scope="module")
def two_seeds(finished, street_folders, tmp_path_factory):
    """Two runs, each from an encoder run with the same seed, which is gone afterwards."""
    cwd = tmp_path_factory.mktemp("seeds")
    for seed in (0, 1):
        shutil.copytree(finished / "outputs/x", cwd / f"outputs/encoder-seed{seed}")
        start = f"model.encoder_weights=outputs/encoder-seed{seed}"
        done = train(street_folders, cwd, start, f"seed={seed}", f"name=run{seed}", "trainer.max_epochs=1")
        assert done.returncode == 0, done.stderr
        shutil.rmtree(cwd / f"outputs/encoder-seed{seed}")
    return cwd


def test_a_run_is_evaluated_without_the_run_its_encoder_came_from(two_seeds):
    done = run_forked("evaluate.py", "outputs/run1", NO_COST, cwd=two_seeds)
    assert done.returncode == 0, done.stderr
    evaluation = json.loads((two_seeds / "outputs/run1/evaluation.json").read_text())
    trained = json.loads((two_seeds / "outputs/run1/result.json").read_text())["metrics"]
    assert evaluation["metrics"]["val/miou"] == pytest.approx(trained["val/miou"], abs=1e-3)
    assert evaluation["settings"]["task"]["inference"]["stride"] == 16
    assert evaluation["settings"]["task"]["protocols"]["multi_scale"]["flip"] is True


def test_runs_from_encoders_of_their_own_seeds_are_one_group_with_both_parts(two_seeds):
    groups, _ = group_runs(read_runs([two_seeds / "outputs/run0", two_seeds / "outputs/run1"])[0])
    assert len(groups) == 1 and len(groups[0].runs) == 2
    assert groups[0].curves().shape == groups[0].curves(stack="decoder.blocks").shape == (2, 3)


def test_a_comparison_shows_what_an_evaluation_added(finished):
    done = run_forked("evaluate.py", "outputs/x", NO_COST, cwd=finished)
    assert done.returncode == 0, done.stderr
    (group,), _ = group_runs(read_runs([finished / "outputs/x"])[0])
    assert group.values("val_multi_scale/miou") > 0


def test_the_last_smaller_batch_is_a_step_of_the_schedule_on_one_process_and_on_two(street_folders, tmp_path):
    """Six images in batches of four; two processes with micro-batches of one fill the last with two more."""
    words = ["data.batch_size=4", "trainer.log_every_n_steps=1", f"data.root={street_folders}"]
    assert train(street_folders, tmp_path, *words, "name=one").returncode == 0
    two = ["data.micro_batch_size=1", "trainer.devices=2", "trainer.strategy=ddp", "name=two"]
    for done in run_ranks(2, *SMALL, *words, *two, cwd=tmp_path):
        assert done.returncode == 0, done.stderr
    for name in ("one", "two"):
        run = tmp_path / "outputs" / name
        rates = [float(row["train/lr"]) for row in table(run / "metrics.csv") if row["train/lr"]]
        assert result(run)["steps"] == 4
        assert sorted(set(rates), reverse=True) == pytest.approx(
            [(1e-3 - 1e-5) * (1 - step / 4) ** 0.9 + 1e-5 for step in range(4)]
        )


def test_what_only_another_process_met_is_said(street_folders, tmp_path):
    """The second validation image is the second process's, and its label is wrong."""
    root = tmp_path / "copy"
    shutil.copytree(street_folders, root)
    file = root / "annotations/validation/1.png"
    Image.fromarray(np.full_like(np.asarray(Image.open(file)), 9)).save(file)
    arguments = [*SMALL, f"data.root={root}", "trainer.devices=2", "trainer.strategy=ddp", "probe.num_samples=1"]
    first, second = run_ranks(2, *arguments, cwd=tmp_path)
    assert_one_line_error(second, "annotations/validation/1.png", "label 9")
    assert first.returncode != 0 and "Traceback" not in first.stderr


def test_two_processes_give_the_validation_scores_of_one(finished, street_folders, tmp_path):
    """Five images over two processes: none counted twice, none left out."""
    arguments = [
        *SMALL,
        f"data.root={street_folders}",
        "trainer.devices=2",
        "trainer.strategy=ddp",
        "model.weights=null",
    ]
    start = f"model.weights={finished / 'outputs/x'}"  # the same weights, and none of their training
    still = ["trainer.max_epochs=1", "task.lr=0", "task.min_lr=0", start]
    one = train(street_folders, tmp_path, *still, "name=one")
    assert one.returncode == 0, one.stderr
    for done in run_ranks(2, *arguments, *still, "name=two", cwd=tmp_path):
        assert done.returncode == 0, done.stderr
    metrics = [json.loads((tmp_path / f"outputs/{n}/result.json").read_text())["metrics"] for n in ("one", "two")]
    assert metrics[0]["val/miou"] == metrics[1]["val/miou"] == result(finished / "outputs/x")["metrics"]["val/miou"]
    tables = [(tmp_path / f"outputs/{n}/class_iou.csv").read_text() for n in ("one", "two")]
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["task.inference.window=8"], ["task.inference", "window=8", "smaller than a patch of 16"]),
        (["task.inference.scales=[]"], ["task.inference", "scales=[] is not a list of factors; write scales=[1.0]"]),
        (["task.inference.stride=64"], ["task.inference", "stride=64", "would leave gaps"]),
        (
            ["task.protocols.multi_scale.scales=[]"],
            ["task.protocols.multi_scale", "scales=[] is not a list of factors"],
        ),
        (
            ["+task.protocols.multi_scale.strides=1"],
            ["task.protocols.multi_scale: got an unexpected keyword argument 'strides'"],
        ),
        (["model=deit"], ["takes a model of masks", "leave model=… out"]),
        (["task.num_classes=7"], ["task.num_classes=7", "the model has 4"]),
        (["model.encoder_weights=nothing_here"], ["nothing_here", "neither a run folder"]),
        (["task.schedule=steps"], ["task.schedule=steps should be 'cosine', 'linear', 'poly', 'tanh' or 'constant'"]),
    ],
)
def test_bad_input_is_one_line(street_folders, tmp_path, arguments, words):
    assert_one_line_error(train(street_folders, tmp_path, *arguments), *words)
    assert not (tmp_path / "outputs/x").exists()


def _without(path):
    return lambda root: (root / path).unlink()


def _relabelled(root):
    Image.fromarray(np.full((48, 40), 9, np.uint8)).save(root / "annotations/training/2.png")


def _resized(root):
    Image.open(root / "annotations/validation/1.png").resize((10, 10)).save(root / "annotations/validation/1.png")


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda root: (root / "images/validation").rename(root / "val"), ["images/validation is missing", "training"]),
        (lambda root: (root / "images").rename(root / "pictures"), ["images/training is missing"]),
        (_without("annotations/training/3.png"), ["images/training/3.png has no annotation", "add it or remove"]),
        (_resized, ["images/validation/1.png", "annotations/validation/1.png", "60 x 36", "10 x 10"]),
        (_relabelled, ["annotations/training/2.png", "label 9", "data.num_classes=4"]),
        (
            lambda root: (root / "images/training/4.png").write_bytes(b"no"),
            ["images/training/4.png is not a readable image"],
        ),
    ],
    ids=["split", "folder", "annotation", "sizes", "label", "image"],
)
def test_damaged_data_is_named_in_one_line(street_folders, tmp_path, damage, words):
    root = tmp_path / "copy"
    shutil.copytree(street_folders, root)
    damage(root)
    assert_one_line_error(train(root, tmp_path), *words)


def test_no_data_is_one_line(tmp_path):
    assert_one_line_error(train("nowhere", tmp_path), "data.root=nowhere", "not a folder")
    done = run_forked("train.py", "data=ade20k", cwd=tmp_path)
    assert_one_line_error(done, "data.root is not set")


def test_a_segmenter_is_not_trained_to_classify(tmp_path):
    assert_one_line_error(run_forked("train.py", "model=segmenter", cwd=tmp_path), "takes a model of classes")
