"""`scripts/theory.py`: the descent of random tokens, and the energies of trained runs by layer."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from support import TINY, assert_one_line_error, run_forked

from neutreno.oversmoothing.energies import descent
from neutreno.reports.layers import curve, part_of, stacks_of

RUNS = {
    "digits": [],
    "scenes": ["data=digit_scenes", "data.batch_size=100"],
    "docs": [
        "data=python_docs",
        "data.val_every_n_steps=4",
        "data.sequence_length=16",
        "trainer.max_steps=8",
        "data.batch_size=12",
    ],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("runs")
    for name, more in RUNS.items():
        bounded = [] if name == "docs" else ["trainer.max_epochs=1"]
        tiny = [argument for argument in TINY if "max_epochs" not in argument]
        done = run_forked("train.py", *tiny, *bounded, *more, f"name={name}", cwd=cwd)
        assert done.returncode == 0, done.stderr
    return cwd / "outputs"


def theory(*arguments, cwd):
    done = run_forked("scripts/theory.py", *map(str, arguments), cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def cells(markdown):
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if "|" in line]
    return pd.DataFrame(rows[2:], columns=rows[0])


def draws_both(prefix):
    with Image.open(f"{prefix}.png") as picture:
        assert picture.width == 2025  # 6.75 in at 300 dpi
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20
    assert prefix.with_name(f"{prefix.name}.pdf").read_bytes()[:5] == b"%PDF-"


def test_the_command_line_prints_the_table_and_draws_the_figure(tmp_path):
    table = cells(theory(cwd=tmp_path))
    assert list(table["λ̃"]) == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    _, ends = descent([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert list(table["rate, theory"].astype(float)) == pytest.approx(list(ends.rate), abs=6e-4)
    assert list(table["cosine similarity after 32 steps"].astype(float)) == pytest.approx(list(ends.cosine), abs=6e-4)
    draws_both(tmp_path / "outputs/theory")
    options = ["--lams", "1.3,0", "--steps", 5, "--tokens", 9, "--dim", 3, "--seed", 4, "--output", "other"]
    table = cells(theory(*options, cwd=tmp_path))
    _, ends = descent([0, 1.3], 5, 9, 3, 4)
    assert list(table["J after 5 steps / start"].astype(float)) == pytest.approx(list(ends.J), rel=1e-3)
    assert "diverges" in table["where it ends"][1]
    draws_both(tmp_path / "other")


def test_runs_of_every_task_are_measured_by_layer_on_their_probes_samples(runs):
    folders = [runs / name for name in RUNS]
    table = cells(theory(*folders, "--output", "layers", cwd=runs))
    assert list(dict.fromkeys(table["run"])) == list(RUNS)
    draws_both(runs / "layers")
    for folder in folders:
        found = json.loads((folder / "result.json").read_text())["oversmoothing"]
        for stack in stacks_of(found):
            part = table[(table["run"] == folder.name) & table["network"].isin(["", part_of(stack)])]
            assert list(part["layer (0 = embedding)"]) == ["0", "1", "2"]
            means = [float(cell.split()[0]) for cell in part["cosine similarity"]]
            assert means == pytest.approx(curve(found, stack=stack), abs=6e-4)


def test_probe_and_data_of_a_run_may_be_set(runs):
    table = cells(theory(runs / "digits", "probe.num_samples=1", "--output", "one", cwd=runs))
    assert all(float(cell.partition(" ± ")[2]) == 0 for cell in table["cosine similarity"])
    done = run_forked("scripts/theory.py", str(runs / "digits"), "model.depth=3", cwd=runs)
    assert_one_line_error(done, "model.depth", "leave it out")
    done = run_forked("scripts/theory.py", str(runs / "digits"), "probe.num_samples=abc", cwd=runs)
    assert_one_line_error(done, "probe.num_samples=abc should be a valid integer")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nowhere"], "nowhere is not a run folder"),
        (["unfinished"], "no checkpoint at"),
        (["probe.num_samples=4"], "goes with a run folder"),
        (["digits", "--steps", "3"], "--steps is of the descent of random tokens"),
        (["--lams", "abc"], "--lams abc is not a list of numbers"),
        (["--lams", "0,,1"], "is not a list of numbers"),
        (["--lams=-0.2,0"], "--lams=-0.2 is not a finite number ≥ 0"),
        (["--lams", "nan"], "--lams=nan is not a finite number ≥ 0"),
        (["--steps", "0"], "--steps=0 is not a whole number from 1 to"),
        (["--tokens", "1"], "--tokens=1 is not a whole number from 2 to"),
        (["--output", "nowhere/theory"], "no folder nowhere"),
        (["--lams", "1e200"], "the descent at λ̃ = 1e+200 overflows at step 2"),
    ],
)
def test_a_mistake_is_told_in_one_line(runs, arguments, words):
    unfinished = runs / "unfinished"
    if not unfinished.exists():
        unfinished.mkdir()
        (unfinished / "config.yaml").write_bytes((runs / "digits/config.yaml").read_bytes())
    assert_one_line_error(run_forked("scripts/theory.py", *arguments, cwd=runs), words)
