from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_script
from golden import check

OF_VIT = {"hidden", "logits", "loss", "grad_norms"}
QUANTITIES = {
    "shared_vit_softmax": OF_VIT,
    "shared_vit_neutreno": OF_VIT,
    "shared_lm_neutreno": {"hidden", "nll", "grad_norms"},
    "shared_segmenter_neutreno": {"masks", "single_scale_probs", "multi_scale_probs"},
}
FILES = sorted((Path(__file__).parent / "golden").glob("*.npz"))
VIT = Path(__file__).parent / "golden/shared_vit_neutreno.npz"


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_agrees_with_the_authors_code(file):
    lines = list(check(file))
    assert {line.quantity for line in lines} == QUANTITIES[file.stem]
    assert all(line.ok for line in lines), lines


def test_there_are_golden_files_of_all_models():
    assert {f.stem for f in FILES} == QUANTITIES.keys()


@pytest.mark.parametrize("file, key", [(f, key) for f in FILES for key in sorted(QUANTITIES[f.stem])])
def test_a_changed_value_is_found(tmp_path, file, key):
    content = dict(np.load(file))
    content[key] = content[key] + 1e-3
    np.savez(tmp_path / "changed.npz", **content)
    assert [line.quantity for line in check(tmp_path / "changed.npz") if not line.ok] == [key]


def test_script_exits_non_zero_above_the_tolerance(tmp_path):
    content = dict(np.load(VIT))
    content["logits"] = content["logits"] * 1.01
    np.savez(tmp_path / "changed.npz", **content)
    done = run_script("scripts/check_golden.py", str(VIT), str(tmp_path / "changed.npz"), cwd=ROOT)
    assert done.returncode == 1 and "FAIL" in done.stdout and "ok " in done.stdout
