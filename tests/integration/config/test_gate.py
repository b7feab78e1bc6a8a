"""The gate: every key takes a value or is named; what keys mean to a run and to its name."""

import copy
import math

import pytest
from support import ROOT

from neutreno.config import gate, words
from neutreno.config.composing import Composed, compose
from neutreno.config.options import EXECUTION, FREE, IDENTITY
from neutreno.runs import default_name

VALUES = {
    "text": "text",
    "null": None,
    "a list": [1, "b"],
    "a dictionary": {"a": 1},
    "NaN": math.nan,
    "a negative number": -3,
    "a huge number": 10**40,
}
SECTIONS = {"recipe": ("task", "recipe")}  # what a group's files set that no other group's do
GROUPS = [
    p.name
    for p in sorted((ROOT / "configs").iterdir())
    if p.is_dir() and p.name not in ("hydra", "experiment", "table")
]


def options_of(group):
    options = words.options_in(group)
    return options if group != "recipe" else [o for o in options if o in words.options_in("data")]  # no shared parts


def composed_with(group, option):
    words = [f"{group}={option}"] if group != "recipe" else [f"data={option}"]
    if (group, option) == ("model", "timm"):
        words.append("model.name=vit_tiny_patch16_224")
    if group == "model" and option.startswith("lm"):
        words.append("data=python_docs")
    if group in ("norm", "propagation") or option in ("gcn", "gat", "sgc", "gcnii", "appnp", "resgcn"):
        words.append("data=digits_graph")
    return compose(words)


def with_value(composed, key, value):
    """The same config with one value exchanged."""
    changed = Composed(composed.config, composed.choices, composed.overrides)
    settings = changed.__dict__["settings"] = copy.deepcopy(composed.settings)
    *path, last = key.split("|")
    for name in path:
        settings = settings[name]
    settings[last] = value
    return changed


def keys_in(node, start=""):
    for name, value in node.items():
        yield f"{start}{name}", value
        if isinstance(value, dict):
            yield from keys_in(value, f"{start}{name}|")


def above(settings, key):
    """The dictionaries that hold a key, from the outermost on."""
    *path, _ = key.split("|")
    for name in path:
        settings = settings[name]
        yield settings


def problems_of(composed):
    """What the first stage that finds anything finds."""
    for stage in (gate.settings_problems, gate.constructor_problems):
        if found := list(stage(composed)):
            return found
    return []


@pytest.mark.parametrize("group", GROUPS)
def test_every_key_of_every_group_takes_a_value_or_is_named(group):
    """No constructor is called: an InputError of one would have no key in it.

    A key that several options of the group hand to the same class, with a value of the same type, is tried once.
    """
    free = {"recipe", "paper", "labels", "variants"}
    tried = set()
    for option in options_of(group):
        composed = composed_with(group, option)
        assert problems_of(composed) == [], option
        sections = {section: composed.settings[section] for section in SECTIONS.get(group, (group,))}
        keys = [*keys_in(sections)]
        assert keys, option
        for key, before in keys:
            if key.startswith("model|") and key.split("|")[1] in composed.settings["variants"]:
                continue  # the axis itself, which stands at the top
            owners = tuple(node["_target_"] for node in above(composed.settings, key) if "_target_" in node)
            if (key, owners, type(before)) in tried:
                continue
            tried.add((key, owners, type(before)))
            dotted, depth = key.replace("|", "."), key.count("|")
            number = isinstance(before, int | float) and not isinstance(before, bool)
            for what, value in VALUES.items():
                found = problems_of(with_value(composed, key, value))
                for line in found:
                    assert "\n" not in line and "Traceback" not in line, (option, dotted, what, line)
                    named = dotted if depth < 2 or dotted in line else ".".join(dotted.split(".")[:2])
                    assert named in line, (option, dotted, what, line)
                if key.split("|")[0] in free or depth != 1 or what == "null":
                    continue
                if dotted == "trainer.devices" and what in ("text", "a list"):
                    continue  # auto, 0,1 and [0, 1]; what a machine has is Lightning's to judge
                if number and what in ("text", "a list", "a dictionary", "NaN"):
                    assert found, f"{option}: {dotted} took {what}"
                if isinstance(before, int) and what == "a huge number":
                    assert found, f"{option}: {dotted} took {what}"
                if isinstance(before, bool):
                    assert found, f"{option}: {dotted} took {what}"


@pytest.mark.parametrize("value", VALUES)
def test_every_setting_of_the_projects_own_takes_a_value_or_is_named(value):
    composed = compose()
    own = [key for key in composed.settings if key not in GROUPS]
    assert {"seed", "name", "probe", "checkpoint", "progress", "expected", "output_dir", "resume"} <= set(own)
    for key, before in keys_in({key: composed.settings[key] for key in own if key != "task"}):
        found = problems_of(with_value(composed, key, VALUES[value]))
        for line in found:
            assert key.replace("|", ".") in line or key.split("|")[0] in line, line
        if type(before) in (bool, int) and value != "null":
            assert found, f"{key} took {value}"


def test_what_a_key_is_to_a_run_stands_beside_the_key():
    settings = compose(["data=cifar10", "data.root=x"]).settings
    for mark, keys in {
        EXECUTION: [
            "data.root",
            "data.num_workers",
            "trainer",
            "trainer.devices",
            "launcher.max_parallel",
            "name",
            "paper",
        ],
        FREE: ["data.crop_pct", "data.mean", "trainer.precision", "probe.num_samples"],
        IDENTITY: [
            "data.batch_size",
            "attention.lam",
            "attention",
            "model.depth",
            "task.lr",
            "seed",
            "data",
            "task.opt",
        ],
    }.items():
        assert {key: gate.mark_of(key, settings) for key in keys} == dict.fromkeys(keys, mark)


def test_names_hold_what_a_run_is_and_not_how_it_is_executed():
    words = [
        "data=cifar10",
        "data.root=x",
        "trainer=gpu",
        "data.num_workers=1",
        "logger=wandb",
        "launcher.max_parallel=2",
    ]
    assert default_name(compose(words)) == "cifar10-deit_mini-neutreno-lam0.6-seed0"
    assert default_name(compose(["attention.lam=0", "seed=3"])) == "digits-deit_mini-neutreno-lam0-seed3"
    assert default_name(compose(["model=deit", "task.lr=0.1"])) == "digits-deit_mini-softmax-seed0-task.lr-0.1"
    assert default_name(compose(["model=deit", "block=featscale"])) == "digits-deit_mini-featscale-seed0"
    both = compose(["block=featscale", "attention.lam=0.2"])
    assert default_name(both) == "digits-deit_mini-neutreno-lam0.2-featscale-seed0"
    at_default = compose(["attention.anchor=v0", "attention.pull=true"])
    assert default_name(at_default) == "digits-deit_mini-neutreno-lam0.6-seed0"
    half = compose(["attention.anchor=shuffled", "attention.pull=false"])
    assert default_name(half) == "digits-deit_mini-neutreno-lam0.6-anchorshuffled-pullFalse-seed0"
    of_another = compose(["model=deit", "attention=gfsa", "attention.lam=0.4", "+attention.anchor=none"])
    assert default_name(of_another) == "digits-deit_mini-gfsa-lam0.4-anchornone-seed0"
    timm = compose(["model=timm", "model.name=resnet18.a1_in1k", "data=cifar10"])
    assert default_name(timm) == "cifar10-timm_resnet18.a1_in1k-seed0"


def test_a_key_without_a_value_is_named_once_where_it_stands():
    typed = compose(["attention=neutreno", "attention.lam=???"])
    assert problems_of(typed) == ["attention.lam has no value; give one, attention.lam=…"]


@pytest.mark.parametrize("name", ["model", "progress", "logger", "expected"])
def test_a_section_that_was_removed_is_named(name):
    assert problems_of(compose([f"~{name}"])) == [f"{name} is missing, which every config has; leave ~{name} out"]


@pytest.mark.parametrize(("target", "name"), [("ExclusiveAttention", "xsa"), ("Variant", "neutreno.attention.Variant")])
def test_the_class_that_is_built_is_named_and_not_the_option_that_was_typed(target, name):
    """By the option that builds it, if there is one."""
    from neutreno.variants import describe

    typed = compose(["model=deit", f"attention._target_=neutreno.attention.{target}"])
    described = describe(typed)
    assert described["settings"]["attention"] == name
    assert described["axes"]["attention"]["class"] == f"neutreno.attention.{target}"
    assert not described["axes"]["attention"]["baseline"]
    assert default_name(typed) == f"digits-deit_mini-{name}-seed0"
    other = compose(["data._target_=neutreno.data.digit_scenes.DigitScenes"])
    assert default_name(other) != default_name(compose())


@pytest.mark.parametrize(
    ("words", "expected"),
    [([], False), (["model=deit"], True), (["attention.lam=0"], True), (["attention.lam=0", "block=featscale"], False),
     (["model=deit", "attention=gfsa"], False), (["model=deit", "block=layerscale"], False)],
)  # fmt: skip
def test_the_baseline_is_what_the_model_declares(words, expected):
    from neutreno.variants import at_baseline

    assert at_baseline(compose(words)) is expected


def test_no_general_code_names_an_axis():
    """What is compared is declared by models' configs; `λ̃`, `attention`, `block` are words of transformers."""
    import re

    general = ["runs", "results", "variants", "launchers", "sweep", "preflight", "parallel", "errors"]
    files = [ROOT / f"neutreno/{name}.py" for name in general]
    files += [ROOT / f"neutreno/evaluation/{name}.py" for name in ("base", "opening", "metrics")]
    files += [*(ROOT / "neutreno/config").glob("*.py"), *(ROOT / "neutreno/reports").glob("dashboard.*")]
    files += [ROOT / f"neutreno/reports/{name}.py" for name in ("reading", "comparison", "tables", "evaluation")]
    files += [ROOT / f"neutreno/cli/{name}.py" for name in ("train", "evaluate", "hydra_main")]
    for file in files:
        code = re.sub(r'""".*?"""', "", file.read_text(), flags=re.DOTALL)
        code = "\n".join(line.partition("  # ")[0] for line in code.splitlines() if not line.strip().startswith("#"))
        for word in ("softmax", "neutreno_", "deit", "attention", "featscale", "top1", "miou"):
            assert not re.search(rf"[\"'.]{word}[\"'.]", code), (file.name, word)
