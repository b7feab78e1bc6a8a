"""Rows over a setting, as lines of a figure."""

import json

import numpy as np
import pytest
from support import make_run

from neutreno.errors import InputError
from neutreno.reports.comparison import group_runs
from neutreno.reports.lines import plot_panels
from neutreno.reports.panels import lines_of
from neutreno.reports.reading import read_runs

GRAPH = ["data=cora", "data.root=x"]


def lines(folder, *rows, by="model.depth", score=None, metric="cosine"):
    for number, (words, value) in enumerate(rows):
        make_run(folder / str(number), *words, value=value)
    groups, _ = group_runs(read_runs([folder])[0])
    return lines_of(groups, by, score, metric)


def parts(panel):
    """What a panel shows, by label."""
    return {line.label: (line.x, line.mean, line.sd) for line in panel.lines}


def test_a_line_is_a_method_and_its_band_the_seeds(tmp_path):
    rows = [([*GRAPH, f"model.depth={depth}", *words, f"seed={seed}"], depth + seed + more)
            for depth in (15, 2) for seed in (0, 2)
            for words, more in ((["norm=group"], 10.0), (["propagation=neutreno"] * (depth > 2), 0.0))]  # fmt: skip
    panels, left_out = lines(tmp_path, *rows)
    (score, drawn), (metric, last) = ((panel.ylabel, parts(panel)) for panel in panels)
    assert (score, metric, left_out) == ("test/accuracy", "cosine similarity, last layer", [])
    sd = 2**0.5
    assert {label: [list(map(float, part)) for part in of] for label, of in drawn.items()} == {
        "gcn group": [[2, 15], [13, 26], [sd, sd]],  # its λ follows from the depth, which tells no lines apart
        "gcn": [[2], [3], [sd]],
        "gcn neutreno": [[15], [16], [sd]],
    }
    assert list(last) == list(drawn)
    assert all(path.stat().st_size > 1000 for path in plot_panels(panels, tmp_path / "figure"))
    methods = {line.label: line.method for line in panels[0].lines}
    assert methods == {"gcn group": "group λ", "gcn": "baseline", "gcn neutreno": "neutreno λ̃"}


def test_what_each_network_is_trained_with_is_no_part_of_its_name(tmp_path):
    rows = [([*GRAPH, f"model.depth={depth}", *words], 50.0) for depth in (4, 8)
            for words in (["norm=pair"], ["model=gcnii", "task.lr=0.01"])]  # fmt: skip
    drawn = parts(lines(tmp_path, *rows)[0][0])
    assert list(drawn) == ["gcn pair", "gcnii"]


TOLD_APART = {
    "settings of an axis": (["propagation=neutreno"], "propagation.lam", (0.2, 0.6), "gcn neutreno λ̃={}"),
    "other settings": ([], "task.lr", (0.001, 0.1), "gcn task.lr={:g}"),
    "data": ([], "data.missing", (0, 0.5), "gcn data.missing={:g}"),
}


@pytest.mark.parametrize("words, key, values, label", TOLD_APART.values(), ids=TOLD_APART.keys())
@pytest.mark.parametrize("crossed", [True, False])
def test_what_was_typed_otherwise_tells_lines_apart(tmp_path, words, key, values, label, crossed):
    """Also where it differs at no one depth."""
    at = {5: values, 9: values} if crossed else {5: values[:1], 9: values[1:]}
    rows = [([*GRAPH, *words, f"{key}={v}", f"model.depth={d}"], 1.0) for d, found in at.items() for v in found]
    drawn = parts(lines(tmp_path, *rows)[0][0])
    assert [*drawn] == [label.format(value) for value in values]
    assert all(np.isnan(sd).all() for *_, sd in drawn.values())  # of single runs


def test_other_data_under_one_name_is_another_line(tmp_path):
    def digest(folder, value):
        file = folder / "result.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"digests": {"graph": value * 64}}))

    for number, (depth, value) in enumerate([(5, "a"), (9, "b")]):
        digest(make_run(tmp_path / str(number), *GRAPH, f"model.depth={depth}"), value)
    drawn = parts(lines(tmp_path)[0][0])
    assert list(drawn) == ["gcn graph data=aaaaaaaa", "gcn graph data=bbbbbbbb"]


def test_the_baseline_stands_at_the_number_that_it_equals(tmp_path):
    rows = [([*GRAPH, "model.depth=5", *words], 1.0)
            for words in ([], *(["propagation=neutreno", f"propagation.lam={lam}"] for lam in (0.2, 0.6)))]  # fmt: skip
    drawn = parts(lines(tmp_path, *rows, by="propagation.lam")[0][0])
    assert {label: list(numbers) for label, (numbers, *_) in drawn.items()} == {"gcn neutreno": [0, 0.2, 0.6]}


def test_the_baseline_stands_in_each_line_that_differs_in_that_axis_alone(tmp_path):
    arm = ["propagation=neutreno", "propagation.anchor=detached"]
    rows = [([*GRAPH, "model.depth=5", *arm, f"propagation.lam={lam}"], 1.0) for lam in (0.2, 0.6)]
    rows += [([*GRAPH, "model.depth=5", *arm[:1], f"propagation.lam={lam}"], 1.0) for lam in (0.2, 0.6)]
    drawn = parts(lines(tmp_path, *rows, ([*GRAPH, "model.depth=5"], 1.0), by="propagation.lam")[0][0])
    assert {label: list(numbers) for label, (numbers, *_) in drawn.items()} == {
        "gcn neutreno V_0=detached": [0, 0.2, 0.6],
        "gcn neutreno V_0=v0": [0, 0.2, 0.6],
    }


@pytest.mark.parametrize(
    "one, other, said",
    [
        (["recipe=digits_graph"], [], "recipe=digits_graph"),
        (["task.opt_args={filter_bias_and_bn: false}"], ["task.opt_args={filter_bias_and_bn: true}"], "filter_bias"),
        (["task.lr=0.0012345671"], ["task.lr=0.0012345674"], "task.lr=0.0012345674"),
    ],
)
def test_sections_groups_and_all_digits_tell_lines_apart(tmp_path, one, other, said):
    rows = [([*GRAPH, "model.depth=5", *one], 1.0), ([*GRAPH, "model.depth=9", *other], 1.0)]
    drawn = parts(lines(tmp_path, *rows)[0][0])
    assert len(drawn) == 2 and any(said in label for label in drawn)


def test_networks_of_other_axes_are_lines_of_one_figure(tmp_path):
    rows = [([*GRAPH, f"model={model}", f"model.depth={depth}"], 1.0) for model in ("gcn", "gcnii") for depth in (4, 8)]
    drawn = parts(lines(tmp_path, *rows)[0][0])
    assert list(drawn) == ["gcn", "gcnii"]


def test_what_a_row_lacks_is_said(tmp_path):
    rows = [(["data=digits", f"model.depth={depth}"], 1.0) for depth in (2, 4)]
    rows += [([*GRAPH, f"model.depth={depth}"], 1.0) for depth in (2, 4)]
    panels, left_out = lines(tmp_path, *rows, score="test/top1")
    assert [*parts(panels[0])] == ["digits deit neutreno"] and "cora gcn has no test/top1 at model.depth=4" in left_out


def test_a_row_without_the_setting_is_said(tmp_path):
    rows = [([*GRAPH, "propagation=neutreno", "model.depth=5", f"propagation.lam={lam}"], 1.0) for lam in (0.2, 0.6)]
    _, left_out = lines(tmp_path, *rows, (["data=digits", "model=deit"], 1.0), by="propagation.lam")
    assert left_out == ["digits deit-mini softmax has no propagation.lam"]


@pytest.mark.parametrize(
    "by, more, said",
    [
        ("model.dept", {}, "model.dept takes no two numbers among the 2 rows"),
        ("data.root", {}, "data.root takes no two numbers"),
        ("model.depth", {"score": "test/miou"}, "no run has the metric test/miou; available: "),
        ("model.depth", {"metric": "nonsense"}, "no run has the metric nonsense; available: .*effective_rank"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, by, more, said):
    rows = [([*GRAPH, f"model.depth={depth}"], 1.0) for depth in (2, 15)]
    with pytest.raises(InputError, match=said):
        lines(tmp_path, *rows, by=by, **more)
