"""A file with a main is a command."""

import contextlib
import os
import signal
import sys

import pytest

from neutreno import cli
from neutreno.__main__ import commands, main


def test_a_file_more_with_a_main_is_a_command_more(tmp_path, monkeypatch, capsys):
    (tmp_path / "greet.py").write_text(
        '"""Says good day."""\ndef main(arguments):\n    print(arguments)\n    return 7\n'
    )
    (tmp_path / "shared.py").write_text('"""No command: it has no main."""\n')
    before = commands()
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(tmp_path)])
    assert commands() == {**before, "greet": "Says good day."}
    assert main(["greet", "--loud", "x"]) == 7 and capsys.readouterr().out == "['--loud', 'x']\n"
    monkeypatch.delitem(sys.modules, "neutreno.cli.greet")


@pytest.fixture
def own_handler():
    """Python's own, whatever started the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


@pytest.mark.parametrize("error", [ImportError("this library is broken"), KeyError("absent")])
@pytest.mark.parametrize("interrupted", [True, False])
def test_what_comes_of_an_interruption_is_one(interrupted, error, own_handler, capsys):
    @cli.command
    def main(arguments):
        with contextlib.suppress(KeyboardInterrupt):  # C code forgets it, a library makes another error of it
            os.kill(os.getpid(), signal.SIGINT if interrupted else 0)
        raise error

    code, said = main([]), capsys.readouterr().err
    assert (code, said) == (130, "interrupted\n") if interrupted else (code, "Traceback" in said) == (1, True)


def test_a_command_that_ends_well_after_an_interruption_did(own_handler):
    """As one that watches until then."""

    @cli.command
    def main(arguments):
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)

    assert main([]) == 0
