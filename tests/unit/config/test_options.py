"""What may be set: options, bounds and marks as constructors say them."""

import inspect
import math
from typing import Annotated, Any, get_args

import pytest
import yaml
from annotated_types import Ge, Le
from omegaconf import OmegaConf
from support import ROOT

from neutreno.config.building import locate
from neutreno.config.options import (
    EXECUTION,
    IDENTITY,
    SUPPLIED,
    Count,
    NonNegative,
    Option,
    Size,
    builds,
    checked,
    options_of,
)
from neutreno.errors import InputError


class Base:
    @checked
    def __init__(self, dim: Annotated[Size, SUPPLIED], lam: NonNegative = 0.6, flag: bool = False) -> None:
        self.dim, self.lam, self.flag = dim, lam, flag


class Rule(Base):
    @checked
    def __init__(
        self, *args, power: Annotated[int, Ge(2), Le(64)] = 4, where: Annotated[str, EXECUTION] = "", **kwargs
    ) -> None:
        super().__init__(*args, **kwargs)
        self.power = power


class Stranger(Rule):
    """Narrows its base's option, and adds nothing."""

    def __init__(self, *args, lam: Annotated[float, Le(1)] = 0.5, **kwargs) -> None:
        super().__init__(*args, lam=lam, **kwargs)


class Closed(Rule):
    def __init__(self, power: int = 2) -> None:
        super().__init__(8, power=power)


def test_keyword_arguments_are_the_options_of_the_base_class():
    assert list(options_of(Rule)) == ["power", "where", "dim", "lam", "flag"]
    assert list(options_of(Closed)) == ["power"]
    marks = {name: option.mark for name, option in options_of(Rule).items()}
    assert marks == {"power": IDENTITY, "where": EXECUTION, "dim": SUPPLIED, "lam": IDENTITY, "flag": IDENTITY}
    assert options_of(Stranger)["lam"].problem(2.0, "lam") and not options_of(Rule)["lam"].problem(2.0, "lam")


def test_a_function_spells_its_options_out():
    def build(size: Size, **kwargs):
        return size

    with pytest.raises(InputError, match=r"takes \*\*kwargs: spell its options out"):
        options_of(build)
    assert builds(Base)(checked(lambda: None)).__builds__ is Base


@pytest.mark.parametrize("value", [True, "0.6", math.nan, math.inf, -0.1, None, [1.0], {}])
def test_a_number_is_a_finite_number_within_its_bounds(value):
    said = options_of(Base)["lam"].problem(value, "attention.lam")
    assert said.startswith("attention.lam=") and "\n" not in said


@pytest.mark.parametrize(("name", "value"), [("lam", 1), ("lam", 0.0), ("power", 64), ("flag", True), ("dim", 65_536)])
def test_what_fits_is_taken(name, value):
    assert options_of(Rule)[name].problem(value, name) is None


@pytest.mark.parametrize(("name", "value"), [("power", 4.0), ("power", 65), ("flag", 1), ("dim", 10**9), ("where", 3)])
def test_what_does_not_fit_is_named(name, value):
    assert options_of(Rule)[name].problem(value, name).startswith(f"{name}={value} should be")


def test_a_single_value_for_a_list_shows_how_to_write_one():
    def take(cutoffs: list[Count]): ...

    assert (
        options_of(take)["cutoffs"].problem(5, "model.cutoffs")
        == "model.cutoffs=5 is not a list; write model.cutoffs=[5]"
    )
    assert options_of(take)["cutoffs"].problem([5, -1], "cutoffs").startswith("cutoffs=[5, -1] (item 1) should be")
    assert options_of(take)["cutoffs"].problem(OmegaConf.create([1, 2]), "cutoffs") is None


def test_python_users_meet_the_same_bounds_all_at_once():
    with pytest.raises(InputError) as caught:
        Rule(0, lam=-1.0, power=1)
    assert [line.partition("=")[0] for line in str(caught.value).splitlines()] == ["power"]  # its own come first
    with pytest.raises(InputError) as caught:
        Base(0, lam=-1.0)
    assert [line.partition("=")[0] for line in str(caught.value).splitlines()] == ["dim", "lam"]
    rule = Rule(8, lam=1, power=2)
    assert (rule.dim, rule.lam, rule.power) == (8, 1, 2)
    with pytest.raises(TypeError, match="missing a required argument: 'dim'"):
        Base()


def named():
    """(file, section, target) of all that the config files name."""
    for group in ("attention", "block", "model", "data", "recipe", "logger", "launcher"):
        for file in sorted((ROOT / "configs" / group).glob("*.yaml")):
            content = yaml.safe_load(file.read_text()) or {}
            for node in (content, *(v for v in content.values() if isinstance(v, dict))):
                if "_target_" in node:
                    yield f"{group}/{file.stem}", node


def is_unbounded_integer(annotation):
    inner = [a for a in get_args(annotation) if a is not None]
    metadata = getattr(annotation, "__metadata__", ())
    if metadata:
        return is_unbounded_integer(inner[0]) and not any(isinstance(m, Le) for m in metadata)
    return annotation is int or any(is_unbounded_integer(a) for a in inner if not isinstance(a, str | int))


@pytest.mark.parametrize(("file", "node"), named(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_class_that_the_configs_name_says_what_it_takes(file, node):
    options = options_of(locate(node["_target_"]))
    assert {key for key in node if not key.startswith("_") and key != "defaults"} <= options.keys()
    for name, option in options.items():
        assert option.annotation is not inspect.Parameter.empty, name
        assert not is_unbounded_integer(option.annotation), f"{name} has no upper bound"


def test_what_is_wrong_with_a_value_is_found_without_spelling_it_out():
    """A list of lists that are the same is small, and 2 ** 60 words for who writes it down."""
    value = ["ha"]
    for _ in range(60):
        value = [value, value]
    assert Option(list[dict[str, Any]]).errors(value)[0]["type"] == "dict_type"
    assert not Option(list[list[Any]]).errors(value)
