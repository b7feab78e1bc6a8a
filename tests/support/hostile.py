"""Files of run folders that no run writes."""

import json
import os

import yaml


def change(file, **more):
    """Keys of a file of a run, dotted ones within others."""
    load, dump = (yaml.safe_load, yaml.safe_dump) if file.suffix == ".yaml" else (json.loads, json.dumps)
    content = load(file.read_text())
    for key, value in more.items():
        *path, last = key.split("__")
        place = content
        for name in path:
            place = place[name]
        place[last] = value
    file.write_text(dump(content))


def nested(depth):
    return "[" * depth + "]" * depth


def billion_laughs():
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    return "\n".join(lines)


def planted(file, text):
    return lambda run: (run / file).write_text(text(run) if callable(text) else text)


def edited(file, **more):
    return lambda run: change(run / file, **more)


def larger(file, size):
    def plant(run):
        with (run / file).open("ab") as content:
            content.truncate(size)

    return plant


def instead(file, make):
    def plant(run):
        (run / file).unlink(missing_ok=True)
        make(run / file)

    return plant


def config_with(more):
    return lambda run: (run / "config.yaml").read_text() + f"\n{more}\n"


HOSTILE = {
    "aliases": ("config.yaml", planted("config.yaml", config_with(billion_laughs()))),
    "an alias of itself": ("config.yaml", planted("config.yaml", config_with("own: &own [*own]"))),
    "deep yaml": ("config.yaml", planted("config.yaml", config_with(f"deep: {nested(100)}"))),
    "very deep yaml": ("config.yaml", planted("config.yaml", config_with(f"deep: {nested(100_000)}"))),
    "large yaml": ("config.yaml", larger("config.yaml", 2**27)),
    "a key that is a number": ("config.yaml", planted("config.yaml", config_with("1: 2"))),
    "a date": ("config.yaml", planted("config.yaml", config_with("day: 2020-02-02"))),
    "a set": ("config.yaml", planted("config.yaml", config_with("some: !!set {a, b}"))),
    "an object": ("config.yaml", planted("config.yaml", config_with("o: !!python/object/apply:os.getcwd []"))),
    "bytes": ("config.yaml", planted("config.yaml", config_with("b: !!binary aGk="))),
    "no seed": ("config.yaml", edited("config.yaml", seed=None)),
    "a paper's figures": ("config.yaml", edited("config.yaml", paper={"test/top1": 3})),
    "a folder as config": ("config.yaml", instead("config.yaml", os.mkdir)),
    "a pipe as config": ("config.yaml", instead("config.yaml", os.mkfifo)),
    "no text": ("config.yaml", instead("config.yaml", lambda file: file.write_bytes(b"\xff\xfe"))),
    "deep json": ("result.json", planted("result.json", '{"status": ' + nested(100_000) + "}")),
    "somewhat deep json": ("result.json", edited("result.json", more=json.loads(nested(60)))),
    "large json": ("result.json", larger("result.json", 2**27)),
    "a long text": ("result.json", edited("result.json", reason="x" * 100_001)),
    "a long text in yaml": ("config.yaml", planted("config.yaml", config_with(f"text: {'x' * 100_001}"))),
    "a huge number": ("result.json", edited("result.json", parameters=10**400)),
    "a huge seed": ("result.json", edited("result.json", settings__seed=10**400)),
    "a device": ("result.json", instead("result.json", lambda file: file.symlink_to("/dev/zero"))),
    "a circle": ("result.json", instead("result.json", lambda file: file.symlink_to(file))),
    "half of a sign": ("result.json", edited("result.json", main_metric="\ud800")),
    "parameters as text": ("result.json", edited("result.json", parameters="=1+1")),
    "data as a list": ("result.json", edited("result.json", settings__data=["digits"])),
    "an unknown status": ("result.json", edited("result.json", status="<b>done</b>")),
    "a status as a list": ("result.json", edited("result.json", status=["finished"])),
    "a seed that is true": ("result.json", edited("result.json", settings__seed=True)),
    "labels as numbers": ("result.json", edited("result.json", labels={"attention.lam": 3})),
    "an axis without a baseline": ("result.json", edited("result.json", axes__attention={})),
    "a baseline as a list": ("result.json", edited("result.json", baseline={"attention": [], "block": "x"})),
    "digests as a list": ("result.json", edited("result.json", digests=["a"])),
    "a reason as a number": ("result.json", edited("result.json", reason=3)),
    "deep evaluation": ("evaluation.json", planted("evaluation.json", nested(100_000))),
    "evaluation of nothing": ("evaluation.json", planted("evaluation.json", '{"metrics": [1]}')),
    "large evaluation": ("evaluation.json", larger("evaluation.json", 2**27)),
    "large metrics": ("metrics.csv", larger("metrics.csv", 2**27)),
    "a pipe as metrics": ("metrics.csv", instead("metrics.csv", os.mkfifo)),
    "a device as metrics": ("oversmoothing.csv", instead("oversmoothing.csv", lambda f: f.symlink_to("/dev/zero"))),
    "a million columns": ("oversmoothing.csv", planted("oversmoothing.csv", "a," * 10**6)),
}
