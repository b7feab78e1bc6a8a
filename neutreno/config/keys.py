"""What each key is, in words: the comments of the config files that set it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from neutreno.config.composing import CONFIGS, composed_files


def explanations(words: Sequence[str], name: str, config_dirs: Sequence[str] = ()) -> dict[str, str]:
    """Dotted keys that ``words`` compose, and what they are: what ``hydra/help/keys.yaml`` says of those that many
    files set, else the first file that sets it; then what the last one says of its value."""
    said = dict(yaml.safe_load((CONFIGS / "hydra/help/keys.yaml").read_text(encoding="utf-8")))
    last: dict[str, str | None] = {}
    for file, package in composed_files(words, name, config_dirs):
        for key, comment in comments(file.read_text(encoding="utf-8")):
            last[key := f"{package}.{key}".lstrip(".")] = comment
            if comment is not None:
                said.setdefault(key, comment)
    own = {key: comment for key, comment in last.items() if comment not in (None, said.get(key))}
    return {key: f"{text}; {own[key]}" if key in own else text for key, text in said.items()}


def comments(text: str) -> Iterator[tuple[str, str | None]]:
    """Dotted keys of a YAML file, and the comment at the end of the line."""
    lines = [*text.split("\n"), ""]

    def walk(node: yaml.Node, start: str) -> Iterator[tuple[str, str | None]]:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            text_block = isinstance(value, yaml.ScalarNode) and value.style in ("|", ">")  # ends where the next key is
            in_block = text_block or (isinstance(value, yaml.CollectionNode) and not value.flow_style)
            mark = value.end_mark if not in_block and value.end_mark.line >= key.end_mark.line else key.end_mark
            found = re.search(r"\s#\s*(.+)", lines[mark.line][mark.column :])
            yield f"{start}{key.value}", found.group(1) if found else None
            yield from walk(value, f"{start}{key.value}.")

    return walk(yaml.compose(text), "")


def listed(config: DictConfig, said: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """(key, value, what it is) of a config in its order, as they are typed: a section whose keys are explained has a
    line for each of them, another one is a value. A section's own line has its class as the value, or none."""

    def walk(node: dict[str, Any], start: str) -> Iterator[tuple[str, str, str]]:
        for name, value in node.items():
            key = f"{start}{name}"
            if str(name).startswith("_"):
                continue
            if isinstance(value, dict) and any(k.startswith(f"{key}.") for k in said):
                yield key, value.get("_target_", ""), said.get(key, "")
                yield from walk(value, f"{key}.")
            else:
                yield f"{key}=", _typed(_resolved(config, key, value)), said.get(key, "")

    return walk(OmegaConf.to_container(config, resolve=False), "")


def _resolved(config: DictConfig, key: str, written: Any) -> Any:
    """The value that a key looks up, where that is a single one; else as it is written."""
    found = OmegaConf.select(config, key, throw_on_resolution_failure=False)
    return written if found is None or OmegaConf.is_config(found) else found


def _typed(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    return text.removesuffix("...\n").strip()
