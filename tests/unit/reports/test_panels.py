"""Which panels there are, and what stands on each line of them."""

from support import make_run

from neutreno.reports.comparison import group_runs
from neutreno.reports.panels import panels_of
from neutreno.reports.reading import read_runs


def labels(folder, *rows):
    for number, words in enumerate(rows):
        make_run(folder / f"r{number}", "data=digits", *words)
    groups, _ = group_runs(read_runs([folder])[0])
    return {line.label for panel in panels_of(groups) for line in panel.lines}


def test_rows_that_say_the_same_are_told_apart_by_what_they_differ_in_alone(tmp_path):
    norms = [["block=contranorm"], ["block=contranorm", "block.placement=stream", "block.scale=0.1"]]
    found = labels(tmp_path, *(["model=deit", *words] for words in ([], ["attention=linear"], *norms)))
    contranorms = {"contranorm placement=branch scale=0.01", "contranorm placement=stream scale=0.1"}
    assert found == {"softmax", "linear", *contranorms}


def test_models_that_differ_are_named(tmp_path):
    assert labels(tmp_path, ["model=deit"], ["model=deit", "model.size=tiny"]) == {
        "deit-mini softmax",
        "deit-tiny softmax",
    }
