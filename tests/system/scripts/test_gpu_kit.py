"""The kit's command as a user types it, at reduced size on the CPU; what needs a GPU says so."""

import contextlib
import json
import os
import signal
import time
import zipfile
from functools import partial

import kit
import kit.carry
import kit.measure
import kit.runs
import kit.supervise
import pytest
from support import Forked, assert_one_line_error, make_image, run_forked, runs_are_forks

SCRIPT = "scripts/gpu_kit.py"
CPU = ["--device", "cpu", "--small"]


def parts_are_forks(change=lambda: None):
    """A ``setup`` of the kit: its parts, and the commands that they run, are forks; ``change`` is called in each."""

    def start(command, log, environment):
        def setup():
            with contextlib.suppress(PermissionError):
                os.setsid()
            os.environ.update(environment)
            kit.runs.execute = partial(run_forked, cwd=log.parent, setup=runs_are_forks)
            change()

        return Forked(SCRIPT, *command[2:], cwd=log.parent, setup=setup, log=log)

    kit.supervise.start = start


def call(tmp_path, *words, change=lambda: None, minutes="5"):
    places = ["--out", "found", "--work", "work", "--carried", "carried", *CPU, "--minutes", minutes]
    done = run_forked(SCRIPT, *places, *words, cwd=tmp_path, setup=lambda: parts_are_forks(change))
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done.stdout, json.loads((tmp_path / "found/gpu_kit.json").read_text())


@pytest.fixture
def carried(tmp_path):
    """Images of ten classes, and a wheel that is not installed."""
    for split, count in (("train", 12), ("test", 2)):
        for label in range(10):
            folder = tmp_path / f"images/{split}/class{label}"
            folder.mkdir(parents=True)
            for i in range(count):
                make_image(100 * label + i, 32).save(folder / f"{i}.png")
    folder = tmp_path / "carried"
    folder.mkdir()
    kit.carry.pack(tmp_path / "images", folder / "cifar10.tar.xz", 10**7)
    wheel = folder / "kit_probe-1.0-py3-none-any.whl"
    about = {"METADATA": "Metadata-Version: 2.1\nName: kit-probe\nVersion: 1.0\n", "RECORD": ""}
    about["WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("kit_probe.py", "answer = 42\n" * 1000)
        file.writestr("tests/test_probe.py", "")
        for name, content in about.items():
            file.writestr(f"kit_probe-1.0.dist-info/{name}", content)
    kit.carry.squeezed(wheel)
    return folder


def test_the_whole_kit_on_a_cpu(carried, tmp_path):
    out, state = call(tmp_path)
    assert (tmp_path / "work/site/kit_probe.py").exists() and state["packages"]["missing"] == []
    assert {name: part["status"] for name, part in state["parts"].items()} == dict.fromkeys(kit.PARTS, "done"), out
    lines = {name: part["reason"] for name, part in state["parts"].items()}
    assert "needs a GPU" in lines.pop("tests") and lines.pop("train") == ""
    assert set(lines.values()) == {
        "peak memory needs a GPU",
        "the largest micro-batch needs a GPU",
        "kernels need a GPU",
        "GPU busy share needs a GPU",
    }
    row = state["parts"]["steps"]["rows"]["small, N = 17"]["NeuTRENO against softmax"]
    assert row["n"] == 3 and row["low"] <= row["ratio"] <= row["high"] and len(row["ms"]) == 2
    assert state["parts"]["graph"]["rows"]["tiny, N = 17, graph breaks"]["graph breaks"]["NeuTRENO"] == 0
    assert state["parts"]["cifar10"]["rows"]["several at once"]["processes"] == 2
    assert len(state["parts"]["train"]["rows"]["runs"]["test/top1"]) == 2
    assert all(part["environment"]["hardware"]["cpu"] for part in state["parts"].values())

    files = {path.name for path in (tmp_path / "found").iterdir()}
    assert files == {"gpu_kit.json", "gpu_kit.md", "attention.png", "steps.png", "similarity.png"}
    page = (tmp_path / "found/gpu_kit.md").read_text()
    for part in kit.PARTS.values():
        assert f"## {part.title}" in page
    assert "no figure here means anything" in page and "| kernels need a GPU |" in page
    assert "python train.py -m data=cifar10 data.root=cifar10" in page and "neutreno λ̃=0.6" in page
    assert state["parts"]["steps"]["environment"]["hardware"]["cpu"] in page and "n = 3)" in page
    assert str(tmp_path) not in page.replace(" ".join(state["calls"][0]["command"].split()[:2]), "")

    again, state = call(tmp_path)
    assert again.count("done in a former call") == len(kit.PARTS) and len(state["calls"]) == 2
    (tmp_path / "found").rename(tmp_path / "fetched")  # the copy in the working folder goes on, too
    assert call(tmp_path)[0].count("done in a former call") == len(kit.PARTS)


def good(_):
    return {"one": lambda: {"batch": 1}, "two": lambda: {"batch": 2}}


def fails_in_many_ways():
    def fail(*_):
        raise ValueError("no such kernel")

    kit.measure.steps = lambda _: {**good(_), "bad": fail}
    kit.measure.compiled = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    kit.measure.attention = lambda _: {**good(_), "slow": lambda: time.sleep(60)}
    kit.runs.tests = lambda _: {"a package": lambda: __import__("no_such_package")}
    kit.measure.graph = good


PARTS = ["--parts", "tests", "steps", "compiled", "attention", "auto", "graph"]


def test_a_part_that_fails_leaves_the_others_and_is_a_line(tmp_path, monkeypatch):
    monkeypatch.setitem(kit.PARTS, "attention", kit.Part("measure:attention", "Attention", most=5))
    _, state = call(tmp_path, *PARTS, change=fails_in_many_ways)
    monkeypatch.undo()
    parts = state["parts"]
    states = ["missing", "failed", "failed", "stopped", "missing", "done"]
    assert [parts[name]["status"] for name in PARTS[1:]] == states
    assert parts["tests"]["reason"] == "the package no_such_package"
    assert parts["steps"]["reason"] == "1 of 3 cases, first bad: ValueError: no such kernel"
    assert parts["compiled"]["reason"].startswith("killed by signal 9")
    assert parts["attention"]["reason"] == "its time was up after 2 cases; the next call goes on"
    assert parts["auto"]["reason"].startswith("the images of CIFAR-10")
    assert list(parts["graph"]["rows"]) == ["one", "two"]
    page = (tmp_path / "found/gpu_kit.md").read_text()
    assert all(part["reason"] in page for part in parts.values())

    def repaired():
        kit.measure.steps = lambda _: {"one": lambda: 1 / 0, "bad": lambda: {"batch": 3}}  # what is there is kept
        kit.measure.attention = lambda _: {"one": lambda: 1 / 0, "slow": lambda: {"batch": 3}}
        kit.measure.compiled = good

    out, state = call(tmp_path, *PARTS, change=repaired)
    assert "graph      done in a former call" in out
    for name in ("steps", "attention", "compiled"):
        assert state["parts"][name]["status"] == "done", state["parts"][name]
    assert [row["batch"] for row in state["parts"]["attention"]["rows"].values()] == [1, 2, 3]


def test_no_part_begins_that_the_minutes_do_not_allow(tmp_path):
    _, state = call(tmp_path, "--parts", "steps", "graph", minutes="0.06", change=fails_in_many_ways)
    for name in ("steps", "graph"):
        part = state["parts"][name]
        assert part["status"] == "not begun" and "s were left, it needs 1 s" in part["reason"] and not part["rows"]
    assert "it needs 1 s to be worth beginning" in (tmp_path / "found/gpu_kit.md").read_text()
    _, state = call(tmp_path, "--parts", "graph", change=fails_in_many_ways)
    assert state["parts"]["graph"]["status"] == "done" and state["parts"]["steps"]["status"] == "not begun"


def test_wrong_calls_are_said_in_a_line(tmp_path):
    assert_one_line_error(run_forked(SCRIPT, "--out", "found", "--minutes", "0", cwd=tmp_path), "--minutes 0")
    (tmp_path / "file").touch()
    assert_one_line_error(run_forked(SCRIPT, "--out", "file", *CPU, cwd=tmp_path), "--out", "File exists")
    (tmp_path / "found").mkdir()
    record = tmp_path / "found/gpu_kit.json"
    for content, words in (("[]", "not a record"), ('{"device": "cuda", "small": false}', "choose another --out")):
        record.write_text(content)
        assert_one_line_error(run_forked(SCRIPT, "--out", "found", "--work", "work", *CPU, cwd=tmp_path), words)
    shown = run_forked(SCRIPT, "--help", cwd=tmp_path).stdout
    assert "--carry --cifar10 FOLDER" in shown and "--out DIR --minutes 8" in shown
