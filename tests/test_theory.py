"""`scripts/theory.py`: the descent of random tokens, and the energies of trained runs by layer."""

import json
import math
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, assert_one_line_error, run_forked
from PIL import Image

from neutreno.attention import NeutrenoAttention
from neutreno.errors import InputError
from neutreno.models.language_model import LanguageModel
from neutreno.models.segmenter import segmenter
from neutreno.models.timm import timm_model
from neutreno.models.vit import vit
from neutreno.oversmoothing.energies import descent, measure_energies
from neutreno.reports.layers import curve, part_of, stacks_of

RUNS = {
    "digits": [],
    "scenes": ["data=digit_scenes", "data.batch_size=100"],
    "docs": [
        "data=python_docs",
        "data.val_every_n_steps=4",
        "data.sequence_length=16",
        "trainer.max_steps=8",
        "data.batch_size=12",
    ],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("runs")
    for name, more in RUNS.items():
        bounded = [] if name == "docs" else ["trainer.max_epochs=1"]
        tiny = [argument for argument in TINY if "max_epochs" not in argument]
        done = run_forked("train.py", *tiny, *bounded, *more, f"name={name}", cwd=cwd)
        assert done.returncode == 0, done.stderr
    return cwd / "outputs"


def theory(*arguments, cwd):
    done = run_forked("scripts/theory.py", *map(str, arguments), cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def cells(markdown):
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if "|" in line]
    return pd.DataFrame(rows[2:], columns=rows[0])


def draws_both(prefix):
    with Image.open(f"{prefix}.png") as picture:
        assert picture.width == 2025  # 6.75 in at 300 dpi
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20
    assert prefix.with_name(f"{prefix.name}.pdf").read_bytes()[:5] == b"%PDF-"


@pytest.mark.parametrize("seed", [0, 1])
def test_J_brings_tokens_to_one_value_and_E_does_not(seed):
    rows, ends = descent([0, 0.2, 0.4, 0.6, 0.8, 1], steps=600, seed=seed)
    assert (rows[rows.step == 0][["E", "J", "distance"]] == 1).all(axis=None)
    assert (rows.groupby("lam").E.diff().dropna() <= 1e-12).all()
    assert ends.cosine[0] > 0.99 and ends.cosine_limit[0] == pytest.approx(1)
    assert (ends.cosine[1:] < 0.3).all() and ends.cosine_limit.is_monotonic_decreasing
    assert (ends.measured <= ends.rate * (1 + 1e-6)).all()
    assert (ends.measured > 0.95 * ends.rate).all() and ends.measured[0] == pytest.approx(ends.rate[0], rel=1e-4)


def test_beyond_one_it_diverges():
    _, ends = descent([1.0, 1.3], steps=60)
    assert ends.rate[0] < 1 < ends.rate[1] and ends.E[0] < 1 < 100 < ends.E[1]


def test_the_command_line_prints_the_table_and_draws_the_figure(tmp_path):
    table = cells(theory(cwd=tmp_path))
    assert list(table["λ̃"]) == ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    _, ends = descent([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert list(table["rate, theory"].astype(float)) == pytest.approx(list(ends.rate), abs=6e-4)
    assert list(table["cosine similarity after 32 steps"].astype(float)) == pytest.approx(list(ends.cosine), abs=6e-4)
    draws_both(tmp_path / "theory")
    options = ["--lams", "1.3,0", "--steps", 5, "--tokens", 9, "--dim", 3, "--seed", 4, "--output", "other"]
    table = cells(theory(*options, cwd=tmp_path))
    _, ends = descent([0, 1.3], 5, 9, 3, 4)
    assert list(table["J after 5 steps / start"].astype(float)) == pytest.approx(list(ends.J), rel=1e-3)
    assert "diverges" in table["where it ends"][1]
    draws_both(tmp_path / "other")


def plain_energies(blocks, x, causal):
    """J and G by layer, written out: double sums over pairs of tokens, the N × N matrix explicit."""
    energies, v0 = [], None
    for block in blocks:
        attn = block.attn
        q, k, v = (
            y.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2).double()
            for y in attn.qkv(block.norm1(x) if block.norm_first else x).chunk(3, -1)
        )
        v0 = v if v0 is None else v0
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if causal:
            scores = scores + torch.full(scores.shape[-2:], -math.inf, dtype=torch.float64).triu(1)
        a = scores.softmax(-1)
        apart = (v.unsqueeze(-2) - v.unsqueeze(-3)).square().sum(-1)
        degrees = a.sum(-1) + a.sum(-2)
        size = v.square().sum((1, 2, 3))
        j = (a * apart).sum((1, 2, 3)) / 2 / size
        g = (degrees * (v - v0).square().sum(-1)).sum((1, 2)) / 2 / size
        energies.append((j, g))
        x = block(x, None if len(energies) == 1 else v0.to(x.dtype))[0]
    return energies


@pytest.mark.parametrize("kind", ["vit", "segmenter", "language model"])
@torch.no_grad()
def test_energies_of_a_model_are_those_of_its_values_under_its_attention(kind):
    torch.manual_seed(0)
    attention = partial(NeutrenoAttention, lam=0.6)
    small = {"depth": 3, "embed_dim": 16, "num_heads": 2, "attention": attention}
    inputs = torch.randn(11, 3, 16, 16)
    if kind == "vit":
        model = vit(size="mini", img_size=16, patch_size=4, **small)
        trunks = {"blocks": (model.blocks, model.hidden_states(inputs)[0])}
    elif kind == "segmenter":
        model = segmenter(size="mini", img_size=16, patch_size=4, num_classes=3, **small).eval()
        hidden = model.encoder.hidden_states(inputs)
        classes = model.decoder.cls_emb.expand(11, -1, -1)
        entering = torch.cat([model.decoder.proj_dec(model.encoder.norm(hidden[-1])[:, 1:]), classes], 1)
        trunks = {
            "encoder.blocks": (model.encoder.blocks, hidden[0]),
            "decoder.blocks": (model.decoder.blocks, entering),
        }
    else:
        model = LanguageModel(30, drop_rate=0.1, **small).eval()
        inputs = torch.randint(30, (11, 12))
        trunks = {"blocks": (model.blocks, model.hidden_states(inputs)[0])}
    model.train()
    rows = pd.DataFrame(measure_energies(model, inputs, batch_size=4, run="x"))
    assert model.training and set(rows.run) == {"x"} and set(rows.samples) == {11} and set(rows["stack"]) == set(trunks)
    model.eval()
    for stack, (blocks, x) in trunks.items():
        for layer, energies in enumerate(plain_energies(blocks, x, kind == "language model"), start=1):
            for name, values in zip("JG", energies, strict=True):
                row = rows[(rows["stack"] == stack) & (rows.metric == name) & (rows.layer == layer)]
                assert row["mean"].item() == pytest.approx(values.mean().item(), rel=1e-4, abs=1e-9)
                assert row.sd.item() == pytest.approx(values.std().item(), rel=1e-3, abs=1e-7)
        g = rows[(rows["stack"] == stack) & (rows.metric == "G")].sort_values("layer")["mean"]
        assert g.iloc[0] == 0 and (g.iloc[1:] > 0.1).all()


def test_a_model_with_attention_of_its_own_is_refused():
    with pytest.raises(InputError, match="does not use this project's attention"):
        measure_energies(timm_model("test_vit"), torch.randn(2, 3, 160, 160))


def test_runs_of_every_task_are_measured_by_layer_on_their_probes_samples(runs):
    folders = [runs / name for name in RUNS]
    table = cells(theory(*folders, "--output", "layers", cwd=runs))
    assert list(dict.fromkeys(table["run"])) == list(RUNS)
    draws_both(runs / "layers")
    for folder in folders:
        found = json.loads((folder / "result.json").read_text())["oversmoothing"]
        for stack in stacks_of(found):
            part = table[(table["run"] == folder.name) & table["network"].isin(["", part_of(stack)])]
            assert list(part["layer (0 = embedding)"]) == ["0", "1", "2"]
            means = [float(cell.split()[0]) for cell in part["cosine similarity"]]
            assert means == pytest.approx(curve(found, stack=stack), abs=6e-4)


def test_probe_and_data_of_a_run_may_be_set(runs):
    table = cells(theory(runs / "digits", "probe.num_samples=1", "--output", "one", cwd=runs))
    assert all(cell.endswith("± 0.000") for cell in table["cosine similarity"])
    done = run_forked("scripts/theory.py", str(runs / "digits"), "model.depth=3", cwd=runs)
    assert_one_line_error(done, "model.depth", "leave it out")
    done = run_forked("scripts/theory.py", str(runs / "digits"), "probe.num_samples=abc", cwd=runs)
    assert_one_line_error(done, "probe.num_samples=abc")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nowhere"], "nowhere is not a run folder"),
        (["unfinished"], "no checkpoint at"),
        (["probe.num_samples=4"], "goes with a run folder"),
        (["digits", "--steps", "3"], "--steps is of the descent of random tokens"),
        (["--lams", "abc"], "--lams abc is not a list of numbers"),
        (["--lams", "0,,1"], "is not a list of numbers"),
        (["--lams=-0.2,0"], "--lams=-0.2 is not a finite number ≥ 0"),
        (["--lams", "nan"], "--lams=nan"),
        (["--steps", "0"], "--steps=0"),
        (["--tokens", "1"], "--tokens=1"),
        (["--output", "nowhere/theory"], "no folder nowhere"),
        (["--lams", "1e200"], "the descent at λ̃ = 1e+200 overflows at step 2"),
    ],
)
def test_a_mistake_is_told_in_one_line(runs, arguments, words):
    unfinished = runs / "unfinished"
    if not unfinished.exists():
        unfinished.mkdir()
        (unfinished / "config.yaml").write_bytes((runs / "digits/config.yaml").read_bytes())
    assert_one_line_error(run_forked("scripts/theory.py", *arguments, cwd=runs), words)
