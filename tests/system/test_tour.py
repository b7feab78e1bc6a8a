"""The notebook of docs/ runs as it stands, offline, and shows what it says."""

import json

import pandas as pd
import pytest
from matplotlib import pyplot as plt
from support import ROOT

from neutreno.reports.layers import curve

CELLS = json.loads((ROOT / "docs/tour.ipynb").read_text(encoding="utf-8"))["cells"]


@pytest.fixture(scope="module")
def toured(tmp_path_factory):
    """The names that all code cells leave, run in their order; no kernel is needed for that."""
    names, folder = {}, tmp_path_factory.mktemp("toured")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TMPDIR", str(folder))
        patch.setattr("tempfile.tempdir", None)
        for number, cell in enumerate(CELLS):
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
        yield names, [axes for number in plt.get_fignums() for axes in plt.figure(number).axes]
    plt.close("all")


def test_it_is_kept_without_outputs():
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_it_trains_compares_and_draws_two_runs(toured):
    names, drawn = toured
    runs = names["runs"].set_index("name")
    assert {*runs.index} == {"softmax", "neutreno"} and [*runs.status] == ["finished"] * 2
    assert names["correct"].double().mean().item() * 100 == pytest.approx(names["run"].metrics["val/top1"])
    by_step, by_run = drawn
    assert len(by_step.lines) == names["run"].layers.step.nunique() == 4
    shown = dict(zip([text.get_text() for text in by_run.get_legend().get_texts()], by_run.lines, strict=True))
    for name, line in shown.items():
        assert [*line.get_ydata()] == pytest.approx(curve(names["opened"][name].measured))


def test_it_profiles_a_model_of_timm_and_exports_to_it(toured):
    names, _ = toured
    assert isinstance(names["profile"], pd.DataFrame) and names["profile"].layer.max() == 12
    assert names["name"] == "deit_tiny_patch16_224" and names["difference"] < 1e-4
