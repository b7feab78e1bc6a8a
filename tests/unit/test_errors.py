"""What an error says of itself."""

import multiprocessing
import signal
from datetime import timedelta

import pytest
from torch.distributed import DistNetworkError, TCPStore

from neutreno.errors import InputError, explain, report

HOST, LIMIT = "127.0.0.1", timedelta(seconds=20)


def serve(said):
    store = TCPStore(HOST, 0, is_master=True, timeout=LIMIT)
    said.send(store.port)
    signal.pause()


@pytest.fixture
def client():
    """``client(port)`` of a server that has been killed since it was reached."""
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("fork").Process(target=serve, args=(there,))
    server.start()
    assert here.poll(20)
    store = TCPStore(HOST, here.recv(), is_master=False, timeout=LIMIT)
    store.set("here", "yes")
    server.kill()
    server.join()
    return store


def test_a_process_that_is_gone_while_others_begin_to_talk_is_told_in_a_line(client, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(DistNetworkError) as caught:
        client.get("where it listens")
    assert report(caught.value) == 2
    assert capsys.readouterr().err == "error: another process of this run ended; see its output\n"


def test_what_all_processes_find_before_they_talk_the_first_says(monkeypatch, capsys):
    for rank, said in (("0", "error: x\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        assert report(InputError("x")) == 2 and capsys.readouterr().err == said


def test_a_process_that_was_never_there_is_not_said_to_have_ended():
    with pytest.raises(DistNetworkError) as caught:
        TCPStore(HOST, 1, is_master=False, timeout=timedelta(seconds=0.1))
    assert explain(caught.value) is None
