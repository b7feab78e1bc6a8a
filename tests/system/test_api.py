"""Runs in Python: load_run gives what a run's folder holds and the run recorded, train does what train.py does."""

import csv
import json
import logging
import os
import shutil
import signal
import sys
import threading
import warnings
from contextlib import contextmanager
from pathlib import Path

import hydra
import numpy as np
import pytest
import timm
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from support import TINY, assert_one_line_error, result, run_forked, train
from support.graphs import GRAPH
from support.same_run import assert_same_run, load

import neutreno
from neutreno.errors import InputError


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run whose last, best and average weights differ."""
    return train([*TINY, "task.ema_decay=0.9", "task.warmup_epochs=0"], tmp_path_factory.mktemp("finished"))


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def top1(model, loader):
    with torch.no_grad():
        return 100 * torch.cat([model(x).argmax(-1) == y for x, y in loader]).double().mean().item()


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_nothing_but_the_record_is_read_before_it_is_asked_for(copied):
    for name in ("checkpoints", "oversmoothing.csv"):
        (shutil.rmtree if name == "checkpoints" else lambda file: file.unlink())(copied / name)
    (copied / "oversmoothing.csv").touch()
    run = neutreno.load_run(copied)
    assert run.metrics["val/top1"] == result(copied)["metrics"]["val/top1"]
    assert len(next(iter(run.data.val_dataloader()))[0])
    with pytest.raises(InputError, match="no checkpoint at"):
        _ = run.model


def test_it_has_the_metrics_config_and_layers_of_the_folder(finished):
    run = neutreno.load_run(finished)
    assert run.metrics == result(finished)["metrics"]
    assert run.config == yaml.safe_load((finished / "config.yaml").read_text())
    assert "neutreno λ̃=0.6" in repr(run) and len(repr(run)) < 300
    with open(finished / "oversmoothing.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert {"stack", "layer", "subset", "metric", "step", "epoch", "mean", "sd"} <= {*run.layers.columns}
    assert len(run.layers) == len(written) and run.layers.step.nunique() == 4
    for column in ("step", "layer", "mean", "sd"):
        assert [*run.layers[column]] == [float(row[column]) for row in written]
    assert [*run.layers.metric] == [row["metric"] for row in written]


@pytest.mark.parametrize("weights", ["last", "best", "ema"])
def test_a_model_has_the_weights_asked_for_and_gives_the_recorded_metric(finished, weights):
    run = neutreno.load_run(finished, weights=weights)
    stored = load(finished, "best" if weights == "best" else "last")["state_dict"]
    prefix = "ema.module." if weights == "ema" else "model."
    assert not run.model.training
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, stored[prefix + name]), name
    recorded = run.metrics["val/top1" if weights == "last" else f"{weights}/val/top1"]
    assert top1(run.model, run.data.val_dataloader()) == pytest.approx(recorded)


def test_its_data_can_be_trained_on(finished):
    x, y = next(iter(neutreno.load_run(finished).data.train_dataloader()))
    assert x.shape == (300, 1, 8, 8) and y.shape == (300,)


def test_a_graphs_best_weights_are_those_in_its_last_checkpoint(tmp_path):
    folder = train(GRAPH, tmp_path)
    run, last = neutreno.load_run(folder, weights="best"), neutreno.load_run(folder)
    features, labels = next(iter(run.data.val_dataloader()))
    for loaded, name in ((run, "best/val/accuracy"), (last, "val/accuracy")):
        known = labels >= 0
        correct = (loaded.model(features).argmax(-1) == labels)[known]
        assert 100 * correct.double().mean().item() == pytest.approx(loaded.metrics[name], abs=1e-3)
    with pytest.raises(InputError, match="kept no EMA of its weights"):
        _ = neutreno.load_run(folder, weights="ema").model


def test_data_that_moved_is_found_where_it_is_said_and_other_data_refused(image_folders, tmp_path):
    small = ["data.img_size=32", "data.batch_size=4", "data.num_workers=0", "trainer.max_epochs=1", "data.repeats=1"]
    words = [*TINY, "data=imagenet", f"data.root={image_folders}", "data.num_classes=2", *small]
    folder, moved = train(words, tmp_path), tmp_path / "moved"
    image_folders.rename(moved)
    run = neutreno.load_run(folder)
    assert run.model is run.model  # needs no data
    with pytest.raises(InputError, match=r"data\.root=.*is not a folder"):
        _ = run.data
    found = neutreno.load_run(folder, f"data.root={moved}")
    assert top1(found.model, found.data.val_dataloader()) == pytest.approx(found.metrics["val/top1"])
    shutil.copy(next((moved / "train/cat").iterdir()), moved / "train/dog/another.png")
    with pytest.raises(InputError, match="is a run on other data: the train split differs"):
        _ = neutreno.load_run(folder, f"data.root={moved}").data


@pytest.mark.parametrize(
    "damage, said",
    [
        (
            lambda run: edit(run / "result.json", status="interrupted", reason="SIGTERM"),
            r"not finished \(.*SIGTERM",
        ),
        (lambda run: edit(run / "result.json", format=3), "has the format 3, not"),
        (lambda run: edit(run / "result.json", metrics=3), "was not written by a run"),
        (lambda run: (run / "result.json").write_text("{"), "not readable JSON"),
        (lambda run: (run / "config.yaml").write_text("a: b"), "is not the config of a run"),
        (lambda run: shutil.rmtree(run), "not a run folder"),
    ],
)
def test_what_is_no_finished_run_is_refused_in_a_line(copied, damage, said):
    damage(copied)
    with pytest.raises(InputError, match=said) as refused:
        neutreno.load_run(copied)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("arguments", [{"weights": "first"}, {"device": "gpu"}, {"device": "cuda:99"}], ids=str)
def test_an_argument_that_cannot_be_is_refused_at_once(finished, arguments):
    (name,) = arguments
    with pytest.raises(InputError, match=f"^{name}="):
        neutreno.load_run(finished, **arguments)


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda lines: lines[:-1], "other rows than result.json"),
        (lambda lines: [*lines[:-1], lines[-1][:40]], "is damaged"),
        (lambda lines: [lines[0].replace("mean", "man"), *lines[1:]], "is damaged"),
        (lambda lines: [lines[1].replace("blocks", "a,b,c"), *lines[1:]], "is damaged"),
    ],
)
def test_a_damaged_table_of_layers_is_refused_in_a_line(copied, damage, said):
    file = copied / "oversmoothing.csv"
    file.write_text("\n".join(damage(file.read_text().splitlines())) + "\n")
    with pytest.raises(InputError, match=said) as refused:
        _ = neutreno.load_run(copied).layers
    assert "\n" not in str(refused.value)


def test_a_damaged_checkpoint_is_refused_in_a_line(copied):
    file = copied / "checkpoints/last.ckpt"
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(InputError, match=r"last\.ckpt is (damaged|not a readable)"):
        _ = neutreno.load_run(copied).model


def test_the_best_checkpoint_does_not_pass_for_the_last(copied):
    best, last = (load(copied, name)["global_step"] for name in ("best", "last"))
    assert best < last == result(copied)["steps"]
    shutil.copy(copied / "checkpoints/best.ckpt", copied / "checkpoints/last.ckpt")
    said = rf"last\.ckpt is of step {best}, and the run ended at step {last}; restore the run's own"
    with pytest.raises(InputError, match=said):
        _ = neutreno.load_run(copied).model
    done = run_forked("evaluate.py", str(copied), "evaluators=[metrics]", cwd=copied.parent)
    assert_one_line_error(done, "is of step")


def test_what_a_run_folder_names_is_built_only_if_its_package_is_trusted(copied):
    text = (copied / "config.yaml").read_text()
    (copied / "config.yaml").write_text(text.replace("neutreno.models.vit.VisionTransformer", "subprocess.run"))
    run = neutreno.load_run(copied)
    assert run.metrics
    with pytest.raises(InputError, match=r"'subprocess\.run', which is not a part of neutreno; refused"):
        _ = run.model
    for trust in ("subprocess", ["subprocess"]):
        with pytest.raises(InputError, match=r"'subprocess\.run', which is not a network part"):
            _ = neutreno.load_run(copied, trust=trust).model


@pytest.mark.parametrize("word", ["data.rot=x", "model.depth=3", "foo"])
def test_a_word_that_a_run_does_not_take_is_refused(finished, word):
    with pytest.raises(InputError, match=word.partition("=")[0]):
        _ = neutreno.load_run(finished, word).model


@contextmanager
def float64():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def trained(cwd):
    return neutreno.train(*TINY, "task.ema_decay=0.9", "task.warmup_epochs=0", name="x")


def test_it_trains_the_run_of_the_command(trained, finished):
    assert_same_run(trained.path, finished)
    ours, theirs = result(trained.path), result(finished)
    assert ours.keys() == theirs.keys()
    apart = {"overrides", "command", "started", "first_checkpoint", "wall_clock_s", "versions", "hardware"}
    for key in ours.keys() - apart:
        assert ours[key] == theirs[key], key
    assert sorted(ours["overrides"]) == sorted(theirs["overrides"])
    files = [{file.relative_to(run) for file in run.rglob("*")} for run in (trained.path, finished)]
    assert files[0] == files[1]
    assert (trained.path / "config.yaml").read_text() == (finished / "config.yaml").read_text()


def test_its_record_says_that_it_was_called_in_python(trained):
    words = [*TINY, "task.ema_decay=0.9", "task.warmup_epochs=0", "name=x"]
    assert trained.result["command"] == f"neutreno.train({', '.join(map(repr, words))})"
    assert trained.result["overrides"] == words


def test_it_gives_what_load_run_gives(trained):
    again = neutreno.load_run(trained.path)
    assert type(trained) is type(again) and trained.metrics == again.metrics
    for ours, theirs in zip(trained.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_it_leaves_the_process_as_it_was(trained, cwd):
    def state():
        root = logging.getLogger()
        ways = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)]
        said = (warnings.showwarning, warnings.formatwarning, warnings.filters[:])
        return root.handlers[:], root.level, logging.raiseExceptions, said, ways, sys.argv[:], os.getcwd()

    before = state()
    neutreno.train(*TINY, name="again")
    assert state() == before
    held = [str(file.resolve()) for file in Path("/proc/self/fd").iterdir()]
    assert not [file for file in held if file.startswith(str(cwd.resolve()))]


def test_it_trains_beside_the_main_thread_without_arguments_of_the_process(cwd, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["a_kernel", "-f", "connection.json"])
    found = []
    thread = threading.Thread(target=lambda: found.append(neutreno.train(*TINY, "name=thread")))
    thread.start()
    thread.join()
    assert found[0].status == "finished"


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, float64])
def test_a_callers_mode_and_default_type_change_no_run(mode, trained, cwd):
    words = [*TINY, "task.ema_decay=0.9", "task.warmup_epochs=0"]
    with mode():
        run = neutreno.train(*words, name=mode.__name__)
        assert all(p.dtype == torch.float32 and not p.is_inference() for p in run.model.parameters())
        now = torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.get_default_dtype()
    assert_same_run(run.path, trained.path)
    expected = {"no_grad": (False, False, torch.float32), "float64": (False, True, torch.float64)}
    assert now == expected.get(mode.__name__, (True, False, torch.float32))


def test_an_interrupted_call_is_recorded_and_resumed_to_the_same_run(trained, cwd):
    from torch.optim.optimizer import register_optimizer_step_post_hook

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    steps = []
    hook = register_optimizer_step_post_hook(
        lambda *_: (steps.append(1), len(steps) == 6 and os.kill(os.getpid(), signal.SIGINT))
    )
    words = [*TINY, "task.ema_decay=0.9", "task.warmup_epochs=0", "name=killed"]
    try:
        with pytest.raises(KeyboardInterrupt, match="resume=true continues the run"):
            neutreno.train(*words)
    finally:
        hook.remove()
        signal.signal(signal.SIGINT, before)
    assert result(cwd / "outputs/killed")["status"] == "interrupted"
    assert_same_run(neutreno.train(*words, resume=True).path, trained.path)


@pytest.mark.parametrize(
    "words, keys, said",
    [
        ([["model=deit"]], {}, "takes words, .*no list"),
        ([], {"name": "x"}, "holds a finished run"),
        (["-m"], {}, "-m belongs to the command line"),
        (["--help"], {}, "--help belongs to the command line"),
        (["hydra.verbose=true"], {}, r"hydra\.verbose=true belongs"),
        (["seed=0,1"], {}, "seed=0,1"),
        ([], {"preflight": True}, "preflight=true makes no run"),
        ([], {"sed": 1}, "no key sed; did you mean seed"),
        ([], {"seed": 1.5}, "seed=1.5 should be a valid integer"),
        ([], {"resume": None}, "resume=null should be a valid boolean"),
        (["attention.lam=-1"], {}, r"attention\.lam=-1 should be greater"),
        (["--config-dir", "nowhere"], {}, "--config-dir nowhere: no such folder"),
        (["trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=cpu"], {}, "ask for 2 processes"),
    ],
)
def test_what_the_command_refuses_is_an_input_error_and_leaves_no_folder(trained, cwd, words, keys, said):
    there = sorted(os.listdir(cwd / "outputs"))
    with pytest.raises(InputError, match=said):
        neutreno.train(*TINY, *words, **keys)
    assert sorted(os.listdir(cwd / "outputs")) == there


@pytest.mark.parametrize("words", [["model=deit"], ["attention.lam=0", "model.distilled=true"]], ids=" ".join)
def test_a_run_of_softmax_attention_is_exported_to_timm(words, cwd, tmp_path):
    run = neutreno.train(*TINY, *words, name=f"export{len(words)}")
    name, arguments = run.export(tmp_path / "w.safetensors", format="timm")
    net = timm.create_model(name, checkpoint_path=str(tmp_path / "w.safetensors"), **arguments).eval()
    x, _ = next(iter(run.data.val_dataloader()))
    torch.testing.assert_close(net(x), run.model(x), rtol=1e-5, atol=1e-5)


def test_a_run_of_neutreno_is_exported_only_where_that_is_given_up(finished, tmp_path):
    run, file = neutreno.load_run(finished, weights="ema"), tmp_path / "w.safetensors"
    with pytest.raises(InputError, match=r"trained with neutreno λ̃=0\.6.*without_variants=True"):
        run.export(file)
    assert not file.exists()
    with pytest.warns(UserWarning, match="gives up neutreno λ̃=0.6: logits of random images are off by up to"):
        name, arguments = run.export(file, without_variants=True)
    net = timm.create_model(name, checkpoint_path=str(file), **arguments)
    assert torch.equal(net.head.weight, run.model.head.weight)
    with safe_open(file, "pt") as content:
        said = content.metadata()
    assert said["given_up"] == "neutreno λ̃=0.6"
    assert json.loads(said["input"]) == {"img_size": 8, "in_chans": 1, "mean": [0.305], "std": [0.376]}


def test_a_record_that_was_edited_does_not_pass_neutreno_off_as_softmax(copied, tmp_path):
    axes = result(copied)["axes"]
    axes["attention"]["baseline"] = True
    edit(copied / "result.json", axes=axes)
    with pytest.raises(InputError, match="gives other logits"):
        neutreno.load_run(copied).export(tmp_path / "w.safetensors")


@pytest.mark.parametrize("mode", [torch.inference_mode, float64])
def test_a_callers_mode_and_default_type_change_no_export(mode, finished, tmp_path):
    run = neutreno.load_run(finished)
    with mode(), pytest.warns(UserWarning, match="gives up"):
        run.export(tmp_path / "w.safetensors", without_variants=True)
    written, expected = load_file(tmp_path / "w.safetensors"), run.model.state_dict()
    assert {name: value.dtype for name, value in written.items()} == dict.fromkeys(expected, torch.float32)


@pytest.mark.parametrize("format", ["onnx", "hf"])
def test_another_format_is_refused(finished, format, tmp_path):
    with pytest.raises(InputError, match=f"format={format} is not known; available: timm"):
        neutreno.load_run(finished).export(tmp_path / "w.safetensors", format=format)


def test_a_run_opened_by_a_relative_path_is_found_after_the_working_folder_changed(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(finished.parent)
    run = neutreno.load_run(finished.name)
    monkeypatch.chdir(tmp_path)
    before = torch.get_rng_state()
    assert run.model is not None and torch.equal(torch.get_rng_state(), before)


def test_a_program_that_uses_hydra_itself_may_train_and_open_runs(finished, cwd):
    with hydra.initialize_config_dir(str(finished), version_base="1.3"):
        run = neutreno.train(*TINY, "trainer.max_epochs=1", "name=inside", seed=np.int64(4))
        assert run.settings["seed"] == 4 and run.model is not None
        assert hydra.compose("config").seed == neutreno.load_run(finished).settings["seed"]  # its own state is back


def test_a_setting_that_goes_without_saying_is_in_the_table_of_runs(finished, cwd):
    neutreno.train(*TINY, "trainer.max_epochs=1", "attention.pull=false", "name=half")
    shutil.copytree(finished, "outputs/whole")
    runs = neutreno.load_runs("outputs").set_index("name")
    assert runs.loc["half", "pull"] == False and runs.loc["whole", "pull"] == True  # noqa: E712
