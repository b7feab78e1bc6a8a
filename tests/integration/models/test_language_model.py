"""The language model with every attention: no token sees the future, and weights start as released."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from support import ROOT

from neutreno.data.text import Vocabulary
from neutreno.models.language_model import LanguageModel

# Re-attention is refused: tests/unit/models/test_variants.py
ATTENTIONS = sorted({p.stem for p in (ROOT / "configs/attention").glob("*.yaml")} - {"own", "reattention"})


def vocabulary(size):
    return Vocabulary(["<eos>", "<unk>", *(f"w{i}" for i in range(size - 2))])


@pytest.mark.parametrize("cutoffs", [[], [10, 30]])
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_no_token_sees_the_future(attention, cutoffs):
    overrides = ["data=python_docs", "model=lm", f"attention={attention}", "model.embed_dim=16", "model.depth=3"]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("train", overrides=[*overrides, f"model.cutoffs={cutoffs}"])
    model = instantiate(config.model, vocabulary=vocabulary(50)).double().eval()
    torch.manual_seed(0)
    ids, targets = torch.randint(50, (2, 2, 12))
    plain = [*model.hidden_states(ids), model(ids)]
    for position in (1, 6, 11):
        changed = ids.clone()
        changed[:, position:] = (ids[:, position:] + torch.randint(1, 50, (2, 12 - position))) % 50
        for before, after in zip(plain, [*model.hidden_states(changed), model(changed)], strict=True):
            torch.testing.assert_close(after[:, :position], before[:, :position], rtol=0, atol=1e-12)
            assert not torch.isclose(after[:, position:], before[:, position:]).all(-1).any()
        nll = [model(x, targets)[:, :position] for x in (ids, changed)]
        torch.testing.assert_close(*nll, rtol=0, atol=1e-12)


def test_weights_start_as_the_released_code_has_them():
    torch.manual_seed(0)
    model = LanguageModel(50, embed_dim=4096, depth=1, num_heads=2, mlp_ratio=1)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(norms) == 2 and not any(norm.bias.any() for norm in norms)
    for norm in norms:
        assert norm.weight.mean().item() == pytest.approx(1, abs=2e-3)
        assert norm.weight.std().item() == pytest.approx(0.02, rel=0.05)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    assert all(p.std().item() == pytest.approx(0.02, rel=0.02) for p in matrices)
