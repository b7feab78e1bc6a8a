"""Runs as a data frame, of folders whose figures are made up."""

import json

import pytest
from support import make_run

import neutreno
from neutreno.errors import InputError


@pytest.fixture
def runs(tmp_path):
    make_run(tmp_path / "a", "model=deit", value=80.0)
    make_run(tmp_path / "b", "attention.lam=0.4", "seed=1", value=85.0)
    make_run(tmp_path / "c", "task.lr=0.01", status="failed")
    return tmp_path


def test_a_row_says_what_a_run_is_and_what_came_out(runs):
    table = neutreno.load_runs(runs).set_index("name")
    assert [*table.index] == ["a", "b", "c"]
    assert [*table.status] == ["finished", "finished", "failed"]
    assert [*table.attention] == ["softmax", "neutreno", "neutreno"]
    assert [*table.seed] == [0, 1, 0]
    assert table.loc["b", "λ̃"] == 0.4 and table.loc["a", ["λ̃"]].isna().all()
    assert table.loc["a", table.main_metric["a"]] == 80.0 and table.loc["b", "test/top1"] == 85.0
    assert [*table.steps[:2]] == [100, 100]
    assert table.loc["c", ["main_metric", "test/top1", "steps"]].isna().all()


def test_a_setting_without_a_label_is_a_column_by_its_key_where_it_varies(runs):
    table = neutreno.load_runs(runs)
    assert [*table["task.lr"]] == [0.002, 0.002, 0.01]
    assert "task.weight_decay" not in table and "recipe.lr" not in table
    assert "task.lr" not in neutreno.load_runs(runs / "a", runs / "b")


def test_the_main_metric_is_the_first_of_the_metrics(runs):
    columns = [*neutreno.load_runs(runs)]
    assert columns[columns.index("main_metric") + 1] == "test/top1"
    assert "val/loss" in columns and len(columns) == len({*columns})


def test_two_settings_of_one_name_are_called_by_their_keys(runs):
    record = json.loads((runs / "a/result.json").read_text())
    record["labels"] |= {"task.size": "", "model.status": ""}
    record["settings"] |= {"task.size": 3, "model.status": "x"}
    (runs / "a/result.json").write_text(json.dumps(record))
    table = neutreno.load_runs(runs).set_index("name")
    assert table.loc["a", "task.size"] == 3 and table.loc["a", "model.size"] == "mini"
    assert table.loc["a", "model.status"] == "x" and table.loc["a", "status"] == "finished"


def test_what_cannot_be_read_is_named_and_left_out(runs):
    (runs / "b/result.json").write_text("{")
    with pytest.warns(UserWarning, match=r"b/result\.json is not readable JSON; left out"):
        assert [*neutreno.load_runs(runs).name] == ["a", "c"]


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(InputError, match="no runs to read"):
        neutreno.load_runs(tmp_path)
