"""Run folders of anybody's, through the commands as users type them: nothing of them runs."""

import shutil

import pytest
import yaml
from support import TINY, assert_one_line_error, make_run, run_forked


def plant(folder, cwd):
    """A run whose reader executes its root, where it is not refused."""
    run = make_run(folder, "data=cifar10", "data.root=x", *TINY[:4])
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"] |= {"reader": "wds/x", "root": f"pipe:touch {cwd / 'ran'} #", "on_device": False}
    config["data"] |= {"splits": {"train": "a.tar", "val": "a.tar", "test": None}, "samples": {"train": 8, "val": 8}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return run


READER = ["data.reader=wds/x", "decides what reads the data"]
PIPE = ["data.root=pipe:touch ", "is no path on this machine"]
COMMANDS = {
    "evaluate": (["evaluate.py", "run"], READER),
    "evaluate, the reader trusted": (["evaluate.py", "run", "trust_readers=true"], PIPE),
    "evaluate, the reader typed": (["evaluate.py", "run", "data.reader=wds/x"], PIPE),
    "theory": (["scripts/theory.py", "run"], READER),
    "theory, the reader trusted": (["scripts/theory.py", "run", "--trust-readers"], PIPE),
    "profile": (["scripts/profile_model.py", "run"], READER),
}


@pytest.mark.parametrize("command, words", COMMANDS.values(), ids=COMMANDS.keys())
def test_the_data_of_a_run_folder_executes_nothing(tmp_path, command, words):
    plant(tmp_path / "run", tmp_path)
    done = run_forked(*command, cwd=tmp_path)
    assert not (tmp_path / "ran").exists()
    assert_one_line_error(done, *words)


def test_a_reader_that_is_typed_or_trusted_reads(hub_folder, tmp_path):
    """As far as the checkpoint, which this run does not have."""
    words = ["data=cifar10", "data.root=null", f"data.reader=hfds/{hub_folder}", "data.num_classes=2", *TINY[:3]]
    words += ["data.splits={train:train,val:validation,test:null}", "data.on_device=false", "data.num_workers=0"]
    make_run(tmp_path / "run", *words)
    for more in (["trust_readers=true"], [f"data.reader=hfds/{hub_folder}"]):
        assert_one_line_error(run_forked("evaluate.py", "run", *more, cwd=tmp_path), "no checkpoint at")


def test_a_sweep_goes_on_beside_a_foreign_folder(tmp_path):
    foreign = make_run(tmp_path / "outputs/digits-deit_mini-softmax-seed0", "model=deit")
    (foreign / "result.json").write_text("[" * 100_000)
    shutil.copytree(foreign, tmp_path / "outputs/other")
    ran = tmp_path / "outputs/digits-deit_mini-softmax-seed1"
    make_run(ran, "model=deit", "seed=1", "data=digits")
    done = run_forked("train.py", "-m", "model=deit", "seed=0,1", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "[1 of 2 runs done, 0 running, 0 left, 1 failed]" in done.stdout, done.stdout
    assert "result.json is not readable JSON (nested too deep)" in done.stderr and "90.00" in done.stdout
