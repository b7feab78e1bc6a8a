"""``neutreno COMMAND …``: the modules of :mod:`neutreno.cli` by their names."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

import neutreno
from neutreno import cli


def commands() -> dict[str, str]:
    """What each command does, by its name: modules with a ``main``, read from the files without importing them."""
    found = {}
    for finder, name, _ in pkgutil.iter_modules(cli.__path__):
        module = ast.parse((Path(finder.path) / f"{name}.py").read_text(encoding="utf-8"))
        if any(isinstance(part, ast.FunctionDef) and part.name == "main" for part in module.body):
            found[name] = (ast.get_docstring(module) or "").partition("\n")[0]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    name, *words = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    known = commands()
    if name in ("-h", "--help"):
        print("neutreno COMMAND …        neutreno COMMAND --help describes it\n")
        print("\n".join(f"  {command:10} {said}" for command, said in known.items()))
        return 0
    if name == "--version":
        print(neutreno.__version__)
        return 0
    if name not in known:
        from neutreno.config.words import close

        hint = close(name, known, "") or f"; available: {', '.join(known)}"
        print(f"error: no command {name}{hint}", file=sys.stderr)
        return 2
    return importlib.import_module(f"neutreno.cli.{name}").main(words)


if __name__ == "__main__":
    sys.exit(main())
