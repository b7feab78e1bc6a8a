"""What is said while nothing else is: never minutes without a line."""

import re
import subprocess
import sys
import time

import pytest

from neutreno import console


@pytest.fixture
def quick(monkeypatch):
    """A second that lasts a hundredth of one."""
    now = time.monotonic
    monkeypatch.setattr(console.time, "monotonic", lambda: 100 * now())


def test_what_goes_on_is_said_with_its_time_until_it_ends(capsys, quick):
    with console.heartbeat(2):
        console.doing("reading the data", "batch 3 of 8")
        time.sleep(1.2)
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(re.fullmatch(r"reading the data for [\d:]+, batch 3 of 8", line) for line in lines)
    time.sleep(0.6)
    assert not capsys.readouterr().out


def test_nothing_is_said_where_something_else_just_was(capsys):
    with console.heartbeat(1):
        console.doing("training")
        for _ in range(30):
            time.sleep(0.05)
            console.said()
    assert not capsys.readouterr().out


def test_a_reader_who_leaves_does_not_end_the_wait_in_a_traceback():
    program = """
import time
from neutreno import console

print("first", flush=True)
with console.heartbeat(1):
    console.doing("waiting")
    time.sleep(2)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"first\n"
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


def test_other_processes_of_a_run_stay_silent(capsys, quick, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with console.heartbeat(1):
        console.doing("training")
        time.sleep(0.6)
    assert not capsys.readouterr().out
