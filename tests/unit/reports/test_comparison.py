"""Tests of differences: of times to an event, and of many rows at once."""

import json
from itertools import combinations

import numpy as np
import pytest
from support import make_run

from neutreno.errors import InputError
from neutreno.reports.comparison import Times, beyond_axes, difference, group_runs, holm, logrank
from neutreno.reports.panels import lines_of
from neutreno.reports.reading import read_run, read_runs


def observed_less_expected(at, came, side):
    """The log-rank statistic, written out: events on one side less those expected, over their standard deviation."""
    excess, variance = 0.0, 0.0
    for time in {t for t, c in zip(at, came, strict=True) if c}:
        risk, events = at >= time, (at == time) & came
        n, d, own = risk.sum(), events.sum(), (risk & side).sum()
        excess += (events & side).sum() - d * own / n
        variance += own / n * (1 - own / n) * d * (n - d) / (n - 1) if n > 1 else 0.0
    return excess / variance**0.5 if variance else 0.0


SIDES = {
    "apart": ([100, 100, 150, 200, 250], [600, 600, 500, 600, 600], 0b11111_00100),
    "ties and censored runs on both sides": ([50, 100, 100, 600, 600], [100, 150, 600, 600, 600], 0b11100_11000),
}


@pytest.mark.parametrize("a, b, came", SIDES.values(), ids=SIDES.keys())
def test_the_log_rank_test_is_that_of_all_partitions_of_the_runs(a, b, came):
    at, came = np.array(a + b), np.array([digit == "1" for digit in f"{came:010b}"])
    found = logrank(Times(at[:5], came[:5]), Times(at[5:], came[5:]))
    every = [observed_less_expected(at, came, np.isin(np.arange(10), side)) for side in combinations(range(10), 5)]
    own = observed_less_expected(at, came, np.arange(10) < 5)
    tails = [np.mean([sign * value >= sign * own - 1e-9 for value in every]) for sign in (1, -1)]
    assert found == pytest.approx(min(1.0, 2 * min(tails)))


def test_five_runs_that_all_escape_before_five_that_never_do_are_told_apart_as_far_as_ten_runs_can():
    early, never = Times(np.full(5, 100.0), np.full(5, True)), Times(np.full(5, 600.0), np.full(5, False))
    assert logrank(early, never) == pytest.approx(2 / 252)


def test_where_nothing_tells_the_sides_apart_p_is_one_and_one_run_tells_nothing():
    never = Times(np.full(3, 600.0), np.full(3, False))
    at_once = Times(np.full(3, 50.0), np.full(3, True))
    assert logrank(never, never) == logrank(at_once, at_once) == 1.0
    assert np.isnan(logrank(never, Times(np.array([50.0]), np.array([True]))))


def test_holms_p_values_are_those_of_his_procedure():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []
    assert holm([np.nan, 0.03]) == pytest.approx([np.nan, 0.03], nan_ok=True)


def test_a_censored_time_is_never_averaged(tmp_path):
    for seed in range(4):
        for words in (["model=deit"], []):
            run = make_run(tmp_path / f"{len(words)}{seed}", *words, f"seed={seed}")
            record = json.loads((run / "result.json").read_text()) | {"within": {"escape": 600.0}}
            if not words or seed == 3:  # three of the softmax runs do not escape
                record["metrics"]["escape"] = 100.0
            (run / "result.json").write_text(json.dumps(record))
    softmax, neutreno = group_runs(read_runs([tmp_path])[0])[0]
    mean, low, high, p = difference(neutreno, softmax, "escape")
    assert np.isnan([mean, low, high]).all() and p == logrank(neutreno.times("escape"), softmax.times("escape"))
    assert softmax.times("escape").came.tolist() == [False] * 3 + [True] and softmax.times("test/top1") is None
    softmax.runs[0].result.pop("within")  # where it was not looked for in all runs, nothing is told, nor averaged
    assert np.isnan(difference(neutreno, softmax, "escape")).all()
    with pytest.raises(InputError, match="time to an event"):
        lines_of([softmax, neutreno], "attention.lam", "escape", "cosine")


def test_an_option_that_came_later_and_is_null_parts_no_runs(tmp_path):
    for seed in range(4):
        config = make_run(tmp_path / f"{seed}", f"seed={seed}") / "config.yaml"
        if seed < 2:
            config.write_text(config.read_text().replace("  at_steps: null\n", ""))
    assert [len(group.runs) for group in group_runs(read_runs([tmp_path])[0])[0]] == [4]


GRAPH = ["data=digits_graph", "model=gcn"]
BEYOND = {  # two rows, and in what the second differs in other settings than those of the axes
    "the method alone": (["attention.lam=0.2"], ["model=deit"], []),
    "an axis whose value stands in the recipe": (
        [*GRAPH, "propagation=neutreno", "recipe.lam=0.4"],
        [*GRAPH, "propagation=plain"],
        [],
    ),
    "a rate and a depth": ([], ["model=deit", "task.lr=0.1", "model.depth=6"], ["model.depth=6", "task.lr=0.1"]),
    "other data and another model": (GRAPH, [], ["data=digits", "model=deit", "probe.every_n_epochs=10"]),
}


@pytest.mark.parametrize(("own", "others", "said"), BEYOND.values(), ids=BEYOND.keys())
def test_what_may_be_due_to_more_than_the_method_is_named_and_nothing_else(own, others, said, tmp_path):
    run, other = (read_run(make_run(tmp_path / name, *words)) for name, words in (("a", own), ("b", others)))
    assert beyond_axes(run, other) == said
    assert beyond_axes(run, run) == []


def test_data_that_one_side_has_no_digest_of_may_be_the_same(tmp_path):
    runs = [make_run(tmp_path / name) for name in "abc"]
    for run, digest in zip(runs, (None, "1" * 64, "2" * 64), strict=True):
        record = json.loads((run / "result.json").read_text())
        record["digests"] = {"train": digest} if digest else {}
        (run / "result.json").write_text(json.dumps(record))
    a, b, c = map(read_run, runs)
    assert beyond_axes(a, b) == beyond_axes(b, a) == [] and beyond_axes(b, c) == ["train data=22222222"]
