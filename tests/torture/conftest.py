"""Generated cases: how many, from which seed, and what they ended in.

A case is a test, drawn from the seed, its kind and its number alone. A minute of them is part of every run of the
tests; ``pytest tests/torture --kills 120 --journal FILE`` is the long form: FILE takes a line of JSON for each case
that has ended; those that held, from the same seed and commit, are not repeated. Their table is printed at the end.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from filelock import FileLock
from support import ROOT, Forked
from support.same_run import dies_after
from support.torture import SHORT_RUN, Hang, SilentlyWrong, ended
from tabulate import tabulate

SHORT = {"kill": 5, "damage": 16, "hostile": 8, "mistake": 12}
PER_KILL = {"damage": 5, "hostile": 1.5, "mistake": 5.25}
OUTCOMES = ("held", "failed", "silently wrong", "hang")
RUN = pytest.StashKey[dict]()  # what all cases of a run of the tests share: seed and commit
TOLD = pytest.StashKey[dict]()  # the cases of that seed and commit by kind and number


def pytest_addoption(parser):
    group = parser.getgroup("torture", "generated kills, damages, hostile files and mistakes")
    group.addoption("--kills", type=int, help="number of kills; the others in proportion (default: a minute of all)")
    for option in ("damages", "hostile", "mistakes"):
        group.addoption(f"--{option}", type=int, help="number of this kind")
    group.addoption("--seed", type=int, help="what all cases are drawn from (default: 0)")
    group.addoption("--journal", type=Path, help="takes a line for each case; those in it are not repeated")


def option(config, name):
    """None where it is not given, or where these options are unknown: in a run of all tests."""
    return config.getoption(name, None)


def counts(config):
    kills = option(config, "kills")
    found = SHORT if kills is None else {"kill": kills, **{k: round(n * kills) for k, n in PER_KILL.items()}}
    given = {"damage": "damages", "hostile": "hostile", "mistake": "mistakes"}
    return found | {kind: n for kind, name in given.items() if (n := option(config, name)) is not None}


def pytest_generate_tests(metafunc):
    for kind in SHORT:
        if kind in metafunc.fixturenames:
            metafunc.parametrize(kind, range(counts(metafunc.config)[kind]), indirect=True)


def drawn(kind):
    """A fixture: what to draw a case from; it notes in ``case.told`` what it drew."""

    @pytest.fixture(name=kind)
    def draw(request, record_property):
        run, number = request.config.stash[RUN], request.param
        if request.config.stash[TOLD].get((kind, number), {}).get("outcome") == "held":
            pytest.skip("held, says the journal")
        draw = random.Random(f"{run['seed']} {kind} {number}")
        draw.number, draw.told = number, {"kind": kind, "number": number, **run}
        record_property("case", draw.told)  # filled while the test runs
        return draw

    return draw


kill, damage, hostile, mistake = map(drawn, SHORT)


def pytest_configure(config):
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    run = {"seed": option(config, "seed") or 0, "commit": commit}
    file = option(config, "journal")
    first = not hasattr(config, "workerinput")  # of xdist's processes
    told = cases_in(file, mend=first) if file is not None and file.exists() else []
    config.stash[RUN] = run
    config.stash[TOLD] = {(c["kind"], c["number"]): c for c in told if run.items() <= c.items()}
    if first:
        config.pluginmanager.register(Journal(config, file), "torture")


def cases_in(journal, mend):
    """A last line that was not written to its end counts for nothing; ``mend`` removes it from the file."""
    lines = journal.read_text().splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
        if mend:
            journal.write_text("".join(lines))
    return [json.loads(line) for line in lines]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    case = dict(report.user_properties).get("case")
    if case is not None and call.when == "call" and not report.skipped:
        error = call.excinfo and call.excinfo.type
        case["outcome"] = {None: "held", SilentlyWrong: "silently wrong", Hang: "hang"}.get(error, "failed")
        case["seconds"] = round(call.duration, 2)
        if error is not None:
            said = str(call.excinfo.value)
            case["said"] = said if len(said) < 4000 else f"{said[:2000]} … {said[-2000:]}"
    return report


class Journal:
    """Writes down every case when it has ended, and the table at the end."""

    def __init__(self, config, file):
        self.config, self.file = config, file

    def pytest_runtest_logreport(self, report):
        case = dict(report.user_properties).get("case", {})
        if report.when != "call" or "outcome" not in case:
            return
        self.config.stash[TOLD][case["kind"], case["number"]] = case
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a") as journal:
                journal.write(json.dumps(case) + "\n")

    def pytest_terminal_summary(self, terminalreporter):
        cases = self.config.stash[TOLD].values()
        if cases and option(self.config, "kills") is not None:
            terminalreporter.section("torture")
            terminalreporter.write_line(table(cases))


def landed_of(cases):
    """How many kills met a run that had not ended, of how many; empty for other kinds."""
    kills = [kill["landed"] for case in cases for kill in case.get("kills", ())]
    return f"{sum(kills)} of {len(kills)}" if kills else ""


def table(cases):
    """Markdown: a row for each kind and way."""
    groups = {}
    for case in cases:
        groups.setdefault((case["kind"], case.get("way", "")), []).append(case)
    rows = []
    for (kind, way), group in sorted(groups.items()):
        found = Counter(case["outcome"] for case in group)
        seconds = round(sum(case["seconds"] for case in group))
        rows.append([kind, way, len(group), *(found[outcome] for outcome in OUTCOMES), seconds, landed_of(group)])
    rows.append(["all", "", *(sum(row[i] for row in rows) for i in range(2, 8)), ""])
    return tabulate(rows, ["kind", "way", "tried", *OUTCOMES, "seconds", "kills that landed"], tablefmt="github")


@pytest.fixture(scope="session")
def once(tmp_path_factory, worker_id):
    """``once(name, make)``: the folder ``name``, which ``make(folder)`` filled, for all processes of the tests."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared if worker_id == "master" else shared.parent

    def get(name, make):
        folder = shared / name
        with FileLock(f"{folder}.lock"):
            if not (folder / "made").exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a making that failed
                folder.mkdir()
                make(folder)
                (folder / "made").touch()
        return folder

    return get


@pytest.fixture
def runs(once):
    """``whole`` (evaluated, too), ``killed``, ``other`` (another seed's) and ``good`` (which is shown beside them):
    each with its run in outputs/x."""

    def make(folder):
        commands = {
            "whole": [("train.py", *SHORT_RUN), ("evaluate.py", "outputs/x")],
            "other": [("train.py", *SHORT_RUN, "seed=1")],
            "good": [("train.py", *SHORT_RUN, "seed=1", "attention.lam=0.5")],
            "killed": [("train.py", *SHORT_RUN)],
        }
        for name in commands:
            (folder / name).mkdir()
            for command in commands[name]:
                setup = {"setup": dies_after(step=5)} if name == "killed" else {}
                done = ended(Forked(*command, cwd=folder / name, **setup))
                assert done.returncode == (-signal.SIGKILL if name == "killed" else 0), done.stderr

    return once("short runs", make)
