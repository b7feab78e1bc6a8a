"""The language model's parts and weights; what the authors' code computes is in test_golden.py."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import ROOT
from torch.utils._python_dispatch import TorchDispatchMode

from neutreno.attention import NeutrenoAttention
from neutreno.data.text import Vocabulary
from neutreno.errors import InputError
from neutreno.models.adaptive_softmax import AdaptiveSoftmax
from neutreno.models.language_model import LanguageModel, own_names, sinusoidal_positions
from neutreno.models.transformer import FeatScaleBlock

GOLDEN = ROOT / "tests/golden/shared_lm_neutreno.npz"
SMALL = {"embed_dim": 16, "depth": 3, "num_heads": 2, "mlp_ratio": 2}


def vocabulary(size):
    return Vocabulary(["<eos>", "<unk>", *(f"w{i}" for i in range(size - 2))])


def test_featscale_would_see_the_future_and_is_refused():
    with pytest.raises(InputError, match=r"block=featscale .* future"):
        LanguageModel(50, **SMALL, block=FeatScaleBlock)


def test_the_fidelity_term_acts_in_every_layer_but_the_first():
    torch.manual_seed(0)
    softmax, neutreno = (
        LanguageModel(50, **SMALL).eval(),
        LanguageModel(50, **SMALL, attention=NeutrenoAttention).eval(),
    )
    neutreno.load_state_dict(softmax.state_dict())
    ids = torch.randint(50, (2, 9))
    same = [torch.equal(a, b) for a, b in zip(softmax.hidden_states(ids), neutreno.hidden_states(ids), strict=True)]
    assert same == [True, True, False, False]


def block_of(placement, block, depth, x):
    """A block, written out; the attention itself is another test's claim."""

    def mlp(x):
        return block.mlp.fc2(block.mlp.fc1(x).relu())

    if placement == "pre":
        x = x + block.attn(block.norm1(x))[0]
        return x + mlp(block.norm2(x))
    alpha = (2 * depth) ** 0.25 if placement == "deepnorm" else 1
    x = block.norm1(alpha * x + block.attn(x)[0])
    return block.norm2(alpha * x + mlp(x))


@pytest.mark.parametrize("placement", ["pre", "post", "deepnorm"])
def test_norms_stand_where_they_are_placed(placement):
    torch.manual_seed(0)
    model = LanguageModel(50, **SMALL, norm_placement=placement).double().eval()
    ids = torch.randint(50, (2, 9))
    hidden = model.hidden_states(ids)
    for x, block, after in zip(hidden, model.blocks, hidden[1:], strict=False):
        torch.testing.assert_close(block_of(placement, block, 3, x), after)
    names = {name for name in model.state_dict() if name.startswith("norm")}
    assert names == ({"norm.weight", "norm.bias"} if placement == "pre" else set())
    last = F.layer_norm(hidden[-1], (16,), *model.norm.parameters()) if placement == "pre" else hidden[-1]
    torch.testing.assert_close(model.forward_features(ids), last)


def test_deepnorm_shrinks_at_the_start_what_adds_to_the_residual_stream_and_nothing_else():
    torch.manual_seed(0)
    model = LanguageModel(500, embed_dim=64, depth=8, num_heads=2, mlp_ratio=4, init_std=0.1, norm_placement="deepnorm")
    for block in model.blocks:
        q, k, v = block.attn.qkv.weight.chunk(3)
        for weight in (q, k, model.softmax.weight):
            assert weight.std().item() == pytest.approx(0.1, rel=0.05)
        for weight in (v, block.attn.proj.weight, block.mlp.fc1.weight, block.mlp.fc2.weight):
            assert weight.std().item() == pytest.approx(0.1 * 64**-0.25, rel=0.05)


def test_targets_of_the_last_words_alone():
    model = LanguageModel(50, **SMALL, cutoffs=[10]).double().eval()
    ids, targets = torch.randint(50, (2, 2, 9))
    torch.testing.assert_close(model(ids, targets[:, -3:]), model(ids, targets)[:, -3:])
    torch.testing.assert_close(model.next_token(ids), model(ids)[:, -1])


def test_positions_count_down_so_the_last_word_stands_at_zero():
    positions = sinusoidal_positions(5, torch.zeros(1, 8, dtype=torch.float64))
    assert positions.shape == (5, 8)
    for i in range(5):
        angles = [(4 - i) / 10000 ** (2 * j / 8) for j in range(4)]
        expected = torch.tensor([*map(math.sin, angles), *map(math.cos, angles)], dtype=torch.float64)
        torch.testing.assert_close(positions[i], expected)


@pytest.fixture
def softmax():
    torch.manual_seed(0)
    layer = AdaptiveSoftmax(60, 8, [20, 35]).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer


def test_adaptive_softmax_is_a_distribution_and_nll_its_negative_logarithm(softmax):
    hidden, targets = torch.randn(5, 7, 8, dtype=torch.float64), torch.randint(60, (5, 7))
    log_p = softmax.log_prob(hidden)
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(5, 7, dtype=torch.float64))
    torch.testing.assert_close(softmax.nll(hidden, targets), -log_p.gather(-1, targets[..., None])[..., 0])


@pytest.mark.parametrize("words", [[3, 4], [25, 50], [50, 50]])
def test_clusters_without_a_target_do_no_harm(softmax, words):
    hidden = torch.randn(2, 8, dtype=torch.float64)
    nll = softmax.nll(hidden, torch.tensor(words))
    torch.testing.assert_close(nll, -softmax.log_prob(hidden)[[0, 1], words])
    nll.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in softmax.parameters())


def test_clusters_are_read_from_the_heads_end(softmax):
    hidden = torch.randn(8, dtype=torch.float64)
    weight = torch.cat([softmax.weight[:20], softmax.cluster_weight])
    head = F.log_softmax(weight @ hidden + torch.cat([softmax.bias[:20], softmax.cluster_bias]), 0)
    clusters = softmax.log_prob(hidden).exp()[20:].split([15, 25])
    torch.testing.assert_close(torch.stack([c.sum() for c in clusters]).log(), head[[-1, -2]])


@pytest.mark.parametrize("cutoffs", [None, []])
def test_no_cutoffs_give_a_plain_softmax(cutoffs):
    layer = AdaptiveSoftmax(60, 8, cutoffs)
    torch.nn.init.normal_(layer.weight)
    hidden, targets = torch.randn(5, 8), torch.randint(60, (5,))
    logits = F.linear(hidden, layer.weight, layer.bias)
    torch.testing.assert_close(layer.log_prob(hidden), logits.log_softmax(-1))
    torch.testing.assert_close(layer.nll(hidden, targets), F.cross_entropy(logits, targets, reduction="none"))
    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias"}


def test_training_never_holds_tokens_times_vocabulary():
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else [out]:
                if isinstance(x, torch.Tensor):
                    self.numel = max(self.numel, x.numel())
            return out

    layer = AdaptiveSoftmax(5000, 4, [100, 500])
    torch.nn.init.normal_(layer.weight)
    hidden, targets = torch.randn(400, 4, requires_grad=True), torch.arange(400) % 120
    targets[::40] = 4000  # the rarest words are few
    with Largest() as seen:
        layer.nll(hidden, targets).sum().backward()
    assert seen.numel < 400 * 5000 / 10


@pytest.mark.parametrize("cutoffs", [[20, 60], [70], [30, 20], [20, 20], [0, 5], [2.5], ["a"], [True]])
def test_cutoffs_that_do_not_cut_are_refused(cutoffs):
    with pytest.raises(InputError, match=r"model\.cutoffs"):
        AdaptiveSoftmax(60, 8, cutoffs)


@pytest.fixture
def released(tmp_path):
    """(golden content, a file with its weights as the released code saves them)."""
    golden = dict(np.load(GOLDEN))
    weights = {k[2:]: torch.from_numpy(v) for k, v in golden.items() if k.startswith("w/")}
    weights["crit.out_layers.0.weight"] = weights["word_emb.emb_layers.0.weight"]  # tied, but saved twice
    weights["pos_emb.inv_freq"] = torch.ones(16)
    torch.save(weights, tmp_path / "released.pt")
    return golden, tmp_path / "released.pt"


def test_weights_under_the_released_names_load(released):
    golden, file = released
    meta = json.loads(str(golden["meta"]))
    assert meta["n_head"] == 4 and meta["lambda_"] == 0.4
    sizes = {"embed_dim": 32, "depth": 3, "num_heads": 4, "mlp_ratio": 2, "cutoffs": meta["cutoffs"]}

    def attention(*args, **kwargs):
        return NeutrenoAttention(*args, lam=0.4, **kwargs)

    model = LanguageModel(vocabulary(60), weights=file, **sizes, attention=attention).eval()
    with torch.no_grad():
        nll = model(torch.from_numpy(golden["data"]).T, torch.from_numpy(golden["target"]).T).T
    torch.testing.assert_close(nll.double(), torch.from_numpy(golden["nll"]), rtol=0, atol=1e-4)


def test_own_names_are_left_alone():
    weights = LanguageModel(50, **SMALL).state_dict()
    assert own_names(weights) is weights


def test_weights_for_a_vocabulary_of_another_size_are_refused(released):
    with pytest.raises(InputError, match="vocabulary of 60 tokens, the data has 61"):
        LanguageModel(vocabulary(61), weights=released[1], embed_dim=32, depth=3, num_heads=4, mlp_ratio=2)


def test_an_unknown_size_is_refused():
    with pytest.raises(InputError, match=r"model.size=huge .* mini, small"):
        LanguageModel(vocabulary(60), size="huge")


def test_small_is_the_papers_model():
    with torch.device("meta"):
        model = LanguageModel(vocabulary(267_735), cutoffs=[20_000, 40_000, 200_000])
    assert len(model.blocks) == 16 and model.blocks[0].attn.num_heads == 8 and model.drop.p == 0.1
    block = 4 * 128**2 + (128 * 2048 + 2048) + (2048 * 128 + 128) + 2 * 2 * 128
    assert sum(p.numel() for p in model.parameters()) == 267_735 * (128 + 1) + 3 * (128 + 1) + 16 * block
