"""An evaluation as a page of Markdown that reads well in a terminal too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tabulate import tabulate

from neutreno.reports.layers import ALL, LAYERS, part_of, said_of, stacks_of, title_of

NAMES = {"imagenet_c": "ImageNet-C", "imagenet_a": "ImageNet-A", "imagenet_r": "ImageNet-R"}


def _table(rows: list, headers: list[str]) -> str:
    return tabulate(
        rows, headers, tablefmt="pipe", disable_numparse=True, colalign=["left"] + ["right"] * (len(headers) - 1)
    )


def _figures(evaluation: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in sorted(evaluation["metrics"].items(), key=lambda item: item[0].endswith("loss")):
        yield name, f"{value:.4f}" if name.endswith("loss") else f"{value:.2f}" + " %" * ("ppl" not in name)
    if evaluation["corrupt_images"]:
        yield "corrupt images left out, see evaluation_corrupt_images.txt", str(evaluation["corrupt_images"])
    for name, found in evaluation["robustness"].items():
        if name == "imagenet_c":
            yield "ImageNet-C mean corruption error (AlexNet 100)", f"{found['mce']:.2f}"
            yield "ImageNet-C mean error", f"{found['mean_error']:.2f} %"
        else:
            yield (
                f"{NAMES[name]} top-1 of {found['classes']} classes, {found['images']:,} images",
                f"{found['top1']:.2f} %",
            )
    if cost := evaluation["cost"]:
        size = " x ".join(map(str, cost["image_size"]))
        threads = "" if cost["threads"] is None else f", {cost['threads']} threads"
        yield "parameters", f"{cost['parameters']:,}"
        yield f"multiply-adds of an image, {size}", f"{cost['multiply_adds'] / 1e9:.3f} G"
        yield (
            f"images/s, batch {cost['batch_size']}, {cost['precision']}, {cost['device']}{threads}",
            f"{cost['images_per_s']:.1f}",
        )
        if cost["peak_cuda_memory_mib"] is not None:
            yield "peak CUDA memory", f"{cost['peak_cuda_memory_mib']:,.0f} MiB"
        else:
            yield "peak RSS of the process, data and libraries included", f"{cost['process_peak_rss_mib']:,.0f} MiB"


def render(evaluation: dict[str, Any]) -> str:
    """``evaluation.json`` for people: the figures, ImageNet-C by corruption, similarity of tokens by layer."""
    settings = evaluation["settings"]
    source = settings["run"] or settings["model"]["weights"] or f"timm's {settings['model']['name']}"
    page = [f"# {evaluation['name']}", f"Weights: {source}", _table(list(_figures(evaluation)), ["figure", "value"])]
    if inference := settings.get("inference"):
        protocols = {"": {}} | {
            f"_{name}": how for name, how in (settings["protocols"] or {}).items() if how is not None
        }
        rows = [
            [f"val{name}", *(str({**inference, **how}.get(k, "")) for k in ("window", "stride", "scales", "flip"))]
            for name, how in protocols.items()
        ]
        page.append(_table(rows, ["inference", "window", "stride", "scales", "flip"]))
    if corruptions := evaluation["robustness"].get("imagenet_c"):
        rows = [
            [name, *(f"{e:.2f}" for e in by_severity.values()), f"{corruptions['normalised'][name]:.2f}"]
            for name, by_severity in corruptions["errors"].items()
        ]
        headers = ["ImageNet-C: error in %, severity", "1", "2", "3", "4", "5", "mean / AlexNet's"]
        page.append(_table(rows, headers))
    if found := evaluation["perplexity"]:
        rows = [
            [r["split"], str(r["stride"]), f"{r['tokens']:,}", f"{r['windows']:,}", f"{r['ppl']:.3f}"] for r in found
        ]
        headers = [
            f"perplexity, windows of {found[0]['window']} words",
            "stride",
            "words scored",
            "windows",
            "perplexity",
        ]
        page.append(_table(rows, headers))
    page += layer_tables(evaluation["oversmoothing"])
    return "\n\n".join(page) + "\n"


def layer_tables(rows: list[dict[str, Any]]) -> list[str]:
    """Layer-wise metrics, a table per stack: a row per layer, a column per metric and subset, mean ± sd of samples."""
    pages, stacks = [], stacks_of(rows)
    for stack in stacks:
        own = [row for row in rows if row["stack"] == stack]
        columns = dict.fromkeys((row["metric"], row["subset"]) for row in own)
        headers = [title_of(m) + ("" if subset == ALL else f", {said_of(subset)}") for m, subset in columns]
        at = {(r["layer"], (r["metric"], r["subset"])): _mean(r) for r in own}
        table = [[str(i), *(at.get((i, c), "") for c in columns)] for i in sorted({row["layer"] for row in own})]
        first = LAYERS if len(stacks) == 1 else f"{part_of(stack)} {LAYERS}"
        pages.append(_table(table, [first, *headers]))
    return pages


def _mean(row: dict[str, Any]) -> str:
    return f"{row['mean']:.4g}" + ("" if row["sd"] is None else f" ± {row['sd']:.2g}")
