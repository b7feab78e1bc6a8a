"""What Weights & Biases and TensorBoard are given."""

import json
import struct

import pytest
from support import TINY, run_forked


def records(folder):
    """The records of an offline run: LevelDB's log format in blocks of 32 KiB, after seven bytes of W&B's own."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("*.wandb")
    data, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def read(folder):
    """(run, config, summary) of an offline run, the last word counting."""
    run, config, summary = None, {}, {}
    for record in records(folder):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            config |= {item.key: json.loads(item.value_json) for item in run.config.update}
        elif kind == "config":
            config |= {(u.key or ".".join(u.nested_key)): json.loads(u.value_json) for u in record.config.update}
        elif kind == "summary":
            summary |= {(u.key or ".".join(u.nested_key)): json.loads(u.value_json) for u in record.summary.update}
    return run, config, summary


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("logged")
    arguments = [*TINY, "experiment=table1/deit_tiny_neutreno", "data=digits", "logger=[wandb,tensorboard]", "name=x"]
    done = run_forked("train.py", *arguments, cwd=cwd)
    assert done.returncode == 0 and "did not accept the report" not in done.stderr, done.stderr
    return cwd / "outputs/x"


def test_wandb_gets_group_job_config_summary_curves_and_figure(trained):
    (folder,) = trained.glob("wandb/offline-run-*")
    run, config, summary = read(folder)
    assert (run.run_group, run.job_type, run.display_name) == ("table1/deit_tiny_neutreno", "train", "x")
    assert config["attention"]["lam"] == 0.6 and config["seed"] == 0 and {"task", "trainer", "data"} <= config.keys()
    metrics = json.loads((trained / "result.json").read_text())["metrics"]
    assert {name: summary[name] for name in metrics} == pytest.approx(metrics)
    assert list(folder.glob("files/media/images/oversmoothing/figure*.png"))
    assert len(list(folder.rglob("files/media/table/**/*.table.json"))) == 2  # all tokens, without class token


def test_an_evaluation_is_a_job_of_the_same_group(trained):
    arguments = ["evaluators=[metrics,per_layer]", "logger=wandb", "trainer.accelerator=cpu"]
    done = run_forked("evaluate.py", "outputs/x", *arguments, cwd=trained.parents[1])
    assert done.returncode == 0 and "did not accept the report" not in done.stderr, done.stderr
    (folder,) = trained.glob("wandb/offline-run-*x-eval")
    run, config, summary = read(folder)
    assert (run.run_group, run.job_type) == ("table1/deit_tiny_neutreno", "eval") and "model" in config
    metrics = json.loads((trained / "evaluation.json").read_text())["metrics"]
    assert {name: summary[name] for name in metrics} == pytest.approx(metrics)


def test_tensorboard_gets_the_figure_and_the_result(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained / "tensorboard"))
    events.Reload()
    assert "oversmoothing/figure" in events.Tags()["images"]
    metrics = json.loads((trained / "result.json").read_text())["metrics"]
    assert events.Scalars("result/test/top1")[-1].value == pytest.approx(metrics["test/top1"])
