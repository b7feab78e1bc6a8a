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
    """(run, config, summary, keys of the history) of an offline run, the last word counting."""
    run, config, summary, history = None, {}, {}, set()
    for record in records(folder):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            config |= {item.key: json.loads(item.value_json) for item in run.config.update}
        elif kind == "config":
            config |= {(u.key or ".".join(u.nested_key)): json.loads(u.value_json) for u in record.config.update}
        elif kind == "summary":
            summary |= {(u.key or ".".join(u.nested_key)): json.loads(u.value_json) for u in record.summary.update}
        elif kind == "history":
            history |= {item.key or ".".join(item.nested_key) for item in record.history.item}
    return run, config, summary, history


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("logged")
    arguments = [*TINY, "experiment=table1/deit_tiny_neutreno", "data=digits", "logger=[wandb,tensorboard]", "name=x"]
    done = run_forked("train.py", *arguments, cwd=cwd)
    assert done.returncode == 0 and "did not accept the report" not in done.stderr, done.stderr
    return cwd / "outputs/x"


def test_wandb_gets_group_job_config_summary_curves_and_figure(trained):
    (folder,) = trained.glob("wandb/offline-run-*")
    run, config, summary, _ = read(folder)
    record = json.loads((trained / "result.json").read_text())
    assert (run.run_group, run.job_type, run.display_name) == (record["group"], "train", "x")
    assert "seed" not in run.run_group
    assert set(run.tags) == {"digits", "deit-mini", "neutreno λ̃=0.6", "table1/deit_tiny_neutreno"}
    assert config["attention"]["lam"] == 0.6 and config["seed"] == 0 and {"task", "trainer", "data"} <= config.keys()
    metrics = json.loads((trained / "result.json").read_text())["metrics"]
    assert {name: summary[name] for name in metrics} == pytest.approx(metrics)
    assert list(folder.glob("files/media/images/oversmoothing/figure*.png"))
    assert len(list(folder.rglob("files/media/table/oversmoothing/per_layer/*.table.json"))) == 2  # all tokens, patches


def test_wandb_gets_layers_as_a_chart_of_each_metric_and_their_last_value(trained):
    (folder,) = trained.glob("wandb/offline-run-*-x")
    *_, summary, history = read(folder)
    assert not [key for key in history if "layer_0" in key]
    for metric in ("cosine", "residual", "effective_rank"):
        tables = [json.loads(file.read_text()) for file in folder.glob(f"files/**/{metric}/by_layer*.table.json")]
        assert len(tables) == 4  # before training, and after each of three epochs
        for table in tables:
            layers = [row[table["columns"].index("step")] for row in table["data"]]
            assert sorted(layers) == [0, 0, 1, 1, 2, 2]  # all tokens, and patches
            assert {row[table["columns"].index("lineKey")] for row in table["data"]} == {"all tokens", "patch tokens"}
    last = json.loads((trained / "result.json").read_text())["oversmoothing"]
    last = [row for row in last if (row["metric"], row["subset"]) == ("cosine", "all")]
    assert summary["oversmoothing/cosine"] == pytest.approx(max(last, key=lambda r: (r["step"], r["layer"]))["mean"])


def test_an_evaluation_is_a_job_of_the_same_group(trained):
    arguments = ["evaluators=[metrics,per_layer]", "logger=wandb", "trainer.accelerator=cpu"]
    done = run_forked("evaluate.py", "outputs/x", *arguments, cwd=trained.parents[1])
    assert done.returncode == 0 and "did not accept the report" not in done.stderr, done.stderr
    (folder,) = trained.glob("wandb/offline-run-*x-eval")
    run, config, summary, _ = read(folder)
    group = json.loads((trained / "result.json").read_text())["group"]
    assert (run.run_group, run.job_type) == (group, "eval") and "model" in config and "deit-mini" in run.tags
    metrics = json.loads((trained / "evaluation.json").read_text())["metrics"]
    assert {name: summary[name] for name in metrics} == pytest.approx(metrics)


@pytest.fixture(scope="module")
def events(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(trained / "tensorboard")).Reload()


def test_tensorboard_gets_the_figure_and_the_result(trained, events):
    assert "oversmoothing/figure" in events.Tags()["images"]
    metrics = json.loads((trained / "result.json").read_text())["metrics"]
    assert events.Scalars("result/test/top1")[-1].value == pytest.approx(metrics["test/top1"])


def test_tensorboard_gets_layers_as_a_figure_of_each_measurement_and_their_last_value(events):
    assert [image.step for image in events.Images("oversmoothing/by_layer")] == [0, 4, 8, 12]
    layered = {tag for tag in events.Tags()["scalars"] if tag.startswith("oversmoothing/")}
    assert layered == {f"oversmoothing/{metric}" for metric in ("cosine", "residual", "effective_rank")}


def test_tensorboards_hparams_are_filled_and_grouped_and_tagged_as_in_wandb(trained, events):
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    def content(tag):
        return HParamsPluginData.FromString(events.SummaryMetadata(f"_hparams_/{tag}").plugin_data.content)

    metrics = {info.name.tag: info.display_name for info in content("experiment").experiment.metric_infos}
    assert metrics == {"result/test/top1": "test top-1", "result/val/top1": "val top-1"}
    assert metrics.keys() <= set(events.Tags()["scalars"])
    start = content("session_start_info").session_start_info
    (folder,) = trained.glob("wandb/offline-run-*-x")
    run, *_ = read(folder)
    assert start.group_name == run.run_group == start.hparams["group"].string_value
    assert start.hparams["tags"].string_value.split(", ") == list(run.tags)
    assert start.hparams["attention.lam"].number_value == 0.6 and start.hparams["seed"].number_value == 0
    assert {info.name for info in content("experiment").experiment.hparam_infos} == set(start.hparams)
