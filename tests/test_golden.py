from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_script

from neutreno.golden import check

FILES = sorted((Path(__file__).parent / "golden").glob("*.npz"))
VIT, LM = (next(f for f in FILES if f"_{kind}_" in f.stem) for kind in ("vit", "lm"))
QUANTITIES = {"vit": {"hidden", "logits", "loss", "grad_norms"}, "lm": {"hidden", "nll", "grad_norms"}}


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_agrees_with_the_authors_code(file):
    lines = list(check(file))
    assert {line.quantity for line in lines} == QUANTITIES[file.stem.split("_")[1]]
    assert all(line.ok for line in lines), lines


def test_there_are_golden_files_of_both_kinds():
    assert {f.stem for f in FILES} >= {"shared_vit_softmax", "shared_vit_neutreno", "shared_lm_neutreno"}


@pytest.mark.parametrize("kind, key", [(kind, key) for kind, keys in QUANTITIES.items() for key in sorted(keys)])
def test_a_changed_value_is_found(tmp_path, kind, key):
    content = dict(np.load({"vit": VIT, "lm": LM}[kind]))
    content[key] = content[key] + 1e-3
    np.savez(tmp_path / "changed.npz", **content)
    assert [line.quantity for line in check(tmp_path / "changed.npz") if not line.ok] == [key]


def test_script_exits_non_zero_above_the_tolerance(tmp_path):
    content = dict(np.load(VIT))
    content["logits"] = content["logits"] * 1.01
    np.savez(tmp_path / "changed.npz", **content)
    done = run_script("scripts/check_golden.py", str(VIT), str(tmp_path / "changed.npz"), cwd=ROOT)
    assert done.returncode == 1 and "FAIL" in done.stdout and "ok " in done.stdout
