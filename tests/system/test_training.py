"""train.py as users call it: what a run leaves behind, what it refuses, how it says so."""

import csv
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from support import (
    ROOT,
    TINY,
    Forked,
    assert_one_line_error,
    deaf_to_nothing,
    encode,
    make_image,
    run_forked,
    run_script,
)
from support.tables import covering

from neutreno.reports.layers import curve
from neutreno.tablefiles import read_table, tables_in


def composed(*overrides):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def rows(file):
    with open(file, newline="") as f:
        return list(csv.DictReader(f))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, output) of a finished tiny run."""
    cwd = tmp_path_factory.mktemp("finished")
    done = run_forked("train.py", *TINY, "task.ema_decay=0.9", "name=tiny", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "outputs" / "tiny", done


GRAPHS = ("dgn_", "graph_")  # how tables of graphs are named; their rows train in tasks/test_node_classification.py


def rows_to_train():
    """Rows of all tables that hold each word at least once, but for numbers, as of rates or of a network's size; and
    each word of an attention, a block or the norms' place with each kind of model."""
    found = {}
    for name in (table for table in tables_in() if not table.startswith(GRAPHS)):
        table = read_table(name)
        for label, words in table.rows.items():
            kind = [re.sub("tiny|small", "", word) for word in (*table.overrides, *words)]
            kind = [word for word in kind if not re.search(r"=[\d.e-]+$|size=$", word)]
            model = next((word for word in kind if word.startswith("model=")), "").removesuffix("_neutreno")
            variant = [f"{model} {word}" for word in kind if re.match(r"attention|block|model\.norm_placement", word)]
            found[f"{name}/{label}"] = {*kind, *variant}
    return covering(found)


@pytest.fixture(scope="module")
def proxy_images(tmp_path_factory):
    """ImageNet's layout with the proxy's 100 classes, two images to train and one to validate in each."""
    root, image = tmp_path_factory.mktemp("imagenet"), encode(make_image(0, 40), "JPEG")
    for name in composed("data=imagenet100").data.classes:
        for split, count in (("train", 2), ("val", 1)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                (root / split / name / f"{i}.JPEG").write_bytes(image)
    return root


@pytest.fixture(scope="module")
def some_text(tmp_path_factory):
    root = tmp_path_factory.mktemp("text")
    for split in ("train", "valid", "test"):
        (root / f"wiki.{split}.tokens").write_text("".join(f" a b w{i % 7} <unk> . \n" for i in range(120)))
    return root


def tiny(config, request):
    """Words that make two steps of any row cheap, and give those without one a data set."""
    task = config.task._target_.rpartition(".")[2]
    steps = ["trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1"]
    width = ["model.depth=1", "model.embed_dim=16", "model.num_heads=1"]
    if task == "LanguageModeling":
        steps = ["trainer.max_steps=2", "task.warmup_steps=1", "data.val_every_n_steps=2"]
        steps += ["model.depth=2", "probe.at_steps=null"]
        if "reader" not in config.data:
            return steps
        return [*steps, "data.batch_size=2", "model.cutoffs=[5]", f"data.root={request.getfixturevalue('some_text')}"]
    if "reader" not in config.data:
        scenes = ["model.depth=1", "model.decoder_depth=1", "data.batch_size=4"]
        scenes += [f"data.{split}_scenes=8" for split in ("train", "val", "test")]
        return [*steps, *(width if task == "Classification" else scenes)]
    segments = task == "Segmentation"
    small = ["batch_size=2", "num_classes=4"] if segments else ["batch_size=8", "num_classes=100"]
    folder = request.getfixturevalue("street_folders" if segments else "proxy_images")
    words = [*steps, *(f"data.{s}" for s in [*small, "img_size=32", "num_workers=0"]), f"data.root={folder}"]
    words += [*width, "trainer.precision=32-true", "model.weights=null"]
    if segments:
        words += ["model.encoder_weights=null", "data.class_names=null", "data.resize=[64,32]"]
        words += [f"task.protocols.{protocol}=null" for protocol in config.task.protocols]
    return words


@pytest.mark.parametrize("row", rows_to_train())
def test_every_word_of_every_table_trains_two_steps(row, tmp_path, request):
    name, _, label = row.partition("/")
    table = read_table(name)
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        words = [*table.overrides, *table.rows[label]]
        config = compose("train", overrides=words, return_hydra_config=True)
    done = run_forked("train.py", *table.words(label, 0, [*tiny(config, request), "name=x"]), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "outputs/x/result.json").read_text())
    assert result["steps"] == 2 and result["row"] == row
    chosen = config.hydra.runtime.choices
    axes = {axis: chosen[axis].partition("@")[0] for axis in ("attention", "block")}
    settings = result["settings"]
    assert {axis: settings[axis] for axis in axes} == axes
    assert settings["attention.lam"] == config.attention.get("lam")
    at_baseline = axes == {"attention": "softmax", "block": "plain"}
    assert all(axis["baseline"] for axis in result["axes"].values()) == at_baseline
    assert settings["model"] == config.family and settings["model.size"] == config.model.size


def test_words_for_hydra_are_not_the_runs(tmp_path):
    words = ["++hydra.verbose=false", "name=x-${hydra:runtime.choices.model}", "trainer.max_epochs=1"]
    done = run_forked("train.py", *TINY, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "outputs/x-deit_neutreno/result.json").read_text())
    assert not any("verbose" in word for word in record["overrides"])


def test_the_block_that_was_built_is_named(tmp_path):
    done = run_forked("train.py", *TINY, "block=featscale", "trainer.max_epochs=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "outputs").iterdir()
    assert run.name.startswith("digits-deit_mini-neutreno-lam0.6-featscale-seed0")
    compared = run_forked("scripts/tables.py", str(run), cwd=tmp_path)
    assert "digits deit-mini neutreno λ̃=0.6 + featscale" in compared.stdout


def test_a_run_leaves_its_whole_record(finished):
    run, done = finished
    assert {p.name for p in run.iterdir()} - {".lock"} == {
        "checkpoints",
        "config.yaml",
        "metrics.csv",
        "oversmoothing.csv",
        "oversmoothing.png",
        "result.json",
        "train.log",
    }
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["attention"]["lam"] == 0.6 and config["model"]["depth"] == 2
    assert done.stderr == ""


def test_result_says_what_was_run_where_and_what_came_out(finished):
    result = json.loads((finished[0] / "result.json").read_text())
    assert result["status"] == "finished" and result["settings"]["seed"] == 0
    assert result["steps"] == result["planned_steps"] == 12
    assert result["settings"]["attention"] == "neutreno" and result["settings"]["attention.lam"] == 0.6
    assert result["versions"]["torch"] and result["hardware"]["cpu"] and result["wall_clock_s"] > 0
    wanted = {f"{p}{s}/{m}" for p in ("", "ema/", "best/") for s in ("val", "test") for m in ("top1", "top5", "loss")}
    assert set(result["metrics"]) == wanted
    curves = {(w, s): curve(result["oversmoothing"], w, s) for w in ("initial", "last") for s in ("all", "patch")}
    assert {len(found) for found in curves.values()} == {3} and len({str(found) for found in curves.values()}) == 4


def test_the_documented_keys_of_a_record_are_those_that_a_run_writes(finished):
    lines = (ROOT / "docs/design.md").read_text().partition("**The record**")[2].splitlines()
    table = itertools.takewhile(lambda line: line.startswith("|"), lines[lines.index("|---|---|") + 1 :])
    cells = [line.split("|")[1] for line in table]
    documented = {key for cell in cells for key in re.findall(r"`(\w+)`", cell)}
    written = json.loads((finished[0] / "result.json").read_text()).keys()
    assert written - documented == set() and documented - written == {"classes", "reason", "within"}


def test_metrics_csv_holds_learning_rate_throughput_and_every_epoch(finished):
    table = rows(finished[0] / "metrics.csv")
    assert [int(r["step"]) for r in table] == list(range(13))
    assert all(r["train/lr"] and r["train/loss_step"] for r in table[:12])
    epochs = [r for r in table if r["val/top1"]]
    assert [int(r["step"]) for r in epochs] == [4, 8, 12]
    assert all(float(r["train/samples_per_s"]) > 0 and r["train/loss"] and r["ema/val/top1"] for r in epochs)
    assert table[0]["oversmoothing/cosine/layer_02"] and table[12]["oversmoothing/cosine_patch/layer_02"]


def test_probe_measures_at_initialisation_every_epoch_and_at_the_end(finished):
    table = rows(finished[0] / "oversmoothing.csv")
    times = [(0, "initial"), (4, "training"), (8, "training"), (12, "final")]
    metrics = ("cosine", "residual", "effective_rank")  # the default
    found = [(int(r["step"]), r["when"], r["metric"], r["subset"], int(r["layer"])) for r in table]
    kinds = ("all", "patch")
    assert found == [(*time, m, t, layer) for time in times for m in metrics for t in kinds for layer in range(3)]


def test_probe_equals_a_plain_computation_on_the_checkpoint(finished):
    from neutreno.config.trust import build_trusted as build
    from neutreno.runs import RunFolder

    run = RunFolder(finished[0])
    settings = run.config()
    data, model = build(settings["data"]), build(settings["model"])
    data.setup()
    weights = torch.load(run.last_checkpoint, weights_only=True)["state_dict"]
    model.load_state_dict({k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")})
    x = model.eval().hidden_states(data.probe_samples(8)[0])[2]
    unit = torch.nn.functional.normalize(x.double(), dim=-1)
    n = x.shape[1]
    plain = ((unit @ unit.mT).sum((1, 2)) - n) / (n * (n - 1))
    what = {"layer": "2", "subset": "all", "metric": "cosine"}
    row = next(r for r in rows(finished[0] / "oversmoothing.csv")[::-1] if what.items() <= r.items())
    assert float(row["mean"]) == pytest.approx(plain.mean().item(), abs=1e-6)
    assert float(row["sd"]) == pytest.approx(plain.std().item(), abs=1e-6)


def test_the_summary_names_metrics_with_units_similarity_and_figure_in_80_columns(finished):
    summary = finished[1].stdout.partition(" steps in ")[2]
    metrics = json.loads((finished[0] / "result.json").read_text())["metrics"]
    shown = [f"{metrics[name]:.2f} %" for name in ("test/top1", "best/test/top1", "ema/test/top1")]
    assert re.search(rf"^test top-1 +{' +'.join(shown)}$", summary, re.MULTILINE)
    assert "last epoch" in summary and "after the last" in summary and "oversmoothing.png" in summary
    assert max(map(len, summary.splitlines())) <= 80


def test_the_first_line_says_what_was_begun_and_a_log_the_loss_the_metric_and_the_time_left(finished):
    first, _, *lines = finished[1].stdout.splitlines()
    assert first == "model=deit_neutreno data=digits seed=0: loading PyTorch"
    (last,) = [line for line in lines if line.startswith("epoch 3/3")]
    assert re.fullmatch(r"epoch 3/3, step 12/12, loss \d+\.\d{3}, val top-1 \d+\.\d\d %, [\d:]+ left", last)


def test_evaluate_gives_the_metrics_and_curve_of_the_end_of_training(finished):
    run = finished[0]
    done = run_forked("evaluate.py", str(run), cwd=run.parent)
    assert done.returncode == 0, done.stderr
    result, again = (json.loads((run / f).read_text()) for f in ("result.json", "evaluation.json"))
    assert again["metrics"] == result["metrics"]
    assert curve(again["records"]["per_layer"]) == curve(result["oversmoothing"], "last")
    assert (run / "evaluation.png").stat().st_size > 10_000
    (run / "evaluation.json").unlink(), (run / "evaluation.png").unlink()


def test_an_existing_run_is_refused_and_left_as_it_was(finished):
    run = finished[0]
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in run.rglob("*") if p.is_file()}
    assert_one_line_error(
        run_forked("train.py", *TINY, "task.ema_decay=0.9", "name=tiny", cwd=run.parents[1]), "finished run", "name="
    )
    done = run_forked("train.py", *TINY, "task.ema_decay=0.9", "name=tiny", "resume=true", cwd=run.parents[1])
    assert done.returncode == 0 and "nothing to do" in done.stdout
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in run.rglob("*") if p.is_file()} == before


def test_resume_with_another_setting_is_refused(finished):
    arguments = [*TINY, "task.ema_decay=0.9", "name=tiny", "resume=true", "attention.lam=0.2"]
    assert_one_line_error(run_forked("train.py", *arguments, cwd=finished[0].parents[1]), "lam=0.2 (was 0.6)")


def test_run_folder_is_named_after_what_is_run(tmp_path):
    arguments = ["trainer.max_epochs=1", "trainer.limit_train_batches=1", "model=deit", "seed=3", "task.lr=0.1"]
    assert run_forked("train.py", *arguments, cwd=tmp_path).returncode == 0
    name = "digits-deit_mini-softmax-seed3-task.lr-0.1-trainer.limit_train_batches-1-trainer.max_epochs-1"
    assert [p.name for p in (tmp_path / "outputs").iterdir()] == [name]


def test_a_table_tells_groups_apart_and_counts_seeds(tmp_path):
    for lam, seed in (("0", 0), ("0", 1), ("0.4", 0)):
        arguments = [*TINY, f"attention.lam={lam}", f"seed={seed}", f"name=r{lam}_{seed}"]
        assert run_forked("train.py", *arguments, cwd=tmp_path).returncode == 0
    runs = [str(p) for p in sorted((tmp_path / "outputs").iterdir())]
    done = run_forked("scripts/tables.py", *runs, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line[0] == "|"]
    assert lines[0][:3] == ["runs", "seeds", "test/top1"]
    assert [row[:2] for row in lines[2:]] == [
        ["digits deit-mini neutreno λ̃=0", "2"],
        ["digits deit-mini neutreno λ̃=0.4", "1"],
    ]
    values = [
        json.loads((tmp_path / f"outputs/r0_{s}/result.json").read_text())["metrics"]["test/top1"] for s in (0, 1)
    ]
    mean, sd = sum(values) / 2, abs(values[0] - values[1]) / 2**0.5
    assert lines[2][2] == f"{mean:.2f} ± {sd:.2f}"
    drawn = run_forked("scripts/figures.py", *runs, "--output", "c", cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "c.png").stat().st_size > 10_000 and b"/Type3" not in (tmp_path / "c.pdf").read_bytes()


def test_tables_and_figures_say_what_they_cannot_do(finished, tmp_path):
    run = str(finished[0])
    assert_one_line_error(run_forked("scripts/tables.py", run, "--metric", "nope", cwd=tmp_path), "nope", "test/top1")
    assert_one_line_error(run_forked("scripts/tables.py", run, "--baseline", "nope", cwd=tmp_path), "matches 0 rows")
    assert_one_line_error(run_forked("scripts/figures.py", run, "--output", "no/x", cwd=tmp_path), "no folder no")
    for script in ("tables", "figures"):
        assert_one_line_error(run_forked(f"scripts/{script}.py", "nowhere", cwd=tmp_path), "no such folder")
        assert_one_line_error(run_forked(f"scripts/{script}.py", str(tmp_path), cwd=tmp_path), "no runs to read")


@pytest.mark.parametrize("workers", [0, 2])
def test_imagenet_command_trains_from_class_folders(image_folders, tmp_path, workers):
    small = ["model.depth=2", "model.embed_dim=16", "model.num_heads=2", "data.img_size=32", "data.batch_size=4"]
    arguments = [f"data.root={image_folders}", "data.num_classes=2", f"data.num_workers={workers}", *small]
    more = ["trainer.max_epochs=1", "probe.num_samples=2", "name=x"]
    done = run_forked("train.py", "model=deit_neutreno", "data=imagenet", *arguments, *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "outputs/x/result.json").read_text())
    assert result["steps"] == 3 and {"val/top1", "ema/val/top1"} <= set(result["metrics"])
    assert not any("test/" in m for m in result["metrics"])


def test_cifar10_command_trains_from_parquet(image_parquet, tmp_path):
    small = ["model.depth=2", "model.embed_dim=16", "model.num_heads=2", "data.batch_size=6", "data.num_workers=0"]
    arguments = [f"data.root={image_parquet}", "data.num_classes=2", *small, "trainer.max_epochs=1", "name=x"]
    done = run_forked("train.py", "data=cifar10", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "test/top1" in json.loads((tmp_path / "outputs/x/result.json").read_text())["metrics"]


def test_training_starts_from_given_weights(finished, tmp_path):
    run = finished[0]
    arguments = [*TINY, f"model.weights={run}", "task.lr=0", "task.warmup_lr=0", "task.min_lr=0", "name=x"]
    done = run_forked("train.py", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    before, after = (
        torch.load(r / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for r in (run, tmp_path / "outputs/x")
    )
    assert all(torch.equal(before[k], v) for k, v in after.items() if k.startswith("model."))


@pytest.mark.parametrize("logger, written", [("wandb", "wandb/offline-run-*"), ("tensorboard", "tensorboard/events*")])
def test_other_loggers_write_beside_the_csv(tmp_path, logger, written):
    done = run_forked("train.py", *TINY, f"logger={logger}", "name=x", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "outputs/x").glob(written)) and (tmp_path / "outputs/x/metrics.csv").exists()


def test_wandb_stays_offline_without_a_login(tmp_path):
    def log_out():
        os.environ.pop("WANDB_API_KEY", None)
        os.environ["NETRC"] = str(tmp_path / "none")

    done = run_forked(
        "train.py", *TINY, "logger=wandb", "logger.wandb.offline=false", "name=x", cwd=tmp_path, setup=log_out
    )
    assert done.returncode == 0 and "not logged in" in done.stderr
    assert list((tmp_path / "outputs/x").glob("wandb/offline-run-*"))


def test_help_is_useful():
    done = run_script("train.py", "--help", cwd=ROOT)
    assert done.returncode == 0
    for word in ("model: ", "deit_neutreno", "attention.lam=0,0.2,0.4,0.6", "data.root=FOLDER", "resume"):
        assert word in done.stdout


BAD_INPUT = {
    "no accumulation": (
        ["trainer.accumulate_grad_batches=0"],
        ["trainer.accumulate_grad_batches=0 should be greater than or equal to 1"],
    ),
    "negative padding": (
        ["data=cifar10", "data.crop_padding=-3"],
        ["data.crop_padding=-3 should be greater than or equal to 0"],
    ),
    "mean of two channels": (["data=cifar10", "data.mean=[0.5,0.5]"], ["data.mean has 2 values for 3 channels"]),
    "no crop": (["data=imagenet", "data.crop_pct=0"], ["data.crop_pct=0 should be greater than or equal to 0.01"]),
    "a class as a word": (["data=imagenet", "data.classes=n01440764"], ["data.classes=[n01440764]"]),
    "torchvision without a folder": (["data=cifar10", "data.reader=torch/cifar10"], ["data.root=FOLDER"]),
    "rate for a batch of nobody": (["+task.lr_batch=512"], ["task.lr_batch=512 needs task.batch_size"]),
    "unknown key": (["attention.lamm=0.2"], ["no key attention.lamm", "did you mean attention.lam"]),
    "unknown option": (["model=swin"], ["no option model=swin; available: ", "deit_neutreno"]),
    "not a key=value": (["lam"], ["lam is not KEY=VALUE"]),
    "lam is a word": (["attention.lam=abc"], ["attention.lam=abc should be a valid number"]),
    "lam is negative": (["attention.lam=-1"], ["attention.lam=-1 should be greater than or equal to 0"]),
    "lam is not a number": (["attention.lam=nan"], ["attention.lam=nan should be a finite number"]),
    "lam is infinite": (["attention.lam=inf"], ["attention.lam=inf should be a finite number"]),
    "lam of softmax": (["model=deit", "attention.lam=0.2"], ["no key attention.lam; ", "attention=neutreno"]),
    "heads": (["model.num_heads=5"], ["num_heads=5 does not divide embed_dim=64"]),
    "patch": (["recipe.patch_size=3"], ["patch_size=3 does not divide img_size=8"]),
    "size": (["model.size=giant"], ["model.size=giant", "mini, tiny, small, base"]),
    "no root": (["data=imagenet"], ["data.root is not set"]),
    "root is nowhere": (["data=imagenet", "data.root=nowhere"], ["data.root=nowhere is not a folder"]),
    "root is empty": (["data=cifar10", "data.root=."], ["no training data"]),
    "batch too large": (["data.batch_size=5000"], ["data.batch_size=5000 is larger than the training set of 1257"]),
    "weights are nowhere": (["model.weights=nowhere"], ["nowhere is neither a run folder, nor a checkpoint file"]),
    "wrong type": (["task.lr=fast"], ["task.lr=fast should be a valid number"]),
    "no epochs": (["trainer.max_epochs=0"], ["trainer.max_epochs=0 should be greater than or equal to 1"]),
    "no batch": (["data.batch_size=none"], ["data.batch_size=none should be a valid integer"]),
    "no depth": (["model.depth=0"], ["model.depth=0 should be greater than or equal to 1"]),
    "no samples": (["probe.num_samples=0"], ["probe.num_samples=0 should be greater than or equal to 1"]),
    "name is a path": (["name=../x"], ["name=../x is not a folder name"]),
    "seed is a word": (["seed=abc"], ["seed=abc should be a valid integer"]),
    "optimizer": (["task.opt=foo"], ["task.opt=foo", "Optimizer foo not found"]),
    "average": (["task.ema_decay=2"], ["task.ema_decay=2 should be less than 1"]),
    "digits have ten classes": (["data.num_classes=5"], ["ten classes"]),
    "shift": (["data.translate=2"], ["data.translate=2 should be less than or equal to 0.99"]),
    "stochastic depth": (["model.drop_path_rate=2"], ["model.drop_path_rate=2 should be less than or equal to 0.99"]),
    "checkpoint interval": (
        ["checkpoint.every_n_steps=-1"],
        ["checkpoint.every_n_steps=-1 should be greater than or equal to 1"],
    ),
    "log interval": (
        ["trainer.log_every_n_steps=0"],
        ["trainer.log_every_n_steps=0 should be greater than or equal to 1"],
    ),
    "resume is a word": (["resume=no_way"], ["resume=no_way should be a valid boolean"]),
    "processes do not share the batch": (
        ["trainer.devices=3", "trainer.accelerator=cpu"],
        ["data.batch_size=32 is not a multiple of 3 processes"],
    ),
    "lr_per": (["task.lr_per=minute"], ["task.lr_per=minute should be 'step' or 'epoch'"]),
    "devices": (["trainer.accelerator=warp"], ["trainer.accelerator=warp is not known to Lightning; available: auto"]),
    "a rate that would rise": (["task.min_lr=1"], ["task.min_lr=1 is above task.lr=0.002"]),
    "warm-up beyond the run": (["task.warmup_epochs=100"], ["task.warmup_epochs=100", "longer than the run"]),
    "warm-up of more steps": (["+task.warmup_steps=1000"], ["task.warmup_steps=1000", "1,000 steps"]),
    "a share of no training batch": (
        ["trainer.limit_train_batches=0.001"],
        ["trainer.limit_train_batches=0.001 is less than one of 39 batches"],
    ),
    "a share of no validation batch": (
        ["trainer.limit_val_batches=0.1"],
        ["trainer.limit_val_batches=0.1 is less than one of 1 batches"],
    ),
    "size of the model": (["model.img_size=16"], ["model.img_size=16, but data.img_size=8"]),
    "channels of the model": (["model.in_chans=3"], ["model.in_chans=3, but data.in_chans=1"]),
    "classes of the model": (["model.num_classes=20"], ["model.num_classes=20, but data.num_classes=10"]),
    "classes of the task": (["task.num_classes=5"], ["task.num_classes=5, but the model has 10 classes"]),
    "channels of a Segmenter": (["data=digit_scenes", "model.in_chans=3"], ["model.in_chans=3, but data.in_chans=1"]),
    "a folder's name too long": ([f"output_dir={'x' * 300}"], ["File name too long", "output_dir=FOLDER"]),
    "a name that is not UTF-8": (["name=\udcff"], [r"name=\udcff is not KEY=VALUE"]),
}


@pytest.mark.parametrize("arguments, words", BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_gets_one_clear_line_and_leaves_no_folder(arguments, words, tmp_path):
    assert_one_line_error(run_forked("train.py", *arguments, cwd=tmp_path), *words)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    "words", [["output_dir=file"], ["output_dir=.", "name=file"], ["output_dir=.", "name=file", "resume=true"]]
)
def test_a_file_in_the_place_of_the_run_folder_is_said_and_kept(tmp_path, words):
    (tmp_path / "file").write_text("mine")
    assert_one_line_error(run_forked("train.py", *words, cwd=tmp_path), "file", "output_dir=FOLDER")
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "mine"


def test_a_trial_that_ends_within_its_recipes_warm_up_says_so(tmp_path):
    done = run_forked("train.py", *TINY, "trainer.max_epochs=1", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "note: the warm-up of 12 steps is longer than the run of 4" in done.stdout


WARNS = """
import logging, runpy, sys, warnings
import neutreno.data.digits as digits

def warning(read=digits.split_digits):
    warnings.warn("first word", stacklevel=1)
    logging.getLogger("library").warning("second word")
    return read()

digits.split_digits = warning
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_what_libraries_warn_of_does_not_stand_beside_a_refusal(tmp_path):
    """In processes of their own, since the end of Python flushes what waits."""

    def run(*words):
        command = [sys.executable, "-c", WARNS, str(ROOT / "train.py"), *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)

    assert_one_line_error(run("model.img_size=16"), "model.img_size=16")
    done = run(*TINY, "trainer.max_epochs=1")
    assert done.returncode == 0 and done.stderr.splitlines() == ["WARNING: first word", "WARNING: second word"]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("content", [b"", b"no image"], ids=["zero bytes", "no image"])
def test_a_broken_image_ends_the_run_with_its_name(image_folders, tmp_path, workers, content):
    (image_folders / "train" / "dog" / "3.png").write_bytes(content)
    arguments = [f"data.root={image_folders}", "data.num_classes=2", "data.batch_size=4", "data.img_size=32"]
    small = ["model.depth=1", "model.embed_dim=16", "model.num_heads=1", f"data.num_workers={workers}", "name=x"]
    done = run_forked("train.py", "data=imagenet", *arguments, *small, cwd=tmp_path)
    assert_one_line_error(done, "train/dog/3.png")
    result = json.loads((tmp_path / "outputs/x/result.json").read_text())
    assert result["status"] == "failed" and "3.png" in result["reason"]


def test_weights_of_another_shape_are_named(finished, tmp_path):
    done = run_forked("train.py", f"model.weights={finished[0]}", cwd=tmp_path)
    assert_one_line_error(done, "do not fit", "cls_token (1, 1, 16) ≠ (1, 1, 64)")


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil()))
    assert_one_line_error(
        run_forked("train.py", "model.weights=evil.pth", cwd=tmp_path), "evil.pth", "could run code, so it was refused"
    )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "planted",
    [
        "extra: {_target_: torch.os.system, command: touch ran}",
        "extra: {_target_: os.system, command: touch ran}",
        "extra: [[{_target_: os.mkdir, path: ran}]]",
        "extra: !!pairs [x: {_target_: torch.utils.collect_env.run, command: touch ran}]",
        "extra: !!omap [x: {_target_: os.mkdir, path: ran}]",
        "extra: !!set {a}",
        "extra: {_target_: neutreno.models.vit._register, name: x, distilled: false, size: mini, attention: null}",
        "extra: {_target_: neutreno.runs.os.mkdir, path: ran}",
        "extra: '${oc.env:HOME}'",
        "extra: !!python/object/apply:os.system ['touch ran']",
    ],
)
def test_a_run_folder_that_names_other_code_is_refused(finished, tmp_path, planted):
    shutil.copytree(finished[0], tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("\ndata:\n", f"\ndata:\n  {planted}\n"))
    assert planted in config.read_text()
    done = run_forked("evaluate.py", "run", cwd=tmp_path)
    assert_one_line_error(done, "config")
    assert any(said in done.stderr for said in ("refused", "not readable YAML", "a run writes no such file"))
    assert not (tmp_path / "ran").exists()


def test_evaluate_keeps_the_precision_of_the_run(tmp_path):
    done = run_forked("train.py", *TINY, "trainer.precision=bf16-mixed", "name=x", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "outputs" / "x"
    assert run_forked("evaluate.py", str(run), cwd=tmp_path).returncode == 0
    result, again = (json.loads((run / f).read_text())["metrics"] for f in ("result.json", "evaluation.json"))
    assert result == again
    assert run_forked("evaluate.py", str(run), "trainer.precision=32-true", cwd=tmp_path).returncode == 0
    assert json.loads((run / "evaluation.json").read_text())["metrics"] != result


def test_a_broken_checkpoint_is_said_in_a_line_on_resume(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "outputs" / "tiny")
    file = tmp_path / "outputs/tiny/result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"status": "running"}))
    last = tmp_path / "outputs/tiny/checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    arguments = [*TINY, "task.ema_decay=0.9", "name=tiny", "resume=true"]
    assert_one_line_error(run_forked("train.py", *arguments, cwd=tmp_path), "last.ckpt is not a readable checkpoint")


@pytest.mark.parametrize("absent", ["optimizer_states", "loops", "model.cls_token"])
def test_a_checkpoint_of_weights_alone_cannot_be_resumed(finished, tmp_path, absent):
    shutil.copytree(finished[0], tmp_path / "outputs" / "tiny")
    file, last = (tmp_path / "outputs/tiny" / name for name in ("result.json", "checkpoints/last.ckpt"))
    file.write_text(json.dumps(json.loads(file.read_text()) | {"status": "running"}))
    content = torch.load(last, weights_only=True)
    (content if absent in content else content["state_dict"]).pop(absent)
    torch.save(content, last)
    before = {p: p.read_bytes() for p in (tmp_path / "outputs").rglob("*") if p.is_file()}
    done = run_forked("train.py", *TINY, "task.ema_decay=0.9", "name=tiny", "resume=true", cwd=tmp_path)
    assert_one_line_error(done, "last.ckpt", absent)
    assert {p: p.read_bytes() for p in (tmp_path / "outputs").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    "key, value",
    [("optimizer_states", 3), ("loops", {"fit_loop": None}), ("epoch", "x"), ("pytorch-lightning_version", "=1+1")],
)
def test_a_checkpoint_of_another_kind_cannot_be_resumed(finished, tmp_path, key, value):
    shutil.copytree(finished[0], tmp_path / "outputs" / "tiny")
    file, last = (tmp_path / "outputs/tiny" / name for name in ("result.json", "checkpoints/last.ckpt"))
    file.write_text(json.dumps(json.loads(file.read_text()) | {"status": "running"}))
    torch.save(torch.load(last, weights_only=True) | {key: value}, last)
    done = run_forked("train.py", *TINY, "task.ema_decay=0.9", "name=tiny", "resume=true", cwd=tmp_path)
    assert_one_line_error(done, "last.ckpt", f"another {key} than a run writes")


def test_two_processes_cannot_write_one_run(tmp_path):
    first = Forked("train.py", *TINY, "trainer.max_epochs=300", "name=x", cwd=tmp_path)
    while not (tmp_path / "outputs/x/config.yaml").exists() and first.poll() is None:
        time.sleep(0.02)
    second = run_forked("train.py", *TINY, "trainer.max_epochs=300", "name=x", "resume=true", cwd=tmp_path)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert_one_line_error(second, "another process")


@pytest.mark.parametrize("argument", ["nowhere", "run=nowhere", "run=a=b,c"])
def test_evaluate_says_what_is_no_run_folder(tmp_path, argument):
    assert_one_line_error(run_forked("evaluate.py", argument, cwd=tmp_path), "not a run folder")


def test_evaluate_without_a_run(tmp_path):
    assert_one_line_error(run_forked("evaluate.py", cwd=tmp_path), "run")


def test_evaluate_takes_a_bare_path_with_odd_characters(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "a=b, (c) ü")
    done = run_forked("evaluate.py", "a=b, (c) ü", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path):
    done = run_forked("train.py", *TINY, "task.lr=1e30", "task.warmup_epochs=0", "name=x", cwd=tmp_path)
    assert_one_line_error(done, "NaN or Inf at step", "epoch 0")
    table = rows(tmp_path / "outputs/x/metrics.csv")
    step = int(done.stderr.split("at step ")[1].split()[0])
    assert [int(r["step"]) for r in table if r["train/loss_step"] in ("nan", "inf")] == [step]


def test_no_space_left_keeps_the_previous_checkpoint_and_resumes_after_making_room(tmp_path):
    arguments = [*TINY, "name=x"]
    assert run_forked("train.py", *arguments, cwd=tmp_path).returncode == 0
    size = (tmp_path / "outputs/x/checkpoints/last.ckpt").stat().st_size
    arguments[-1] = "name=y"

    def fill_disk():  # the second epoch's checkpoint no longer fits
        import resource

        replace, count = os.replace, []

        def counted(source, target):
            replace(source, target)
            count.append(str(target)) if str(target).endswith("last.ckpt") else None
            if len(count) == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, resource.RLIM_INFINITY))

        os.replace = counted

    done = run_forked("train.py", *arguments, cwd=tmp_path, setup=fill_disk)
    assert_one_line_error(done, "could not write", "before is intact")
    assert torch.load(tmp_path / "outputs/y/checkpoints/last.ckpt", weights_only=True)["epoch"] == 0
    assert run_forked("train.py", *arguments, "resume=true", cwd=tmp_path).returncode == 0
    first, second = (
        torch.load(tmp_path / f"outputs/{n}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for n in "xy"
    )
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_a_disk_that_takes_nothing_more_is_said_in_a_line(tmp_path):
    def fill_disk():
        import errno

        sync, replace, full = os.fsync, os.replace, []

        def no_space(file):
            if full:
                raise OSError(errno.ENOSPC, "No space left on device")
            sync(file)

        def counted(source, target):
            replace(source, target)
            full.append(target) if str(target).endswith("last.ckpt") else None

        os.fsync, os.replace = no_space, counted

    done = run_forked("train.py", *TINY, "name=x", cwd=tmp_path, setup=fill_disk)
    assert_one_line_error(done, "No space left on device", "before is intact")
    assert not list((tmp_path / "outputs").rglob("*.unfinished"))
    assert run_forked("train.py", *TINY, "name=x", "resume=true", cwd=tmp_path).returncode == 0


def test_ctrl_c_is_recorded(tmp_path):
    run = Forked("train.py", *TINY, "trainer.max_epochs=300", "name=x", cwd=tmp_path, setup=deaf_to_nothing)
    checkpoint = tmp_path / "outputs/x/checkpoints/last.ckpt"
    while not checkpoint.exists() and run.poll() is None:
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGINT)
    done = run.finish()
    assert done.returncode == 130 and "resume=true" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert json.loads((tmp_path / "outputs/x/result.json").read_text())["status"] == "interrupted"
