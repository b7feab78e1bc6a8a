"""Whole runs on the embedded graph."""

import json

import pytest
from support import assert_one_line_error, result, run_forked, train
from support.graphs import ARM, GRAPH, write_planetoid
from support.same_run import assert_same_run, dies_after, load, train_killed
from support.tables import covering

from neutreno.config.composing import compose
from neutreno.tablefiles import read_table, tables_in


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train([*GRAPH, *ARM], tmp_path_factory.mktemp("whole"))


def test_a_run_reports_the_last_and_the_first_best_epoch(whole):
    found = result(whole)["metrics"]
    for split in ("val", "test"):
        assert {f"{split}/accuracy", f"{split}/loss", f"best/{split}/accuracy", f"best/{split}/loss"} <= found.keys()
    assert found["best/val/accuracy"] >= found["val/accuracy"]
    assert load(whole)["state_dict"]["best_correct"].item() == pytest.approx(found["best/val/accuracy"] * 4)  # of 400
    assert not (whole / "checkpoints/best.ckpt").exists()
    state = load(whole)["state_dict"]
    steps = {v.item() for k, v in state.items() if k.startswith("best.") and k.endswith("num_batches_tracked")}
    assert steps == {state["best_step"].item()} == {found["best/step"]}
    measured = {row["metric"] for row in result(whole)["oversmoothing"]}
    assert {"cosine", "group_distance_ratio", "instance_information_gain"} <= measured


@pytest.mark.parametrize("died", [{"step": 5}, {"write": 2}, {"write": 4}], ids=str)
def test_a_killed_run_resumes_bit_for_bit(whole, tmp_path, died):
    train_killed([*GRAPH, *ARM], tmp_path, setup=dies_after(**died))
    resumed = train([*GRAPH, *ARM], tmp_path, "resume=true")
    assert_same_run(resumed, whole)


def test_evaluate_finds_what_the_run_recorded(whole):
    done = run_forked("evaluate.py", str(whole), "trainer.accelerator=cpu", cwd=whole)
    assert done.returncode == 0, done.stderr
    assert json.loads((whole / "evaluation.json").read_text())["metrics"] == pytest.approx(result(whole)["metrics"])


REFUSED = {
    "data=digits_graph attention=softmax": "model=gcn has no axis attention; its axes are propagation, norm",
    "data=digits_graph model=deit": "this model is not made for this data set",
    "data=digits_graph propagation=neutreno model.depth=2": "in layers 1 … L − 2 only; take model.depth ≥ 3",
    "data=digits_graph model=sgc propagation=neutreno model.depth=1": "steps 1 … L − 1 only; take model.depth ≥ 2",
    "data=digits_graph propagation=neutreno propagation.lam=-1": "should be greater than or equal to 0",
    "data=digits_graph propagation=neutreno propagation.anchor=none propagation.pull=false": "take propagation=plain",
    "data=digits_graph trainer.devices=2 trainer.accelerator=cpu": "one batch, for one process, not 2",
    "data=digits_graph data.batch_size=2": "should be 1",
    "data=digits_graph trainer.max_steps=75": "not a multiple of data.val_every_n_steps=50",
    "data=digits_graph norm=group model.depth=abc": "model.depth=abc should be a valid integer",
    "data=digits norm=group": "model=deit_neutreno has no axis norm; its axes are attention, block",
    "data=digits model=gcn": "this model is not made for this data set",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_does_not_fit_is_said_in_a_line(words, tmp_path):
    typed = words.split()
    assert_one_line_error(run_forked("train.py", *typed, cwd=tmp_path), REFUSED[words])
    assert not (tmp_path / "outputs").exists()


def of_graphs():
    """Rows of tables of graphs that hold each word at least once, and each model with its norms and propagations, with
    an inner layer and without; but for data sets, depths and strengths, which change no class that is built."""
    found = {}
    for name in filter(lambda name: name.startswith(("dgn_", "graph_")), tables_in()):
        table = read_table(name)
        for label in table.rows:
            words = [*table.overrides, *table.rows[label]]
            kind = {w for w in words if not w.startswith(("data=", "model.depth=", "trainer.", "propagation.lam="))}
            inner = "model.depth=2" not in words  # a layer in which a propagation acts
            built = " ".join(sorted(w for w in kind if w.startswith(("model=", "norm=", "propagation="))))
            found[name, label] = {*kind, f"{built} {inner}"}
    return covering(found)


@pytest.mark.parametrize("name, label", of_graphs())
def test_every_word_of_every_table_trains_two_steps(name, label, tmp_path):
    write_planetoid(tmp_path, "cora")
    table = read_table(name)
    small = ["data=cora", f"data.root={tmp_path}", "trainer.max_steps=2", "data.val_every_n_steps=2"]
    words = table.words(label, 0, [*small, "probe.metrics=[cosine]", "name=x"])
    words = ["data=cora" if word.startswith("data=") else word for word in words]
    done = run_forked("train.py", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = result(tmp_path / "outputs/x")
    assert (record["steps"], record["row"]) == (2, f"{name}/{label}") and "best/test/accuracy" in record["metrics"]


def test_group_normalization_takes_its_weight_by_depth_from_the_recipe(tmp_path):
    words = ["data=cora", f"data.root={tmp_path}", "norm=group"]
    for depth, weight in ((5, 0.001), (6, 0.03), (30, 0.03)):
        assert compose([*words, f"model.depth={depth}"]).settings["norm"]["skip_weight"] == weight
    assert compose([*words, "model.depth=30", "data.missing=1.0"]).settings["norm"]["skip_weight"] == 0.01
