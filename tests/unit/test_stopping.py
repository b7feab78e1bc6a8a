"""Signals within and after a run, in this process."""

import multiprocessing
import os
import signal
import threading

import pytest

from neutreno import stopping as module
from neutreno.stopping import STARTED_BY, die_with_rank_zero, stopping

HANDLED = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture(autouse=True)
def as_it_was():
    """Python's own handlers within a test, whatever started the tests; theirs after it."""
    before = [signal.signal(signal.SIGTERM, signal.SIG_DFL), signal.signal(signal.SIGINT, signal.default_int_handler)]
    yield
    for number, handler in zip(HANDLED, before, strict=True):
        signal.signal(number, handler)


def state():
    fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(fd)
    watching = [thread for thread in threading.enumerate() if thread.name == "stopping"]
    return [signal.getsignal(number) for number in HANDLED], fd, len(watching), os.environ.get(STARTED_BY)


@pytest.mark.parametrize("kill", [None, lambda number: None], ids=["one process", "several"])
@pytest.mark.parametrize("error", [None, ValueError])
def test_nothing_is_left_of_it_where_no_signal_came(kill, error):
    before = state()
    try:
        with stopping(kill):
            if error:
                raise error
    except ValueError:
        pass
    for thread in threading.enumerate():
        if thread.name == "stopping":
            thread.join(5)
    assert state() == before and not module._stops


@pytest.mark.parametrize("number", HANDLED, ids=lambda number: number.name)
@pytest.mark.parametrize("comes_of_it", [None, SystemExit, RuntimeError])
def test_a_signal_ends_in_an_interruption_whatever_comes_of_it(number, comes_of_it):
    with pytest.raises(KeyboardInterrupt, match=number.name), stopping(None) as stop:
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt as error:
            if comes_of_it:
                raise comes_of_it("a loading worker was killed") from error
    assert stop.number == number


def test_a_second_signal_does_not_cut_short_what_was_begun_at_the_first():
    said = []
    with pytest.raises(KeyboardInterrupt), stopping(None):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGTERM)
            said.append("recorded")
            raise
    assert said == ["recorded"]


def test_the_end_of_a_loading_worker_does_not_cut_short_what_was_begun_at_the_signal():
    def complain(*_):  # as torch's handler does, wherever the process is
        raise RuntimeError("DataLoader worker is killed by signal: Terminated")

    before, said = signal.signal(signal.SIGCHLD, complain), []
    try:
        with pytest.raises(KeyboardInterrupt, match=r"^resume=true$"), stopping(None):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except KeyboardInterrupt as error:
                os.kill(os.getpid(), signal.SIGCHLD)
                said.append("recorded")
                raise KeyboardInterrupt("resume=true") from error
        assert said == ["recorded"] and signal.getsignal(signal.SIGCHLD) is complain
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_what_is_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stopping(None):
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_a_forked_process_ends_at_the_signal_by_itself():
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()

    def wait():
        there.send("forked")  # Python forgets what comes before
        signal.pause()

    with stopping(None):
        child = context.Process(target=wait)
        child.start()
        assert here.poll(20)
        child.terminate()
        child.join(20)
    assert child.exitcode == -signal.SIGTERM


@pytest.mark.parametrize("environment", [{"LOCAL_RANK": "0"}, {}, {"LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "x"}])
def test_what_merely_inherits_the_variable_does_not_end_with_rank_zero(monkeypatch, environment):
    """A shell below rank 0, ranks of torchrun."""
    assert parents(monkeypatch, environment) == []


def test_a_rank_that_rank_zero_started_ends_with_it(monkeypatch):
    assert parents(monkeypatch, {"LOCAL_RANK": "1"}) == [123]


def parents(monkeypatch, environment):
    """With which processes this one would end, where 123 starts the other ranks."""
    found = []
    for name in ("LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {STARTED_BY: "123", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "die_with", found.append)
    die_with_rank_zero()
    assert STARTED_BY not in os.environ
    return found
