"""What may be set: the options of a constructor, their types and bounds, and what each of them is to a run.

A constructor says so by its annotations, once, and both the command line and Python read them there::

    class Rule(Variant):
        @checked
        def __init__(self, dim: Annotated[int, SUPPLIED], power: Annotated[int, Ge(2), Le(64)] = 4, **kwargs): ...

``**kwargs`` of a constructor are the options of its base class; they are read along the method resolution order. Types
are strict: ``True`` is no number, ``"0.6"`` neither, and no number is NaN or infinite.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from neutreno.errors import InputError, one_line


class Mark(Enum):
    """What an option is to a run; one that carries no mark is ``IDENTITY``."""

    IDENTITY = "part of what a run is: it has to be the same on resume, and stands in the run's name"
    EXECUTION = "where and how a run is executed: free to change on resume and at evaluation, absent from names"
    FREE = "part of what a run is, but free to change at evaluation"
    START = "weights to start from: as IDENTITY, but left out at evaluation, where trained weights follow"
    SUPPLIED = "given by what builds the part (a model gives every block its width), never by a config"


IDENTITY, EXECUTION, FREE, START, SUPPLIED = Mark.IDENTITY, Mark.EXECUTION, Mark.FREE, Mark.START, Mark.SUPPLIED


@dataclass(frozen=True)
class Rule:
    """A bound of a value that no other word of an annotation states: ``should`` is what is said where it fails."""

    holds: Callable[[Any], bool]
    should: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable) -> Any:
        from pydantic_core import PydanticCustomError, core_schema

        def judge(value: Any) -> Any:
            if not self.holds(value):
                raise PydanticCustomError("rule", self.should)
            return value

        return core_schema.no_info_after_validator_function(judge, handler(source))


@dataclass(frozen=True)
class Reads:
    """Stands beside the mark of an option that decides which library reads data, and how: this may run code or reach
    into a network. What a run folder says of it is taken only where it is the default; see config/trust.py.

    ``beside``: the option without which (at its default) this one means nothing.
    """

    beside: str | None = None


READS = Reads()

# Sizes have an upper bound too: what no machine can hold is a slip of the keyboard.
Count = Annotated[int, Ge(1), Le(10**9)]  # of steps, epochs, samples
Size = Annotated[int, Ge(1), Le(65_536)]  # width, depth, pixels along a side, samples at once
Depth = Annotated[int, Ge(1), Le(10_000)]  # layers of a network
Seed = Annotated[int, Ge(0), Le(2**63 - 1)]
Share = Annotated[float, Ge(0), Le(1)]
Fraction = Annotated[float, Ge(0), Le(0.99)]  # a share that leaves something
DropRate = Fraction
NonNegative = Annotated[float, Ge(0)]
Positive = Annotated[float, Gt(0)]
Ratio = Annotated[float, Gt(0), Le(1_024)]  # of a width to another
Batches = Annotated[
    int | float,
    Rule(
        lambda n: 0 < n <= (10**9 if isinstance(n, int) else 1), "should be a number of batches, or a share in (0, 1]"
    ),
]
Decay = Annotated[float, Ge(0), Lt(1)]  # of an average: 1 would never move it
Folder = Annotated[
    str,
    Rule(lambda text: bool(text.strip()), "is blank; give the name of a folder"),
    Rule(lambda text: one_line(text) == text, "holds a character that cannot be printed; leave it out"),
]
Weights = Annotated[str | Path | None, START]  # a run folder, a checkpoint file, or a name that a library knows

Root = Annotated[str | Path | None, EXECUTION]  # a folder of this machine
Reader = Annotated[str | None, FREE, READS]  # a library's, in its place
ReaderArgs = Annotated[dict[str, Any] | None, FREE, Reads(beside="reader")]

_LIBRARIES = {"builtins", "torch", "lightning"}  # their constructors are not described by annotations of this kind


@dataclass(frozen=True)
class Option:
    """One option of a constructor; ``annotation`` is ``inspect.Parameter.empty`` where it has none."""

    annotation: Any
    required: bool = False
    default: Any = None

    @property
    def mark(self) -> Mark:
        return next((m for m in getattr(self.annotation, "__metadata__", ()) if isinstance(m, Mark)), IDENTITY)

    @property
    def reads(self) -> Reads | None:
        """Not None where it decides what reads data."""
        return next((m for m in getattr(self.annotation, "__metadata__", ()) if isinstance(m, Reads)), None)

    def errors(self, value: Any) -> list[Any]:
        """pydantic's, of ``value``; it is not spelled out, however large it is."""
        if self.annotation is inspect.Parameter.empty:
            return []
        from pydantic import ValidationError

        try:
            _adapter(self.annotation).validate_python(value)
        except ValidationError as error:
            return error.errors(include_url=False)
        return []

    def problem(self, value: Any, key: str) -> str | None:
        """What is wrong with ``value``, in a line that begins with ``key``; None if nothing is."""
        if type(value).__module__.startswith("omegaconf."):  # where Hydra's own instantiate is used
            from omegaconf import OmegaConf

            value = OmegaConf.to_container(value, resolve=True)
        errors = self.errors(value)
        return in_words(key, value, errors) if errors else None


def in_words(key: str, value: Any, errors: Sequence[Any]) -> str:
    """pydantic's ``errors`` about the value of a key, in a line that begins with the key."""
    if any(e["type"] in ("list_type", "sequence_str") or "instance of Sequence" in e["msg"] for e in errors):
        hint = "" if value is None else f"; write {key}=[{_shown(value)}]"
        return f"{key}={_shown(value)} is not a list{hint}"
    return f"{key}={_shown(value)} {' or '.join(dict.fromkeys(map(_words, errors)))}"


def _shown(value: Any) -> str:
    """A value as it would be typed; text that looks like something else in quotes."""
    if isinstance(value, str):
        try:
            float(value or 0)
        except ValueError:
            return one_line(value[:200]) if value.strip() and value not in ("null", "true", "false") else repr(value)
        return repr(value)
    return "null" if value is None else str(value)[:200]


def _words(error: Any) -> str:
    """pydantic's message as the second half of a sentence."""
    said = error["msg"].removeprefix("Input ")
    said = {"should be a finite number": "should be a finite number, not NaN or infinite"}.get(said, said)
    places = [str(part) for part in error["loc"] if isinstance(part, int)]
    return f"(item {places[0]}) {said}" if places else said


@functools.cache
def _adapter(annotation: Any):
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True))


@functools.cache
def options_of(target: Callable) -> dict[str, Option]:
    """The options of a class or function by name, a subclass' own before those of its bases.

    Raises:
        InputError: a function takes ``**kwargs``, so nobody can tell what it takes.
    """
    found: dict[str, Option] = {}
    for function in _constructors(target):
        for name, option in _declared(function).items():
            found.setdefault(name, option)
    return found


@functools.cache
def _declared(function: Callable) -> dict[str, Option]:
    """The options that a function's own parameters declare."""
    hints = get_type_hints(function, include_extras=True)
    try:
        parameters = inspect.signature(function).parameters
    except ValueError as error:
        raise InputError(f"{function.__module__}.{function.__qualname__} does not say what it takes") from error
    return {
        name: Option(
            hints.get(name, parameter.empty),
            parameter.default is parameter.empty,
            None if parameter.default is parameter.empty else parameter.default,
        )
        for name, parameter in parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) and name != "self"
    }


def _constructors(target: Callable) -> Iterator[Callable]:
    """The function itself; of a class its constructor, and those of its bases as far as ``**kwargs`` reach them."""
    if not inspect.isclass(target):
        if _takes_more(target):
            raise InputError(f"{target.__module__}.{target.__qualname__} takes **kwargs: spell its options out")
        yield target
        return
    for base in target.__mro__:
        if base.__module__.partition(".")[0] in _LIBRARIES:
            return
        if "__init__" in vars(base):
            yield base.__init__
            if not _takes_more(base.__init__):
                return


def _takes_more(function: Callable) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())


def checked(function: Callable) -> Callable:
    """Decorates a constructor or function that a config may name: its arguments are checked by their annotations.

    So that Python users meet the bounds of the command line, which stand in one place.

    Raises (the function):
        InputError: names every argument that does not fit.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        own = _declared(function)
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:  # which says what, and not of whom
            raise TypeError(f"{function.__qualname__.removesuffix('.__init__')} {error}") from None
        problems = [own[name].problem(value, name) for name, value in given.items() if name in own]
        if found := [problem for problem in problems if problem]:
            raise InputError("\n".join(found))
        return function(*args, **kwargs)

    return wrapper


def builds(result: type) -> Callable[[Callable], Callable]:
    """Registers a function as the builder of a part, which a run folder may name: ``@builds(VisionTransformer)``."""

    def register(function: Callable) -> Callable:
        function.__builds__ = result
        return function

    return register
