import numpy as np
from support import ROOT, run_forked

VIT = ROOT / "tests/golden/shared_vit_neutreno.npz"


def test_script_exits_non_zero_above_the_tolerance(tmp_path):
    content = dict(np.load(VIT))
    content["logits"] = content["logits"] * 1.01
    np.savez(tmp_path / "changed.npz", **content)
    done = run_forked("scripts/check_golden.py", str(VIT), str(tmp_path / "changed.npz"), cwd=ROOT)
    assert done.returncode == 1 and "FAIL" in done.stdout and "ok " in done.stdout
