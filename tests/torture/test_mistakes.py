"""Words of the command line that are wrong by what the options say, or merely odd.

A *mistake* breaks a type, a bound, a list of choices or a name that an annotation or a config file states: it has to be
refused in a line, before a folder is made. An *odd* value may be legal: then the run has to end well, or in a line.
"""

import functools
import json
import math
import subprocess
import types
from typing import Annotated, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from support import TEXT, TINY, Forked, run_script
from support.graphs import ARM, GRAPH
from support.torture import LIMIT_S, Hang, assert_no_traceback, assert_refused, ended

from neutreno.config.building import locate
from neutreno.config.composing import compose
from neutreno.config.gate import library_options
from neutreno.config.options import SUPPLIED, options_of
from neutreno.config.settings import Settings, Trainer
from neutreno.config.words import options_in

SCENES = ["data=digit_scenes", "data.train_scenes=24", "data.val_scenes=8", "data.test_scenes=8", "data.batch_size=8"]
SCENES += ["model.depth=1", "model.decoder_depth=1", "model.embed_dim=16", "model.num_heads=2"]
RUNS = {
    "images": [*TINY, "trainer.max_epochs=1", "name=x"],
    "text": [*TEXT, "trainer.max_steps=4"],
    "graph": [*GRAPH, *ARM, "trainer.max_steps=4", "name=x"],
    "scenes": [*SCENES, "trainer.max_epochs=1", "trainer.check_val_every_n_epoch=1", "probe.num_samples=4", "name=x"],
}
GROUPS = ("attention", "block", "norm", "propagation", "model", "data", "trainer", "logger", "experiment", "recipe")
IN_A_PROCESS_OF_ITS_OWN = 21  # one in so many; shares no factor with the number of ways
NOT_ODD = {  # legal values would start other processes or machines, write elsewhere, or be as large as they say
    *("trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.accelerator", "trainer.plugins"),
    *("launcher.max_parallel", "name", "output_dir", "data.num_workers", "preflight", "compile", "resume"),
    *("trainer.max_epochs", "trainer.max_steps", "trainer.min_epochs", "trainer.min_steps", "data.cache"),
}  # fmt: skip
ODD = {
    int: ["0", "1", "2", "3", "7", "-1", "-0", "1_0", "0x2", "1e0"],
    float: ["0", "1", "-0.0", "1e-30", "1e-320", "0.5", ".5", "1.", "1e10"],
    bool: ["true", "false", "True", "yes"],
    str: ["''", "' '", "null", "ü", "x.y", "a/b", "~", "'a b'", "'${seed}'", "'\\n'", "\\'"],
    list: ["[]", "[1]", "[0.5,0.5]", "[null]", "[[]]", "[a]", "[-1]", "[1,1]"],
    dict: ["{}", "{a:1}", "{a:{b:null}}"],
}


@functools.cache
def options(run):
    """The options of every part of a run, by key."""
    composed = compose(RUNS[run])
    settings, found = composed.settings, {}
    axes = [*settings["variants"]]
    for part in ("data", "task", "model", *axes):
        for name, option in options_of(locate(settings[part]["_target_"])).items():
            if option.mark is not SUPPLIED and not (part == "model" and name in axes):
                found[f"{part}.{name}"] = option, name in settings[part]
    library = library_options(locate(Trainer.built), Trainer, settings["trainer"], "trainer")
    for name, option in library.items():
        if name not in Trainer.ours:
            found[f"trainer.{name}"] = option, name in settings["trainer"]
    for name, option in options_of(Settings).items():
        if not isinstance(settings.get(name), dict):
            found[name] = option, True
        elif hasattr(option.annotation, "__dataclass_fields__"):
            found |= {f"{name}.{key}": (inner, True) for key, inner in options_of(option.annotation).items()}
    return found


def alternatives(annotation, bounds=()):
    """What a value may be: (type or literal, bounds) for each member of a union."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return alternatives(inner, (*bounds, *more))
    if get_origin(annotation) in (Union, types.UnionType):
        return [found for member in get_args(annotation) for found in alternatives(member, bounds)]
    return [(annotation, bounds)]


def outside(bounds):
    """Values beyond each of the bounds."""
    for bound in bounds:
        if isinstance(bound, Ge):
            yield bound.ge - 1
        elif isinstance(bound, Gt):
            yield from (bound.gt, bound.gt - 1)
        elif isinstance(bound, Le):
            yield from (bound.le * 2 + 1, bound.le + 1)
        elif isinstance(bound, Lt):
            yield from (bound.lt, bound.lt + 1)


def wrong_values(annotation):
    """Words of values that break what the annotation says, whatever else it says."""
    found = alternatives(annotation)
    kinds = {get_origin(kind) or kind for kind, _ in found}
    if not kinds <= {int, float, bool, str, list, dict, tuple, type(None), Literal}:
        return []
    wrong = ["nan", "inf", "-inf", "{a:{b:1}}"] if not kinds & {dict, str} else []
    if not kinds & {str, Literal}:
        wrong += ["xyz", "'1'", "1,2;", "'  '"][: 2 + (list not in kinds)]
    if not kinds & {list, tuple, dict}:
        wrong += ["[1]", "[[]]", "[a,b]", "{a:1}"]
    if not kinds & {bool, str, Literal}:
        wrong += ["true", "false"]
    if kinds <= {bool, type(None)}:
        wrong += ["2", "0.5", "maybe"]
    if kinds <= {int, type(None)}:
        wrong += ["1.5", "1e400", "0.1e1"]
    if Literal in kinds and str not in kinds:
        wrong += ["nonsense", "[nonsense]"]
    if type(None) not in kinds and dict not in kinds:
        wrong += ["null"]
    numbers = [bounds for kind, bounds in found if kind in (int, float)]
    if len(numbers) == 1 and not kinds & {str, Literal}:
        wrong += [str(value) for value in outside(numbers[0]) if math.isfinite(value)]
    return wrong


def misspelt(draw, name):
    """Another name by a slip of the fingers: a letter less, twice, exchanged or another."""
    i = draw.randrange(len(name))
    ways = [name[:i] + name[i + 1 :], name[:i] + name[i] + name[i:], name[:i] + draw.choice("aeszxq") + name[i + 1 :]]
    ways += [name[:i] + name[i + 1 : i + 2] + name[i] + name[i + 2 :], name + "s", name.upper(), f"_{name}"]
    return draw.choice(ways)


def value_of_a_wrong_type(draw, run):
    while True:
        key, (option, there) = draw.choice([*options(run).items()])
        if wrong := wrong_values(option.annotation):
            return f"{'' if there else '+'}{key}={draw.choice(wrong)}"


def misspelt_key(draw, run):
    known = options(run)
    while True:
        section, dot, name = draw.choice([*known]).rpartition(".")
        key = (
            f"{section}{dot}{misspelt(draw, name)}"
            if draw.random() < 0.7
            else f"{misspelt(draw, section or 'seed')}.{name}"
        )
        if key not in known and key.partition(".")[0].strip("_"):
            return f"{draw.choice(['', '+', '++'])}{key}={draw.choice(['1', 'x', 'null', '[1]'])}"


def misspelt_choice(draw, run):
    group = draw.choice(GROUPS)
    there = options_in(group)
    while (name := misspelt(draw, draw.choice(there))) in there:
        pass
    return f"{group}={name}"


def broken_syntax(draw, run):
    key = draw.choice([*options(run)])
    return draw.choice(
        [f"{key}", f"{key}==", f"{key}=[1", f"{key}={{a", f"{key}='x", f"={key}", f"{key}=1,2;3", f"{key}=a=b,c",
         f"{key}=a,b", f"{key}=range(0,3)", f"~{key}=nothing", f"@{key}=1", f"{key}@=1", f"{key}=$(x)", f"{key}=${{x"]
    )  # fmt: skip


def odd_value(draw, run):
    known = {key: found for key, found in options(run).items() if key not in NOT_ODD and "." in key}
    while True:
        key, (option, there) = draw.choice([*known.items()])
        kinds = [get_origin(kind) or kind for kind, _ in alternatives(option.annotation)]
        kinds = [kind for kind in kinds if kind in ODD]
        if kinds:
            return f"{'' if there else '+'}{key}={draw.choice(ODD[draw.choice(kinds)])}"


WAYS = {
    "a wrong type or bound": value_of_a_wrong_type,
    "a misspelt key": misspelt_key,
    "a misspelt choice": misspelt_choice,
    "broken syntax": broken_syntax,
    "an odd value": odd_value,
}


def run(words, cwd, cold):
    if not cold:
        return ended(Forked("train.py", *words, cwd=cwd))
    try:
        return run_script("train.py", *words, cwd=cwd, timeout_s=LIMIT_S)
    except subprocess.TimeoutExpired as late:
        raise Hang(f"{' '.join(words)}: still running after {LIMIT_S} s; {late.stderr}") from None


def test_a_mistake_is_refused_in_a_line(mistake, tmp_path):
    way, name = [*WAYS][mistake.number % len(WAYS)], mistake.choice([*RUNS])
    word = WAYS[way](mistake, name)
    cold = mistake.number % IN_A_PROCESS_OF_ITS_OWN == 7
    mistake.told |= {"way": way, "run": name, "word": word, "cold": cold}
    done = run([*RUNS[name], word], tmp_path, cold)
    mistake.told["end"] = f"{done.returncode} {done.stderr}"[:300]
    assert_no_traceback(done)
    if way != "an odd value":
        assert_refused(done)
        assert not (tmp_path / "outputs").exists(), "a folder was made"
    elif done.returncode:
        assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: "), done.stderr
    else:
        assert json.loads((tmp_path / "outputs/x/result.json").read_text())["status"] == "finished"
