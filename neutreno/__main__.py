"""``neutreno COMMAND …``: the modules of :mod:`neutreno.cli` by their names."""

from __future__ import annotations

import ast
import difflib
import importlib
import pkgutil
import sys
from pathlib import Path

import neutreno
from neutreno import cli

HELPERS = {"hydra_main"}


def commands() -> dict[str, str]:
    """What each command does, by its name; read from the files, without importing them."""
    folder = Path(cli.__file__).parent
    names = sorted(module.name for module in pkgutil.iter_modules([str(folder)]) if module.name not in HELPERS)
    texts = {name: ast.get_docstring(ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))) for name in names}
    return {name: (text or "").splitlines()[0] if text else "" for name, text in texts.items()}


def main() -> int:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    known = commands()
    if name in ("-h", "--help"):
        print("neutreno COMMAND …        neutreno COMMAND --help says more\n")
        print("\n".join(f"  {command:10} {said}" for command, said in known.items()))
        return 0
    if name == "--version":
        print(neutreno.__version__)
        return 0
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
        print(f"error: no command {name}; {hint}", file=sys.stderr)
        return 2
    return importlib.import_module(f"neutreno.cli.{name}").main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
