"""What --help says of each key: the comments of the config files that set it."""

import pytest
from omegaconf import OmegaConf
from support import ROOT

from neutreno.cli.hydra_main import help_text
from neutreno.config.keys import comments, explanations, listed
from neutreno.config.words import compose_typed, options_in

FILE = """
a: 1  # one
b: "# no comment"
c: [1,
    2]  # of several lines
d:  # a section
  e: null # near
  f:
  - x  # of the item, not of the key
g: |  # of a text
  some # text
h: >
  more text
i: 2  # two
"""


def test_a_comment_belongs_to_the_key_on_whose_line_it_ends():
    found = {"a": "one", "b": None, "c": "of several lines", "d": "a section", "d.e": "near", "d.f": None}
    found |= {"g": "of a text", "h": None, "i": "two"}
    assert dict(comments(FILE)) == found


NEEDS = {"segmenter": "data=digit_scenes", "lm": "data=python_docs", "deit": "data=digits", "vit": "data=digits"}
GROUPS = ("data", "trainer", "logger", "launcher", "attention", "block", "model", "norm", "propagation")


@pytest.mark.parametrize("group", GROUPS)
def test_every_key_of_every_option_is_explained(group):
    for option in options_in(group):
        words = [f"{group}={option}"]
        if group in ("model", "norm", "propagation"):
            words.append(NEEDS.get(option.partition("_")[0], "data=cora") if group == "model" else "data=cora")
        said = explanations(words, "train")
        for line, _, explained in listed(compose_typed(words).config, said):
            key = line.rstrip("=")
            assert explained or not line.endswith("=") or key.rpartition(".")[0] in said, f"{' '.join(words)}: {key}"


def test_what_a_file_says_of_its_value_stands_behind_what_the_key_is():
    said = explanations(["data=imagenet"], "train")
    assert said["task.mixup"] == "its α; 0 switches it off; DeiT"
    assert said["attention.lam"] == "λ̃"


def test_comments_of_a_package_outside_this_one_are_shown(tmp_path):
    (tmp_path / "attention").mkdir()
    file = tmp_path / "attention/mine.yaml"
    file.write_text("_target_: mine.Attention\n_partial_: true\nlam: null  # λ̃\npower: 2  # how strong\n")
    text = help_text("train", ["model=deit", "attention=mine"], [str(tmp_path)])
    assert "  attention.power=2             how strong\n" in text


def test_keys_that_are_numbers_are_listed_too():
    config = OmegaConf.create({"data": {"names": {0: "zero", 1: "one"}}})
    said = {"data.names": "of the labels", "data.names.0": "nought"}
    assert [*listed(config, said)][1:] == [
        ("data.names", "", "of the labels"),
        ("data.names.0=", "zero", "nought"),
        ("data.names.1=", "one", ""),
    ]


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_help_fits_a_terminal(name):
    lines = help_text(name, [], []).splitlines()
    assert all(len(line) <= 80 or line.startswith("  labels=") for line in lines)


def test_the_help_of_every_command_fits_a_terminal(capsys, monkeypatch):
    from neutreno.__main__ import commands, main

    monkeypatch.setenv("COLUMNS", "80")
    for name in sorted(commands().keys() - {"train", "evaluate"}):
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert [line for line in capsys.readouterr().out.splitlines() if len(line) > 80] == [], name


def test_keys_that_no_file_sets_are_not_explained():
    import yaml

    lists = yaml.safe_load((ROOT / "configs/hydra/help/keys.yaml").read_text())
    files = [yaml.safe_load(file.read_text()) or {} for file in (ROOT / "configs").rglob("*.yaml")]
    names = {str(key) for file in files for key in every_key(file)}
    assert [key for key in lists if key.rpartition(".")[2] not in names] == []


def every_key(node):
    for key, value in node.items() if isinstance(node, dict) else ():
        yield key
        yield from every_key(value)
