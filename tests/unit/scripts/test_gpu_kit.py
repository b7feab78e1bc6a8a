"""Commands of the kit at full size, which no test runs: they pass the gate, and a plan fits its seconds."""

import shlex
from contextlib import nullcontext

import kit.runs
import pytest
from kit import Kit, Missing

from neutreno.config.composing import compose
from neutreno.config.gate import check


@pytest.fixture
def full_size(tmp_path):
    for label in range(10):
        (tmp_path / f"cifar10/train/{label}").mkdir(parents=True)
        for number in range(50):
            (tmp_path / f"cifar10/train/{label}/{number}.png").touch()
    return Kit("cpu", False, tmp_path, tmp_path / "cifar10", 460.0, {"train": {}})


def test_the_commands_of_every_part_pass_the_gate(full_size, monkeypatch, tmp_path):
    called = []
    monkeypatch.setattr(kit.runs, "call", lambda script, *words: called.append((script, words)) or "")
    monkeypatch.chdir(tmp_path)
    full_size.rows["train"]["plan"] = {"epochs": 12}
    for part in (kit.runs.auto, kit.runs.cifar10, kit.runs.train):
        for case, run in part(full_size).items():
            if case not in ("one process", "plan"):
                with pytest.raises(KeyError) if part is kit.runs.auto else nullcontext():
                    run()  # preflight's report is missing
    commands = [words for script, words in called if script == "train.py"]
    assert len(commands) == 4
    for words in commands:
        single = [word.partition(",")[0] for word in words if word != "-m"]
        composed = compose(single)
        check(composed)
        assert composed.settings["model"]["size"] in ("tiny", "small"), shlex.join(words)
    assert "seed=0,1,2,3,4" in commands[-1] and "launcher.max_parallel=10" in commands[-1]
    assert "trainer.max_epochs=12" in commands[-1]


def test_as_many_epochs_are_planned_as_the_seconds_allow(full_size):
    with pytest.raises(Missing, match="of the part cifar10"):
        kit.runs.planned(full_size)
    full_size.rows["cifar10"] = {"one process": {"images/s": 100.0}, "several at once": {"images/s": 200.0}}
    assert kit.runs.planned(full_size)["epochs"] == int(0.8 * 400 * 200 / (10 * 450))
    full_size.seconds = 61
    assert kit.runs.planned(full_size)["epochs"] == 1
    full_size.seconds = 10**6
    assert kit.runs.planned(full_size)["epochs"] == 100
    full_size.cifar10 = None
    with pytest.raises(Missing, match="--cifar10 FOLDER"):
        kit.runs.train(full_size)
