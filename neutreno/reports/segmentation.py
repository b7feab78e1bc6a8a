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
from matplotlib.lines import Line2D

from neutreno.files import replacing
from neutreno.reports.drawing import INK, PAGE, PALE, STYLE, heading, plain, save, subplots
from neutreno.reports.escaping import csv_text

IN_A_COLUMN = 50  # bars
IN_THE_LEGEND = 24
BARS = "#8fa3b8"  # no method's colour


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
        size = (max(4.5, 3.25 * columns), 0.9 + 0.17 * rows)
        figure, axes = subplots(1, columns, figsize=size, squeeze=False, sharex=True)
        heading(figure, title)
        mean = table.iou.mean()
        for column, panel in enumerate(axes[0]):
            part = table.iloc[column * rows : (column + 1) * rows]
            bars = panel.barh(np.arange(len(part)), part.iou.fillna(0), color=BARS, height=0.75)
            texts = panel.bar_label(bars, ["–" if math.isnan(v) else f"{v:.1f}" for v in part.iou], padding=3)
            panel.axvline(mean, color=INK, linewidth=0.8, linestyle="--", zorder=3)
            for text in texts:  # above the line, which they would be crossed by
                text.set(fontsize=7, zorder=4, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8})
            panel.set_yticks(np.arange(len(part)), [plain(name, 24) for name in part.name])
            panel.set(xlim=(0, 108), ylim=(rows - 0.4, -0.6), xlabel=f"IoU in %; dashed: mean {mean:.1f}")
            panel.set_xticks(range(0, 101, 20))
            panel.tick_params(axis="y", length=0)
        save(figure, Path(path))


def _palette(names: Sequence[str]) -> np.ndarray:
    """A colour for each class, pale for the background, then black for what is ignored: (classes + 1, 3)."""
    number = np.arange(len(names))
    hues = (0.58 + number * 0.618034) % 1  # the golden ratio keeps neighbours apart
    tones = np.array([(0.75, 0.8), (0.45, 0.95), (0.7, 0.55)])[number % 3]
    colours = colors.hsv_to_rgb(np.column_stack([hues, tones]))
    colours[[name.lower() == "background" for name in names]] = colors.to_rgb(PALE)
    return np.concatenate([colours, np.zeros((1, 3))])


def plot_panel(shown: Sequence[tuple[Any, Any, Any]], names: Sequence[str], path: str | Path, title: str = "") -> None:
    """A row per sample: image, ground truth, prediction; ignored pixels are black in both masks.

    Args:
        shown: (image (C, h, w) in any range, mask (H, W), prediction (H, W)); what is no class is ignored.
    """
    palette, count = _palette(names), len(names)
    pixels = np.zeros(count + 1, int)  # of each class, and what is ignored
    with plt.rc_context({**STYLE, "axes.grid": False}):
        ratios = [mask.shape[0] / mask.shape[1] for _, mask, _ in shown]
        legend = 0.16 * math.ceil(min(count, IN_THE_LEGEND) / 5) + 0.15
        size = (PAGE, 0.5 + legend + sum(ratios) * (PAGE / 3 - 0.06) + 0.06 * len(shown))
        figure, axes = subplots(len(shown), 3, figsize=size, squeeze=False, height_ratios=ratios)
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
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
            axis.set_title(name)
        for axis in axes.flat:
            axis.axis("off")
        by_area = [i for i in np.argsort(-pixels[:count], kind="stable") if pixels[i]]
        square = {"marker": "s", "linestyle": "", "markersize": 6}
        handles = [Line2D([], [], color=palette[i], label=plain(names[i], 16), **square) for i in by_area]
        handles = handles[:IN_THE_LEGEND]
        if pixels[count]:
            handles.append(Line2D([], [], color=palette[count], label="ignored", **square))
        if (more := len(by_area) - IN_THE_LEGEND) > 0:
            handles.append(Line2D([], [], color="none", label=f"and {more} more classes"))
        figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)), handlelength=1)
        save(figure, Path(path))
