"""Tables and figures of :mod:`neutreno.oversmoothing.energies`."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from neutreno.reports.drawing import GREY, PAGE, STYLE, keep_within, number_scale, plain, save_both, subplots
from neutreno.reports.escaping import markdown_table
from neutreno.reports.figures import by_layer
from neutreno.reports.layers import LARGEST, part_of, wide
from neutreno.reports.styles import styles_of


def descent_table(ends: pd.DataFrame) -> str:
    """As Markdown, a row per λ̃."""
    steps, rounded = ends.step.iloc[0], "{:.3f}".format
    limit = ends.E_limit.map(lambda e: f"{abs(e):.4g}" if abs(e) > 1e-12 else "0")
    columns = {
        "λ̃": ends.lam.map("{:g}".format),
        "rate, theory": ends.rate.map(rounded),
        "rate, measured": ends.measured.map(rounded),
        f"E after {steps} steps / start": ends.E.map("{:.4g}".format),
        "E where it ends / start": limit.mask(ends.rate > 1, "diverges"),
        f"J after {steps} steps / start": ends.J.map("{:.4g}".format),
        f"cosine similarity after {steps} steps": ends.cosine.map(rounded),
        "where it ends": ends.cosine_limit.map(rounded).mask(ends.rate > 1, "diverges"),
    }
    return pd.DataFrame(columns).to_markdown(index=False, disable_numparse=True)


def plot_descent(rows: pd.DataFrame, ends: pd.DataFrame, prefix: str | Path) -> list[Path]:
    """Energies and similarity over the steps, a colour per λ̃; dashed: the theory's bound on J. As PDF and PNG."""
    with plt.rc_context(STYLE):
        figure, axes = subplots(ncols=3, figsize=(PAGE, 2.2))
        figure.get_layout_engine().set(w_pad=0.08)
        scale = number_scale([0, 1, *rows.lam])
        for panel in axes[:2]:
            panel.set_yscale("log")
        for panel, name in zip(axes, ("E", "J", "cosine"), strict=True):
            for lam, curve in rows.groupby("lam"):
                panel.plot(curve.step, curve[name], color=scale.to_rgba(lam))
            said = "cosine similarity" if name == "cosine" else f"{name} / {name} at the start"
            panel.set(xlabel="step t", xlim=(0, rows.step.max()), ylabel=said)
        for _, end in ends[ends.lam == 0].iterrows():
            steps = rows.step.unique()
            axes[1].plot(steps, end.rate ** (2 * steps), "--", color=GREY, lw=1)
            title = r"dashed: $|\lambda_2|^{2t}$, the bound for $\tilde{\lambda} = 0$"
            axes[1].set_title(title, fontsize=STYLE["legend.fontsize"])
        keep_within(axes[2], LARGEST["cosine"])
        figure.colorbar(scale, ax=axes[-1], label=plain("λ̃ (0: softmax)"), ticks=sorted(rows.lam.unique()))
        return save_both(figure, prefix)


def layers_table(rows: pd.DataFrame) -> str:
    """As Markdown, a row per run and block."""
    network = [_network(rows, run, stack) for run, stack in zip(rows.run, rows["stack"], strict=True)]
    index = ["run", "network", "layer"] if any(network) else ["run", "layer"]
    table = wide(rows.assign(network=network), index).map(str)
    return markdown_table(table.values.tolist(), list(table))


def plot_layers(rows: pd.DataFrame, prefix: str | Path) -> list[Path]:
    """J, G and similarity by layer, a curve per run and part of its network, styled by its ``method``; band ± sd of
    samples. As PDF and PNG."""
    parts = rows.groupby(["run", "stack"], sort=False)
    styles = styles_of(part["method"].iloc[0] for _, part in parts)
    curves = [
        (part.assign(stack=""), ", ".join(filter(None, [run, _network(rows, run, stack)])), style.drawn)
        for ((run, stack), part), style in zip(parts, styles, strict=True)
    ]
    with plt.rc_context(STYLE):
        return save_both(by_layer(curves, size=(PAGE, 2.3)), prefix)


def _network(rows: pd.DataFrame, run: str, stack: str) -> str:
    """Which part of its network a stack is, where a run has several."""
    return part_of(stack) if rows["stack"][rows.run == run].nunique() > 1 else ""
