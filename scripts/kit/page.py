"""The kit's page, ``gpu_kit.md``: what its record holds, for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

NAME = "gpu_kit.md"
APART = ("table", "command", "test/top1", "note", "failed", "missing")  # of a row, not columns


def markdown(state: dict[str, Any]) -> str:
    parts = state["parts"]
    small = "; sizes reduced to try it out, so no figure here means anything" if state["small"] else ""
    missing = state["packages"].get("missing")
    lines = ["# Figures of the GPU kit", "", f"Device: {state['device']}{small}.", ""]
    lines += [f"    {call['command']}    # {call['began']}, {call.get('seconds', '…')} s" for call in state["calls"]]
    lines += ["", f"Missing packages: {', '.join(missing)}.", ""] if missing else [""]
    if problem := state["packages"].get("problem"):
        lines += [f"{problem}.", ""]
    lines += ["| part | status | seconds | note |", "|---|---|---|---|"]
    for name, part in parts.items():
        lines.append(f"| {name} | {part['status']} | {part['seconds']:g} | {cell(part['reason'])} |")
    if reason := state["pictures"].get("reason"):
        lines += ["", f"Pictures: {reason}"]
    lines += ["", "A ratio above 1 says that the first of the two is faster: median (quartiles) of n pairs measured in"]
    lines += ["alternation. Memory is the peak of a call beyond what stood before it.", ""]
    for name, part in parts.items():
        lines += section(name, part)
    lines += [f"![{file}]({file})\n" for file in state["pictures"].get("files", [])]
    return "\n".join(lines) + "\n"


def section(name: str, part: dict[str, Any]) -> Iterator[str]:
    rows = part["rows"]
    if not rows:
        return
    yield from (f"## {part['title']}", "", f"`python scripts/gpu_kit.py --out DIR --parts {name}`", "")
    yield from (where(part["environment"]), "")
    columns = list(dict.fromkeys(key for row in rows.values() for key in row if key not in APART))
    if columns:
        yield "| case | " + " | ".join(columns) + " |"
        yield "|---" * (len(columns) + 1) + "|"
    for case, row in rows.items():
        if row.keys() & set(columns):
            yield f"| {case} | " + " | ".join(cell(shown(row.get(key))) for key in columns) + " |"
    yield ""
    for case, row in rows.items():
        for key in row.keys() & {"missing", "failed"}:
            yield f"- {case}: {key}: {row[key]}"
    yield from ("", *(f"    {row['command']}" for row in rows.values() if "command" in row), "")
    yield from (f"{row['table'].strip()}\n" for row in rows.values() if "table" in row)


def where(environment: dict[str, Any] | None) -> str:
    """Hardware, versions and commit, in a line."""
    if not environment:
        return "its packages are missing, so nothing is known of this machine"
    hardware, versions, commit = (environment[key] for key in ("hardware", "versions", "git_commit"))
    names = ", ".join(f"{name} {versions[name]}" for name in ("torch", "timm", "lightning") if versions.get(name))
    cores = f"{hardware['cpu']}, {hardware['threads']} threads"
    at = [f"commit {commit[:12]}{commit[40:]}"] if commit else []  # with -dirty
    return "; ".join([*hardware.get("gpu", []), cores, names, *at])


def shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict) and "ratio" in value:
        first, second = value["ms"]
        interval = f"({value['low']:.3f}–{value['high']:.3f}, n = {value['n']})"
        return f"{value['ratio']:.3f} {interval}; {first:.4g} against {second:.4g} ms"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {shown(inner)}" for key, inner in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(shown, value)) or "none"
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
