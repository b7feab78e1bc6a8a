import numpy as np
import pytest
from golden import check
from support import ROOT

OF_VIT = {"hidden", "logits", "loss", "grad_norms"}
OF_GRAPH = {"logits_train", "loss", "grad_norms", "logits_eval", "intra", "inter", "group_distance_ratio"}
OF_GRAPH |= {"instance_information_gain"}


def of_layers(layers, statistics=()):
    after = {f"after/layers_bn.{i}.bn.{name}" for i in range(layers) for name in statistics}
    return OF_GRAPH | {f"hidden_train/{i}" for i in range(layers)} | after


RUNNING = ("running_mean", "running_var")
QUANTITIES = {
    "shared_vit_softmax": OF_VIT,
    "shared_vit_neutreno": OF_VIT,
    "shared_lm_neutreno": {"hidden", "nll", "grad_norms"},
    "shared_segmenter_neutreno": {"masks", "single_scale_probs", "multi_scale_probs"},
    "shared_graph_gcn_group": of_layers(4, RUNNING),
    "shared_graph_gat_group": of_layers(3, RUNNING),
    "shared_graph_sgc_pair": of_layers(5),
}
FILES = sorted((ROOT / "tests/golden").glob("*.npz"))


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
