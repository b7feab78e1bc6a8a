"""Rows over a setting, as lines of a figure."""

import numpy as np
import pytest
from support import make_run

from neutreno.errors import InputError
from neutreno.reports.comparison import group_runs
from neutreno.reports.figures import plot_lines
from neutreno.reports.reading import read_runs
from neutreno.reports.tables import lines_of

GRAPH = ["data=cora", "data.root=x"]


def lines(folder, *rows, by="model.depth", score=None):
    for number, (words, value) in enumerate(rows):
        make_run(folder / str(number), *words, value=value)
    groups, _ = group_runs(read_runs([folder])[0])
    return lines_of(groups, by, score, "cosine")


def test_a_line_is_a_method_and_its_band_the_seeds(tmp_path):
    rows = [(["data=cora", "data.root=x", f"model.depth={depth}", *words, f"seed={seed}"], depth + seed + more)
            for depth in (15, 2) for seed in (0, 2)
            for words, more in ((["norm=group"], 10.0), (["propagation=neutreno"] * (depth > 2), 0.0))]  # fmt: skip
    (score, drawn), (metric, last) = lines(tmp_path, *rows)
    assert (score, metric) == ("test/accuracy", "cosine similarity, last layer")
    found = {label: [list(map(float, part)) for part in parts] for label, *parts in drawn}
    sd = 2**0.5
    assert found == {
        "gcn group": [[2, 15], [13, 26], [sd, sd]],  # its λ differs by depth, which tells no lines apart
        "gcn": [[2], [3], [sd]],
        "gcn neutreno": [[15], [16], [sd]],
    }
    assert [label for label, *_ in last] == [label for label, *_ in drawn]
    paths = plot_lines([(score, drawn), (metric, last)], tmp_path / "figure", "model.depth")
    assert all(path.stat().st_size > 1000 for path in paths)


def test_what_else_differs_at_a_number_tells_lines_apart(tmp_path):
    rows = [([*GRAPH, "propagation=neutreno", f"propagation.lam={lam}", f"model.depth={depth}"], 1.0)
            for lam in (0.2, 0.6) for depth in (5, 9)]  # fmt: skip
    assert [label for label, *_ in lines(tmp_path, *rows)[0][1]] == ["gcn neutreno λ̃=0.2", "gcn neutreno λ̃=0.6"]
    by_lam = lines(tmp_path, by="propagation.lam")[0][1]
    assert {label: list(numbers) for label, numbers, *_ in by_lam} == {
        "gcn neutreno model.depth=5": [0.2, 0.6],
        "gcn neutreno model.depth=9": [0.2, 0.6],
    }
    assert all(np.isnan(sd).all() for *_, sd in by_lam)  # of single runs


@pytest.mark.parametrize(
    "by, score, said",
    [
        ("model.dept", None, "model.dept takes no two numbers among the 2 rows"),
        ("data.root", None, "data.root takes no two numbers"),
        ("model.depth", "test/miou", "no run has the metric test/miou; available: "),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, by, score, said):
    rows = [([*GRAPH, f"model.depth={depth}"], 1.0) for depth in (2, 15)]
    with pytest.raises(InputError, match=said):
        lines(tmp_path, *rows, by=by, score=score)


def test_rows_that_no_label_tells_apart_are_refused(tmp_path):
    rows = [([*GRAPH, f"model.depth={depth}", f"task.lr={lr}"], 1.0) for depth in (2, 15) for lr in (0.1, 0.2)]
    with pytest.raises(InputError, match=r"task.lr=0.. and .*task.lr=0.. stand at model.depth=.*; give fewer runs"):
        lines(tmp_path, *rows)
