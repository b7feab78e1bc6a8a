"""Tables and figures of :mod:`neutreno.oversmoothing.energies`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from neutreno.reports.figures import (
    COLOURS,
    GREY,
    MARKERS,
    PAPER,
    STYLE,
    number_scale,
    plain,
    plt,
    save_both,
)
from neutreno.reports.layers import LAYERS, part_of, title_of

OF_LAYERS = ("J", "G", "cosine")


def descent_table(ends: pd.DataFrame) -> str:
    """As Markdown, a row per λ̃."""
    steps = ends.step.iloc[0]
    columns = {
        "λ̃": ends.lam.map("{:g}".format),
        "rate, theory": ends.rate.map("{:.3f}".format),
        "rate, measured": ends.measured.map("{:.3f}".format),
        f"E after {steps} steps / start": ends.E.map("{:.4g}".format),
        "E where it ends / start": ends.E_limit.map(lambda e: f"{abs(e):.4g}" if abs(e) > 1e-12 else "0"),
        f"J after {steps} steps / start": ends.J.map("{:.4g}".format),
        f"cosine similarity after {steps} steps": ends.cosine.map("{:.3f}".format),
        "where it ends": ends.cosine_limit.map("{:.3f}".format),
    }
    diverged = ends.rate > 1
    for name in ("E where it ends / start", "where it ends"):
        columns[name] = columns[name].mask(diverged, "diverges")
    return pd.DataFrame(columns).to_markdown(index=False, disable_numparse=True)


def plot_descent(rows: pd.DataFrame, ends: pd.DataFrame, prefix: str | Path) -> list[Path]:
    """Energies and similarity over the steps, a colour per λ̃; dashed: the theory's bound on J. As PDF and PNG."""
    with plt.rc_context({**STYLE, **PAPER}):
        figure, axes = plt.subplots(ncols=3, figsize=(6.75, 2.4), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08)
        scale = number_scale([0, 1, *rows.lam])
        for panel in axes[:2]:
            panel.set_yscale("log")
        for lam, curve in rows.groupby("lam"):
            for panel, name in zip(axes, ("E", "J", "cosine"), strict=True):
                panel.plot(curve.step, curve[name], color=scale.to_rgba(lam), lw=1.2)
        for _, end in ends[ends.lam == 0].iterrows():
            steps = rows.step.unique()
            axes[1].plot(steps, end.rate ** (2 * steps), "--", color=GREY, lw=1)
            axes[1].set_title("dashed: |λ₂|²ᵗ, the bound for λ̃ = 0", fontsize=PAPER["legend.fontsize"])
        axes[0].set(ylabel="E / E at the start")
        axes[1].set(ylabel="J / J at the start")
        axes[2].set(ylabel="cosine similarity", ylim=(min(0.0, rows.cosine.min()) - 0.02, 1.02))
        for panel in axes:
            panel.set(xlabel="step t", xlim=(0, rows.step.max()))
        figure.colorbar(scale, ax=axes[-1], label="λ̃ (0 = softmax)", ticks=sorted(rows.lam.unique()))
        return save_both(figure, prefix)


def layers_table(rows: pd.DataFrame) -> str:
    """As Markdown, a row per run and block."""
    rows = rows.assign(
        text=[f"{mean:.3f} ± {sd:.3f}" for mean, sd in zip(rows["mean"], rows.sd, strict=True)],
        network=[_network(rows, run, stack) for run, stack in zip(rows.run, rows["stack"], strict=True)],
    )
    index = ["run", "network", "layer"] if rows.network.any() else ["run", "layer"]
    given = {key: pd.Categorical(rows[key], rows[key].unique()) for key in ("run", "network")}  # in this order
    table = rows.assign(**given).pivot(index=index, columns="metric", values="text")[list(OF_LAYERS)].fillna("")
    table = table.rename(columns=title_of).reset_index().rename(columns={"layer": LAYERS})
    return table.to_markdown(index=False, disable_numparse=True)


def plot_layers(rows: pd.DataFrame, prefix: str | Path) -> list[Path]:
    """J, G and similarity by layer, a curve per run and part of its network, band ± sd of samples: PDF and PNG."""
    with plt.rc_context({**STYLE, **PAPER}):
        figure, axes = plt.subplots(ncols=3, figsize=(6.75, 2.6), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08)
        for number, ((run, stack), curves) in enumerate(rows.groupby(["run", "stack"], sort=False)):
            label = ", ".join(filter(None, [run, _network(rows, run, stack)]))
            style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
            for panel, name in zip(axes, OF_LAYERS, strict=True):
                curve = curves[curves.metric == name].sort_values("layer")
                panel.plot(curve.layer, curve["mean"], ms=2.5, lw=1.1, label=plain(label, 60), **style)
                low, high = curve["mean"] - curve.sd, curve["mean"] + curve.sd
                panel.fill_between(curve.layer, low, high, color=style["color"], alpha=0.15, linewidth=0)
        for panel, name in zip(axes, OF_LAYERS, strict=True):
            panel.set(xlabel=LAYERS, ylabel=title_of(name), xlim=(0, rows.layer.max() + 0.3))
            panel.set_ylim(bottom=min(0.0, rows["mean"][rows.metric == name].min()))
            panel.set_xticks(range(0, rows.layer.max() + 1, max(1, rows.layer.max() // 6)))
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=min(2, len(labels)))
        return save_both(figure, prefix)


def _network(rows: pd.DataFrame, run: str, stack: str) -> str:
    """Which part of its network a stack is, where a run has several."""
    return part_of(stack) if rows["stack"][rows.run == run].nunique() > 1 else ""
