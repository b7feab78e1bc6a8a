"""A user's mistake, told in one line."""

import math
import os
import re
import sys
import traceback


class InputError(ValueError):
    """What the user gave cannot be used: says what, where, and what to do, in one line.

    The command lines print it as ``error: …`` and exit with 2; library users may catch it as a ``ValueError``.
    """


def check_number(name: str, value: object, least: float = 0, most: float = math.inf, integer: bool = False) -> None:
    """Refuse what is no finite (or whole) number between ``least`` and ``most``.

    Raises:
        InputError: names the setting and what it should be.
    """
    kinds = int if integer else int | float
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most or abs(value) == math.inf:
        kind, limit = (
            "whole" if integer else "finite",
            f"≥ {least:g}" if most == math.inf else f"from {least:g} to {most:g}",
        )
        raise InputError(f"{name}={value!r} is not a {kind} number {limit}")


def explain(error: BaseException) -> str | None:
    """One line for ``error`` if a user's mistake lies behind it (searched along its causes), else None."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, InputError):
            # A DataLoader worker hands its error over as text that ends with the original line.
            return str(seen).strip().splitlines()[-1].removeprefix("neutreno.errors.InputError: ")
        seen = seen.__cause__ or seen.__context__
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return _explain_hydra(error)


def _explain_hydra(error: BaseException) -> str | None:
    from hydra.errors import HydraException, InstantiationException, MissingConfigException
    from omegaconf.errors import InterpolationKeyError, MissingMandatoryValue, OmegaConfBaseException

    if isinstance(error, InstantiationException):  # an argument that only the constructor can judge
        cause = error.__cause__
        return f"{_full_key(error)}: {' '.join(str(cause).split())}" if cause else None
    if isinstance(error, InterpolationKeyError):
        missing = re.search(r"'([^']+)' not found", str(error))
        return (
            f"this model is not made for this data set, which has no {missing[1] if missing else 'key'} for "
            f"{_full_key(error)}; leave model=… out, and the data set chooses one that fits"
        )
    if isinstance(error, MissingMandatoryValue):
        return f"{_full_key(error)} has no value; give one, e.g. {_full_key(error)}=…"
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return f"no option {group}={option}; there are: {', '.join(error.options)}"
    if isinstance(error, HydraException | OmegaConfBaseException):
        text = " ".join(str(error).split())
        if missing := re.match(r"Could not override '([^']+)'.*To append", text):
            return f"no key {missing[1]!r} in the configuration; --help lists the keys (a new one needs a leading +)"
        if missing := re.match(r"In 'train': Could not find '([^']+)'", text):
            return f"no option {missing[1]!r}; --help lists the groups and their options"
        return text.removesuffix("Set the environment variable HYDRA_FULL_ERROR=1 for a complete stack trace.")
    return None


def _full_key(error: BaseException) -> str:
    key = getattr(error, "full_key", None)
    return key or str(error).rpartition("full_key: ")[2].split("\n")[0]


def report(error: BaseException) -> int:
    """Say ``error`` on stderr, in one line where a user's mistake lies behind it, and return the exit code."""
    if isinstance(error, KeyboardInterrupt):
        print("interrupted; resume=true continues the run", file=sys.stderr)
        return 130
    line = explain(error)
    if line is None and re.search(r"Connection (closed|reset) by peer", str(error)):
        line = "another process of this run ended; what it said tells why"
    if line is None:
        traceback.print_exception(error)
        return 1
    ranks = [os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ]
    talking = getattr(sys.modules.get("torch.distributed"), "is_initialized", bool)()
    if ranks[:1] in ([], ["0"]) or talking:  # before they share out work, all processes would say the same
        print(f"error: {line}", file=sys.stderr)
    return 2
