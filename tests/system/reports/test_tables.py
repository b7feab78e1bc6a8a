"""Tables: means, intervals, the paper's figures, and what is left out."""

import io
import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from support import assert_one_line_error, make_run, run_forked

SOFTMAX, NEUTRENO = [90.0, 92.5, 91.0, 89.5], [93.0, 92.0, 94.5, 95.5]


@pytest.fixture
def runs(tmp_path):
    for seed in range(4):
        make_run(tmp_path / f"runs/s{seed}", "model=deit", f"seed={seed}", value=SOFTMAX[seed])
        make_run(tmp_path / f"runs/n{seed}", "data.num_workers=2", f"seed={seed}", value=NEUTRENO[seed])
    return tmp_path / "runs"


def tables(*arguments, cwd):
    done = run_forked("scripts/tables.py", *map(str, arguments), cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done


def welch(a, b):
    """Written out: degrees of freedom after Welch and Satterthwaite."""
    va, vb = np.var(a, ddof=1) / len(a), np.var(b, ddof=1) / len(b)
    free = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    half = stats.t.ppf(0.975, free) * math.sqrt(va + vb)
    return np.mean(a) - np.mean(b) - half, np.mean(a) - np.mean(b) + half


def paired(a, b):
    d = np.subtract(a, b)
    half = stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / math.sqrt(len(d))
    return d.mean() - half, d.mean() + half


@pytest.mark.parametrize(("option", "interval"), [([], welch), (["--paired"], paired)])
def test_means_and_intervals_are_those_of_an_independent_computation(runs, option, interval):
    found = pd.read_csv(io.StringIO(tables(runs, "--format", "csv", *option, cwd=runs).stdout))
    assert list(found["runs"]) == ["digits deit-mini softmax", "digits deit-mini neutreno λ̃=0.6"]
    assert list(found["seeds"]) == [4, 4]
    column = next(c for c in found if c.endswith(" low")).removesuffix(" low")
    for row, values in zip(found.to_dict("records"), (SOFTMAX, NEUTRENO), strict=True):
        assert row["test/top1 mean"] == pytest.approx(np.mean(values))
        assert row["test/top1 sd"] == pytest.approx(np.std(values, ddof=1))
    row = found.iloc[1]
    low, high = interval(NEUTRENO, SOFTMAX)
    assert row[f"{column} low"] == pytest.approx(low) and row[f"{column} high"] == pytest.approx(high)
    assert row[f"{column} difference"] == pytest.approx(np.mean(NEUTRENO) - np.mean(SOFTMAX))
    assert math.isnan(found.iloc[0][f"{column} low"])  # the baseline


def test_markdown_and_latex_say_the_same(runs):
    done = tables(runs, cwd=runs).stdout
    low, high = welch(NEUTRENO, SOFTMAX)
    assert f"| +3.00 ({low:.2f} to {high:.2f}) " in done and "93.75 ± 1.55" in done
    latex = tables(runs, "--format", "latex", cwd=runs).stdout
    assert latex.startswith(r"\begin{tabular}") and r"93.75 $\pm$ 1.55" in latex and "λ" not in latex


def test_further_columns_are_asked_for_by_name(runs):
    done = tables(runs, "--column", "effective_rank", "--column", "parameters", cwd=runs).stdout
    assert "effective rank, trained" in done and "5.00 ± 0.00" in done and "1,234" in done
    done = run_forked("scripts/tables.py", str(runs), "--column", "attention_entropy", cwd=runs)
    assert_one_line_error(done, "attention_entropy", "probe.metrics")


def test_times_to_an_event_are_counted_and_rows_of_a_table_judged_together(runs):
    for lam in (0.2, 0.4):
        for seed in range(4):
            make_run(runs / f"{lam}{seed}", f"attention.lam={lam}", f"seed={seed}", value=NEUTRENO[seed] - lam)
    for run in runs.iterdir():
        record = json.loads((run / "result.json").read_text()) | {"within": {"escape_step/cosine": 600.0}}
        if run.name[0] != "s":
            record["metrics"]["escape_step/cosine"] = 100.0 + 10 * record["settings"]["seed"]
        (run / "result.json").write_text(json.dumps(record))
    shown = tables(runs, "--metric", "escape_step/cosine", cwd=runs).stdout
    head, _, softmax, *others = ([cell.strip() for cell in line.split("|")[1:5]] for line in shown.splitlines())
    assert head[2:] == ["escape_step/cosine", "escape_step/cosine: p, log-rank, Holm over 3"]
    assert softmax[2:] == ["0 of 4, by 600", "baseline"]
    assert [row[2:] for row in others] == [["4 of 4, median 115", f"{3 * 2 / 70:.3f}"]] * 3
    found = pd.read_csv(io.StringIO(tables(runs, "--format", "csv", cwd=runs).stdout))
    p = np.sort(found["p, Holm over 3"].dropna())
    alone = sorted(stats.ttest_ind([v - s for v in NEUTRENO], SOFTMAX, equal_var=False).pvalue for s in (0, 0.2, 0.4))
    assert p == pytest.approx(np.maximum.accumulate([min(1, (3 - i) * value) for i, value in enumerate(alone)]))


def test_the_course_of_training_is_drawn_layer_by_step_with_its_loss(runs):
    done = run_forked("scripts/figures.py", str(runs), "--over-steps", "--output", "c", cwd=runs)
    assert done.returncode == 0 and done.stdout == "figure: c.pdf, c.png\n", done.stderr
    assert (runs / "c.png").stat().st_size > 10_000
    both = run_forked("scripts/figures.py", str(runs), "--over-steps", "--initial", cwd=runs)
    assert_one_line_error(both, "--over-steps", "give one of them")
    nothing = run_forked("scripts/figures.py", str(runs), "--over-steps", "--metric", "J", cwd=runs)
    assert_one_line_error(nothing, "measured J at no common step")


def test_a_p_value_of_times_is_marked_as_a_difference_is_and_nothing_where_nothing_is_compared(tmp_path):
    for name, words in {"s": ["model=deit", "task.lr=0.2"], "n": ["task.lr=0.1"]}.items():
        for seed in range(4):
            run = make_run(tmp_path / f"{name}{seed}", *words, f"seed={seed}", value=90.0)
            record = json.loads((run / "result.json").read_text()) | {"within": {"escape_step/cosine": 600.0}}
            if name == "n":
                record["metrics"] |= {"escape_step/cosine": 100.0, "test/mine": 1.0}
            (run / "result.json").write_text(json.dumps(record))

    def last_row(metric):
        head, _, *_, last = tables(tmp_path, "--metric", metric, cwd=tmp_path).stdout.splitlines()
        return dict(zip(*([cell.strip() for cell in line.split("|")[1:-1]] for line in (head, last)), strict=True))

    times = last_row("escape_step/cosine")
    assert (
        times["escape_step/cosine: p, log-rank"] == f"{2 / 70:.3f} †"
        and times["† baseline differs in"] == "task.lr=0.2"
    )
    assert not any("†" in head for head in last_row("test/mine"))  # which softmax has not


def test_the_baseline_is_the_row_of_that_name_though_it_is_part_of_others(runs):
    make_run(runs / "more", "attention.lam=0.65", value=80.0)
    name = "digits deit-mini neutreno λ̃=0.6"
    found = pd.read_csv(io.StringIO(tables(runs, "--format", "csv", "--baseline", name, cwd=runs).stdout))
    other = found[found["runs"] == f"{name}5"].iloc[0]
    assert other[next(c for c in found if c.endswith(" difference"))] == pytest.approx(80 - np.mean(NEUTRENO))
    assert_one_line_error(
        run_forked("scripts/tables.py", str(runs), "--baseline", name[:-2], cwd=runs), "matches 2 rows"
    )


def test_unfinished_runs_are_listed_never_averaged(runs):
    make_run(runs / "n9", "seed=9", status="running")
    done = tables(runs, cwd=runs)
    assert "n9 is not finished (running)" in done.stdout and "93.75" in done.stdout


def test_what_departs_from_its_experiment_or_row_is_marked_and_paths_and_seeds_are_not(tmp_path):
    experiment = "experiment=table1/deit_tiny_neutreno"
    make_run(tmp_path / "own", experiment, "data.root=x", "seed=3", "trainer=gpu", "data.num_workers=1")
    make_run(tmp_path / "short", "experiment=table1/deit_tiny_softmax", "data.root=x", "trainer.max_epochs=3")
    row = ["model=deit", "attention=gfsa", "row=lab/gfsa"]
    make_run(tmp_path / "open", *row, "data=cifar10", "data.root=x")  # the data set is the user's
    make_run(tmp_path / "fast", *row, "task.lr=1")
    make_run(tmp_path / "lost", "model=deit", "attention=xsa", "row=mine/xsa")
    done = tables(tmp_path / "open", cwd=tmp_path).stdout
    assert "| lab/gfsa " in done and "departs" not in done
    done = tables(tmp_path / "own", tmp_path / "short", cwd=tmp_path).stdout
    assert "| table1/deit_tiny_neutreno " in done and "| table1/deit_tiny_softmax * " in done
    assert "deit_tiny_softmax departs: trainer.max_epochs=3 (experiment: 300)" in done
    done = tables(tmp_path / "fast", tmp_path / "lost", cwd=tmp_path).stdout
    assert "lab/gfsa departs: task.lr=1 (row: 0.002)" in done and "mine/xsa departs: no table mine" in done


def test_the_papers_figures_stand_beside_ours_with_their_provenance(tmp_path):
    run = make_run(tmp_path / "x", "experiment=table1/deit_tiny_neutreno", "data.root=x")
    result = json.loads((run / "result.json").read_text())
    result["metrics"] |= {"val/top1": 72.5, "val/top5": 91.0}
    (run / "result.json").write_text(json.dumps(result))
    done = tables(run, cwd=tmp_path).stdout
    assert "73.01 (from memory, unverified)" in done and "91.56 (from memory, unverified)" in done


def test_what_cannot_be_read_is_named_and_left_out(runs):
    (runs / "no_result").mkdir()
    half = make_run(runs / "half", "seed=5")
    (half / "result.json").write_text((half / "result.json").read_text()[:100])
    for name, key, value in (
        ("text", "metrics", "good"),
        ("seedless", "settings", {}),
        ("list", "oversmoothing", [1]),
        ("rank", "oversmoothing", [{"metric": "effective_rank", "mean": "3"}]),
    ):
        file = make_run(runs / name, "seed=6") / "result.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    done = tables(runs, runs / "no_result", cwd=runs)
    assert "Traceback" not in done.stderr and "93.75 ± 1.55" in done.stdout
    warnings = done.stderr.splitlines()
    assert all(line.startswith("warning: ") for line in warnings)
    for name in ("no_result", "half", "text", "seedless", "list", "rank"):
        assert any(name in line for line in warnings), name


def test_runs_of_several_tasks_give_a_table_each(runs):
    make_run(runs / "scene", "data=digit_scenes", value=40.0)
    done = tables(runs, cwd=runs).stdout
    assert done.count("| runs ") == 2 and "\nclassification\n" in done and "\nsegmentation\n" in done
    assert "test/miou" in done and "93.75 ± 1.55" in done
    one = tables(runs, "--metric", "test/miou", cwd=runs).stdout
    assert one.count("| runs ") == 1 and "93.75" not in one
    first, second = tables(runs, "--format", "csv", cwd=runs).stdout.split("\n\n")
    assert len(pd.read_csv(io.StringIO(first))) == 1 and len(pd.read_csv(io.StringIO(second))) == 2
    latex = tables(runs, "--format", "latex", cwd=runs).stdout
    assert latex.count("\\begin{tabular}") == 2 and "% segmentation" in latex


def test_no_finished_run_is_one_line(tmp_path):
    make_run(tmp_path / "a", status="failed")
    done = run_forked("scripts/tables.py", str(tmp_path / "a"), cwd=tmp_path)
    assert_one_line_error(done, "no run is finished")


def change(run, **more):
    file = run / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | more))
    return run


def rows_of(folder):
    """``{name: (seeds, difference cell)}`` of the printed table."""
    lines = [line.split("|")[1:-1] for line in tables(folder, cwd=folder).stdout.splitlines() if line.startswith("|")]
    header = [cell.strip() for cell in lines[0]]
    column = next((i for i, title in enumerate(header) if "difference" in title), None)
    return {r[0].strip(): (r[1].strip(), "" if column is None else r[column].strip()) for r in lines[2:]}


def test_the_same_setting_is_one_row_however_it_was_typed(tmp_path):
    make_run(tmp_path / "a", "attention.lam=1", "seed=0")
    make_run(tmp_path / "b", "attention.lam=1.0", "seed=1")
    make_run(tmp_path / "c", "model=deit", "attention=centered", "seed=0")
    typed = ["attention=xsa", "attention._target_=neutreno.attention.CenteredAttention"]
    make_run(tmp_path / "d", "model=deit", *typed, "seed=1")
    assert {name: seeds for name, (seeds, _) in rows_of(tmp_path).items()} == {
        "digits deit-mini neutreno λ̃=1": "2",
        "digits deit-mini centered": "2",
    }


def test_settings_that_differ_are_rows_apart_and_said(tmp_path):
    make_run(tmp_path / "a", "seed=0")
    make_run(tmp_path / "b", "seed=1", "task.lr=0.1")
    make_run(tmp_path / "c", "seed=0", "data.seed=7")
    change(make_run(tmp_path / "d", "seed=2"), digests={"train": "f" * 64})
    assert len(rows_of(tmp_path)) == 4
    assert any("task.lr=0.1" in name for name in rows_of(tmp_path))
    assert any("data.seed=7" in name for name in rows_of(tmp_path))
    assert any("train data=ffffffff" in name for name in rows_of(tmp_path))


def test_a_row_is_measured_against_the_baseline_that_is_nearest_in_all_else_and_of_its_data(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / f"s{seed}", "model=deit", f"seed={seed}", value=90.0 + seed)
        make_run(tmp_path / f"f{seed}", "model=deit", "task.lr=0.1", f"seed={seed}", value=50.0 + seed)
        make_run(tmp_path / f"n{seed}", "task.lr=0.1", f"seed={seed}", value=60.0 + seed)
        change(make_run(tmp_path / f"o{seed}", "attention.lam=0.2", f"seed={seed}"), digests={"train": "a" * 64})
        change(make_run(tmp_path / f"p{seed}", "model=deit", f"seed={seed}", "task.lr=1"), digests={"train": "b" * 64})
    found = rows_of(tmp_path)
    (row,) = [cell for name, (_, cell) in found.items() if "λ̃=0.6" in name]
    assert row.startswith("+10.00")
    (other,) = [cell for name, (_, cell) in found.items() if "λ̃=0.2" in name]
    assert other  # those without a digest may be the same data; that of another digest is not taken
    for run in ("s0", "s1", "f0", "f1"):
        shutil.rmtree(tmp_path / run)
    (other,) = [cell for name, (_, cell) in rows_of(tmp_path).items() if "λ̃=0.2" in name]
    assert other == ""


def test_a_difference_that_may_be_due_to_more_than_the_axes_is_marked_and_says_to_what(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / f"s{seed}", "model=deit", "task.lr=0.2", f"seed={seed}", value=90.0 + seed)
        make_run(tmp_path / f"n{seed}", "task.lr=0.2", f"seed={seed}", value=91.0 + seed)
        make_run(tmp_path / f"f{seed}", "task.lr=0.1", f"seed={seed}", value=60.0 + seed)
    marked, unmarked = (f"digits deit-mini neutreno λ̃=0.6 task.lr={lr}" for lr in (0.1, 0.2))
    found = rows_of(tmp_path)
    assert found[marked][1].endswith(" †") and not found[unmarked][1].endswith(" †")
    assert r" $\dagger$ " in tables(tmp_path, "--format", "latex", cwd=tmp_path).stdout

    def differing(*options):
        of = pd.read_csv(io.StringIO(tables(tmp_path, "--format", "csv", *options, cwd=tmp_path).stdout))
        return of.set_index("runs")["† baseline differs in"].dropna().to_dict()

    assert differing() == {marked: "task.lr=0.2"}
    others = dict.fromkeys(("digits deit-mini softmax task.lr=0.2", unmarked), "task.lr=0.1")
    assert differing("--baseline", marked) == others  # and so of a baseline that was asked for


def test_rows_that_share_a_name_are_told_apart(tmp_path):
    row = ["model=deit", "attention=gfsa", "row=lab/gfsa", "seed=0"]
    make_run(tmp_path / "a", *row)
    make_run(tmp_path / "b", *row, "data=cifar10", "data.root=/x")
    names = list(rows_of(tmp_path))
    assert any(name.startswith("lab/gfsa (digits ") for name in names)
    assert any(name.startswith("lab/gfsa (cifar10 ") for name in names)


@pytest.mark.parametrize(
    "more",
    [
        {"digests": {"train": 5}},
        {"settings": {"data": "digits", "model": None, "seed": 0}},
        {"format": 1},
        {"labels": 3},
        {"row": 3},
    ],
)
def test_an_edited_record_is_named_and_left_out(tmp_path, more):
    make_run(tmp_path / "a")
    change(make_run(tmp_path / "b", "seed=1"), **more)
    done = tables(tmp_path, cwd=tmp_path)
    assert "warning: " in done.stderr and "b/result.json" in done.stderr and "Traceback" not in done.stderr


def test_the_named_baseline_goes_before_what_equals_it(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / f"s{seed}", "model=deit", f"seed={seed}", value=90.0)
        make_run(tmp_path / f"z{seed}", "attention.lam=0", f"seed={seed}", value=80.0)
        make_run(tmp_path / f"n{seed}", f"seed={seed}", value=91.0)
    found = rows_of(tmp_path)
    assert found["digits deit-mini softmax"][1] == "baseline"
    assert found["digits deit-mini neutreno λ̃=0.6"][1].startswith("+1.00")


def test_what_evaluations_found_beside_a_run_is_a_figure_of_it(runs):
    for seed in range(4):
        (runs / f"s{seed}/evaluation.json").write_text(json.dumps({"metrics": {"val_mine/x": 10.0 + seed}}))
    assert "11.50 ± 1.29" in tables(runs, "--metric", "val_mine/x", cwd=runs).stdout


def test_a_papers_figures_that_are_none_are_named_and_a_folder_counts_once(runs):
    import yaml

    file = runs / "s0/config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"paper": {"test/top1": 3}}))
    done = tables(runs, runs / "s1", cwd=runs)
    assert "paper.test/top1" in done.stderr and "same run" not in done.stdout + done.stderr
    assert "91.00 ± 1.50" in done.stdout  # of the three other seeds
