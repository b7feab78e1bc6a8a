"""What a segmentation leaves to look at: IoU by class as a table and bars, and a panel of images with their masks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colors
from matplotlib import pyplot as plt
from matplotlib.patches import Patch

from neutreno.files import replacing
from neutreno.reports.escaping import csv_text
from neutreno.reports.figures import COLOURS, GREY, STYLE, heading, plain, save, subplots

IN_A_COLUMN = 50  # bars
IN_THE_LEGEND = 24


def write(left: dict[str, Any], folder: Path, prefix: str = "") -> list[Path]:
    """IoU by class (CSV and bars) and a panel of validation images, of what a task's last evaluation left.

    Args:
        left: ``names`` of the classes, ``by_class`` as :func:`class_table` and ``shown`` as :func:`plot_panel` take it.
    """
    names, title, files = left["names"], f"{folder.name}: validation", []
    if "val" in left["by_class"]:  # no batch of it may have been asked for
        table = class_table(left["by_class"], names)
        files = [folder / f"{prefix}class_iou.csv", folder / f"{prefix}class_iou.png"]
        with replacing(files[0]) as file:
            file.write(csv_text(table))
        plot_class_iou(table[table.split == "val"], files[1], title)
    if left["shown"]:  # none where the images that were to be shown could not be read
        files.append(folder / f"{prefix}predictions.png")
        plot_panel(left["shown"], names, files[-1], title)
    return files


def class_table(by_class: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> pd.DataFrame:
    """One row per split (with its protocol) and class: IoU and accuracy in percent, empty where undefined; pixels."""
    tables = []
    for where, found in by_class.items():
        percent = {key: (100 * np.asarray(found[key])).round(4) for key in ("iou", "acc")}
        columns = {"split": where, "index": range(len(names)), "name": list(names), **percent}
        tables.append(pd.DataFrame({**columns, "pixels": np.asarray(found["pixels"])}))
    return pd.concat(tables, ignore_index=True)


def plot_class_iou(table: pd.DataFrame, path: str | Path, title: str = "") -> None:
    """IoU by class of one split as bars, the best first, with the mean as a line; undefined ones last, empty."""
    table = table.sort_values("iou", ascending=False, na_position="last").reset_index(drop=True)
    columns = math.ceil(len(table) / IN_A_COLUMN)
    rows = math.ceil(len(table) / columns)
    with plt.rc_context({**STYLE, "axes.grid": False}):
        size = (max(6.4, 3.6 * columns), 1.3 + 0.24 * rows)
        figure, axes = subplots(1, columns, figsize=size, squeeze=False, sharex=True)
        heading(figure, title)
        mean = table.iou.mean()
        for column, panel in enumerate(axes[0]):
            part = table.iloc[column * rows : (column + 1) * rows]
            bars = panel.barh(np.arange(len(part)), part.iou.fillna(0), color=COLOURS[0], height=0.75)
            panel.bar_label(bars, ["–" if math.isnan(v) else f"{v:.1f}" for v in part.iou], padding=3, fontsize=8)
            panel.axvline(mean, color=GREY, linewidth=1, linestyle="--", zorder=0)
            panel.set_yticks(np.arange(len(part)), [plain(name, 24) for name in part.name], fontsize=8)
            panel.set(xlim=(0, 108), ylim=(rows - 0.4, -0.6), xlabel=f"IoU in %, dashed: mean {mean:.1f}")
            panel.tick_params(axis="y", length=0)
        save(figure, Path(path))


def _palette(num_classes: int) -> np.ndarray:
    """A colour for each class, then black for what is ignored: (num_classes + 1, 3)."""
    hues = (np.arange(num_classes) * 0.618034) % 1  # the golden ratio keeps neighbours apart
    tones = np.array([(0.85, 0.9), (0.5, 0.95), (0.75, 0.6)])[np.arange(num_classes) % 3]
    return np.concatenate([colors.hsv_to_rgb(np.column_stack([hues, tones])), np.zeros((1, 3))])


def plot_panel(shown: Sequence[tuple[Any, Any, Any]], names: Sequence[str], path: str | Path, title: str = "") -> None:
    """A row per sample: image, ground truth, prediction; ignored pixels are black in both masks.

    Args:
        shown: (image (C, h, w) in any range, mask (H, W), prediction (H, W)); what is no class is ignored.
    """
    palette, count = _palette(len(names)), len(names)
    pixels = np.zeros(count + 1, int)  # of each class, and what is ignored
    with plt.rc_context({**STYLE, "axes.grid": False}):
        ratio = np.mean([mask.shape[0] / mask.shape[1] for _, mask, _ in shown])
        legend = 0.2 * math.ceil(min(count, IN_THE_LEGEND) / 5) + 0.2
        size = (9.0, 0.7 + legend + len(shown) * (3.0 * ratio + 0.08))
        figure, axes = subplots(len(shown), 3, figsize=size, squeeze=False)
        heading(figure, title)
        for row, (image, mask, predicted) in zip(axes, shown, strict=True):
            image, mask = np.asarray(image, dtype=np.float32), np.asarray(mask)
            image = ((image - image.min()) / max(image.max() - image.min(), 1e-6)).transpose(1, 2, 0)
            truth = np.where(mask < count, mask, count)
            guess = np.where(truth == count, count, np.asarray(predicted))
            height, width = truth.shape
            row[0].imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="grey", extent=(0, width, height, 0))
            for axis, labels in zip(row[1:], (truth, guess), strict=True):
                axis.imshow(palette[labels], interpolation="nearest")
                pixels += np.bincount(labels.ravel(), minlength=count + 1)
        for axis, name in zip(axes[0], ("image", "ground truth", "prediction"), strict=True):
            axis.set_title(name, fontsize=10)
        for axis in axes.flat:
            axis.axis("off")
        by_area = [i for i in np.argsort(-pixels[:count], kind="stable") if pixels[i]]
        handles = [Patch(color=palette[i], label=plain(names[i], 16)) for i in by_area[:IN_THE_LEGEND]]
        if pixels[count]:
            handles.append(Patch(color=palette[count], label="ignored"))
        if (more := len(by_area) - IN_THE_LEGEND) > 0:
            handles.append(Patch(color="none", label=f"and {more} more classes"))
        figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=8)
        save(figure, Path(path))
