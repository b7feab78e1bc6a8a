"""A file with a main is a command."""

import sys

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
