import pytest
import torch

from neutreno.oversmoothing import mean_cosine_similarity


def plain_mean_cosine(x):
    """N × N, pair by pair."""
    n = x.shape[-2]
    total = 0.0
    for i in range(n):
        for j in range(n):
            if i != j and x[i].norm() > 0 and x[j].norm() > 0:
                total += (x[i] @ x[j] / (x[i].norm() * x[j].norm())).item()
    return total / (n * (n - 1))


@pytest.mark.parametrize("tokens, dim", [(2, 3), (17, 64), (50, 5)])
@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_equals_the_plain_pairwise_computation(tokens, dim, shift):
    torch.manual_seed(0)
    x = torch.randn(3, tokens, dim, dtype=torch.float64) + shift
    x[0, 1] = 0  # a zero token counts as orthogonal
    expected = torch.tensor([plain_mean_cosine(sample) for sample in x], dtype=torch.float64)
    torch.testing.assert_close(mean_cosine_similarity(x), expected, rtol=0, atol=1e-12)


def test_identical_tokens_give_one():
    x = torch.randn(1, 8).expand(2, 9, 8) * torch.rand(2, 9, 1).add(0.1)
    torch.testing.assert_close(mean_cosine_similarity(x), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-6)


def test_orthogonal_tokens_give_zero():
    torch.testing.assert_close(mean_cosine_similarity(3 * torch.eye(6)).item(), 0.0, rtol=0, atol=1e-12)


def test_opposite_tokens_give_minus_one():
    assert mean_cosine_similarity(torch.tensor([[1.0, 2.0], [-2.0, -4.0]])).item() == pytest.approx(-1)


def test_zero_tokens_give_zero_not_nan():
    assert mean_cosine_similarity(torch.zeros(4, 3)).item() == 0


def test_a_single_token_gives_zero_with_a_warning():
    with pytest.warns(UserWarning, match="at least two tokens"):
        assert mean_cosine_similarity(torch.randn(5, 1, 3)).tolist() == [0] * 5
