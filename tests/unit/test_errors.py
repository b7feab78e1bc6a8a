"""What an error says of itself."""

import multiprocessing
import signal
from datetime import timedelta

import pytest
from torch.distributed import DistNetworkError, TCPStore

from neutreno.errors import explain

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


def test_a_process_that_is_gone_while_others_begin_to_talk_is_told_in_a_line(client):
    with pytest.raises(DistNetworkError) as caught:
        client.get("where it listens")
    assert explain(caught.value) == "another process of this run ended; see its output"


def test_a_process_that_was_never_there_is_not_said_to_have_ended():
    with pytest.raises(DistNetworkError) as caught:
        TCPStore(HOST, 1, is_master=False, timeout=timedelta(seconds=0.1))
    assert explain(caught.value) is None
