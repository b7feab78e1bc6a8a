"""Which panels there are, and what stands on each line of them."""

from support import make_run

from neutreno.reports.comparison import group_runs
from neutreno.reports.panels import panels_of
from neutreno.reports.reading import read_runs


def labels(folder, *rows):
    """In their order."""
    for number, words in enumerate(rows):
        make_run(folder / f"r{number}", "data=digits", *words)
    groups, _ = group_runs(read_runs([folder])[0])
    return [line.label for panel in panels_of(groups) for line in panel.lines]


def test_rows_that_say_the_same_are_told_apart_by_their_own_settings_and_stand_in_order(tmp_path):
    norms = [["block.placement=stream"], ["block.scale=0.1"], ["block.scale=0.001"], []]
    rows = [[], ["attention=linear"], *(["block=contranorm", *words] for words in norms)]
    assert labels(tmp_path, *(["model=deit", *words] for words in rows)) == [
        "softmax",
        "linear",
        "contranorm block.placement=branch block.scale=0.001",
        "contranorm block.placement=branch block.scale=0.01",
        "contranorm block.placement=branch block.scale=0.1",
        "contranorm block.placement=stream block.scale=0.01",
    ]


def test_models_that_differ_are_named(tmp_path):
    found = labels(tmp_path, ["model=deit"], ["model=deit", "model.size=tiny"])
    assert found == ["deit-mini softmax", "deit-tiny softmax"]
