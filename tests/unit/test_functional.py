"""The paper's theorem, claim by claim, in float64 on random tokens; every gradient is autograd's."""

import math

import pytest
import torch
import torch.nn.functional as F

from neutreno.attention import NeutrenoAttention
from neutreno.errors import InputError
from neutreno.functional import (
    E,
    G,
    J,
    attention_kernel,
    descend,
    fidelity_weights,
    fixed_point,
    grad_E,
    grad_G,
    grad_J,
    rate,
    step_size,
    transition,
)
from neutreno.oversmoothing.metrics import dirichlet_energy

SHAPE = (2, 3, 7, 4)  # batch, heads, tokens, width
seeds = pytest.mark.parametrize("seed", range(3))


def draw(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes or [SHAPE] * 2]


def any_kernel(seed, shape=(*SHAPE[:-1], SHAPE[-2])):
    """Neither symmetric nor normalised."""
    return draw(seed + 100, shape)[0].exp()


def symmetric_kernel(seed, shape=SHAPE):
    """Q = K: symmetric and positive semidefinite."""
    (q,) = draw(seed + 200, shape)
    return attention_kernel(q, q)


def indefinite_kernel(seed):
    """Q = −K: tokens attend to their opposites."""
    (q,) = draw(seed + 200, SHAPE)
    return attention_kernel(q, -q)


def gradient(energy, u):
    u = u.detach().requires_grad_()
    return torch.autograd.grad(energy(u).sum(), u)[0]


def distance(u, end, k):
    """In the norm in which P is symmetric."""
    return ((u - end).square().sum(-1) / step_size(k)).sum(-1).sqrt()


def late_ratio(u, k, lam_tilde=0.0, mean=False):
    """What is left after many steps and after one more; without the ``mean``, which rounding would bring back."""
    step = transition(k) - lam_tilde * torch.eye(k.shape[-1], dtype=torch.float64)
    for _ in range(400):
        u = u if mean else u - fixed_point(k, u, 0.0)
        u = u / torch.linalg.matrix_norm(u, keepdim=True)
        before, u = u, step @ u
    return before, u


def path(u, k, f=None, lam_tilde=0.0, steps=40):
    tokens = [u]
    for _ in range(steps):
        tokens.append(descend(tokens[-1], k, f, lam_tilde))
    return tokens


@seeds
def test_energies_are_their_double_sums(seed):
    (u, f), k = draw(seed), any_kernel(seed)
    (lam,) = draw(seed, SHAPE[:-1])
    j, g = torch.zeros(2, *SHAPE[:2], dtype=torch.float64)
    for x in range(SHAPE[2]):
        g += lam.abs()[..., x] * (u - f)[..., x, :].square().sum(-1) / 2
        for y in range(SHAPE[2]):
            j += k[..., x, y] * (u[..., x, :] - u[..., y, :]).square().sum(-1) / 2
    torch.testing.assert_close(J(u, k), j)
    torch.testing.assert_close(G(u, f, lam.abs()), g)
    g = sum(0.6 * k[..., x, :].add(k[..., :, x]).sum(-1) * (u - f)[..., x, :].square().sum(-1) / 2 for x in range(7))
    torch.testing.assert_close(E(u, k, f, 0.6), j + g)


@seeds
def test_gradients_are_those_of_autograd(seed):
    (u, f), k = draw(seed), any_kernel(seed)
    lam = draw(seed, SHAPE[:-1])[0].abs()
    torch.testing.assert_close(grad_J(u, k), gradient(lambda u: J(u, k), u))
    torch.testing.assert_close(grad_G(u, f, lam), gradient(lambda u: G(u, f, lam), u))
    torch.testing.assert_close(grad_G(u, f, 0.3), gradient(lambda u: G(u, f, 0.3), u))
    torch.testing.assert_close(grad_E(u, k, f, 0.6), gradient(lambda u: E(u, k, f, 0.6), u))


@seeds
def test_a_step_is_one_of_gradient_descent_by_autograd(seed):
    (u, f), k = draw(seed), any_kernel(seed)
    dt = 1 / (k.sum(-1) + k.sum(-2)).unsqueeze(-1)
    torch.testing.assert_close(descend(u, k), u - dt * gradient(lambda u: J(u, k), u))
    torch.testing.assert_close(descend(u, k), transition(k) @ u)
    lam = 0.6 / dt.squeeze(-1)
    energy = gradient(lambda u: J(u, k) + G(u, f, lam), u)
    torch.testing.assert_close(descend(u, k, f, 0.6), u - dt * energy)
    torch.testing.assert_close(fidelity_weights(k, 0.6), lam)


@seeds
def test_the_step_on_J_is_softmax_attention_wherever_the_scores_are_symmetric(seed):
    """Q = X W and K = X W S with a symmetric S: Q ≠ K, and neither the scores nor the kernel need be semidefinite."""
    x, v, w, s = draw(seed, (2, 1, 7, 12), SHAPE, (3, 12, 4), (3, 4, 4))
    q = x @ w
    k = q @ (s + s.mT)
    kernel = attention_kernel(q, k)
    torch.testing.assert_close(kernel, kernel.mT, rtol=1e-12, atol=0)
    assert (q - k).abs().max() > 0.1 and torch.linalg.eigvalsh(q @ k.mT).min() < -0.1
    torch.testing.assert_close(descend(v, kernel), F.scaled_dot_product_attention(q, k, v))


@seeds
def test_the_step_on_J_is_softmax_attention_if_the_kernel_is_symmetric(seed):
    q, v = draw(seed)
    torch.testing.assert_close(descend(v, attention_kernel(q, q)), F.scaled_dot_product_attention(q, q, v))
    k = draw(seed + 1)[0]
    apart = descend(v, attention_kernel(q, k)) - F.scaled_dot_product_attention(q, k, v)
    assert apart.abs().max() > 0.1  # the condition is needed


@seeds
@pytest.mark.parametrize("lam", [0.2, 0.6, 1.0])
def test_the_step_on_E_is_neutrenos_rule(seed, lam):
    q, v, v0 = draw(seed, SHAPE, SHAPE, SHAPE)
    rule = NeutrenoAttention(12, num_heads=3, lam=lam).mix(q, q, v, v0)
    torch.testing.assert_close(descend(v, attention_kernel(q, q), v0, lam), rule)


@seeds
def test_with_one_lambda_for_all_tokens_the_rule_does_not_come_out(seed):
    q, v, v0 = draw(seed, SHAPE, SHAPE, SHAPE)
    k = attention_kernel(q, q)
    pull = NeutrenoAttention(12, num_heads=3, lam=0.6).mix(q, q, v, v0) - descend(v, k)
    towards = -step_size(k).unsqueeze(-1) * grad_G(v, v0, 1.0)
    best = (pull * towards).sum((-2, -1), keepdim=True) / towards.square().sum((-2, -1), keepdim=True)  # of all λ
    missed = torch.linalg.matrix_norm(pull - best * towards) / torch.linalg.matrix_norm(pull)
    assert (missed > 0.1).all()


@seeds
@pytest.mark.parametrize("kernel", [symmetric_kernel, any_kernel, indefinite_kernel])
def test_J_and_the_tokens_differences_decay_at_the_rate_of_the_second_eigenvalue(seed, kernel):
    (u, _), k = draw(seed), kernel(seed)
    eigenvalues = (
        torch.linalg.eigvals(transition(k)).abs().sort(descending=True).values
    )  # not the way that rate() takes
    torch.testing.assert_close(eigenvalues[..., 0], torch.ones(SHAPE[:2], dtype=torch.float64))
    second = eigenvalues[..., 1]
    torch.testing.assert_close(rate(k), second)
    end, tokens = fixed_point(k, u, 0.0), path(u, k)
    for t, now in enumerate(tokens[:25]):
        assert (J(now, k) <= second ** (2 * t) * J(u, k) * (1 + 1e-9)).all()
        assert (distance(now, end, k) <= second**t * distance(u, end, k) * (1 + 1e-9)).all()
    before, after = late_ratio(u, k)
    torch.testing.assert_close(J(after, k) / J(before, k), second**2, rtol=0.01, atol=0)
    torch.testing.assert_close(distance(after, 0, k) / distance(before, 0, k), second, rtol=0.01, atol=0)


@seeds
def test_under_J_alone_tokens_end_at_one_value(seed):
    (u, _), k = draw(seed), any_kernel(seed)
    end = fixed_point(k, u, 0.0)
    assert (end[..., :1, :] == end).all()
    torch.testing.assert_close(path(u, k, steps=100)[-1], end)


@seeds
@pytest.mark.parametrize("lam", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
def test_E_decreases_at_each_step_under_a_fixed_psd_kernel_and_lambda_up_to_one(seed, lam):
    (u, f), k = draw(seed), symmetric_kernel(seed)
    assert (torch.linalg.eigvalsh(k) > -1e-12).all()
    energies = torch.stack([E(now, k, f, lam) for now in path(u, k, f, lam)])
    assert (energies[1:] <= energies[:-1] * (1 + 1e-12)).all()
    assert (energies[1] < energies[0]).all()


@seeds
@pytest.mark.parametrize("lam", [0.2, 0.6, 0.9])
def test_tokens_end_where_E_is_smallest_and_are_not_one_value(seed, lam):
    (u, f), k = draw(seed), symmetric_kernel(seed)
    end = fixed_point(k, f, lam)
    torch.testing.assert_close(gradient(lambda u: E(u, k, f, lam), end), torch.zeros_like(end))
    torch.testing.assert_close(path(u, k, f, lam, steps=300)[-1], end)
    apart = torch.linalg.matrix_norm(end - end.mean(-2, keepdim=True)) / torch.linalg.matrix_norm(end)
    assert (apart > 0.1).all()


@seeds
@pytest.mark.parametrize("lam", [0.2, 0.6, 1.0])
@pytest.mark.parametrize("from_f", [False, True])
def test_they_get_there_at_the_rate_of_the_eigenvalue_farthest_from_lambda(seed, lam, from_f):
    (u, f), k = draw(seed), symmetric_kernel(seed)
    u = f if from_f else u
    eigenvalues = torch.linalg.eigvals(transition(k)).real.sort(descending=True).values[..., from_f:]
    expected = (eigenvalues - lam).abs().amax(-1)
    torch.testing.assert_close(rate(k, lam, from_f), expected)
    end = fixed_point(k, f, lam)
    tokens = path(u, k, f, lam, steps=20)
    for t, now in enumerate(tokens):
        bound = expected**t * distance(u, end, k)
        assert (distance(now, end, k) <= bound + 1e-12).all()
    before, after = late_ratio(u - end, k, lam, mean=not from_f)
    torch.testing.assert_close(distance(after, 0, k) / distance(before, 0, k), expected, rtol=0.01, atol=0)


@seeds
def test_the_mean_token_moves_only_if_the_descent_does_not_start_at_f(seed):
    (u, f), k = draw(seed), symmetric_kernel(seed)

    def mean(x):
        return fixed_point(k, x, 0.0)[..., 0, :]

    torch.testing.assert_close(mean(path(f, k, f, 0.6)[-1]), mean(f))
    torch.testing.assert_close(mean(descend(u, k, f, 0.6)) - mean(f), 0.4 * (mean(u) - mean(f)))


@seeds
def test_under_an_indefinite_kernel_E_grows(seed):
    (u, f), k = draw(seed), indefinite_kernel(seed)
    assert (rate(k, 0.6) > 1).all()
    energies = [E(now, k, f, 0.6) for now in path(u, k, f, 0.6, steps=200)]
    assert (energies[-1] > 10 * energies[0]).all()
    assert (J(descend(u, k), k) < J(u, k)).all()  # J alone does not


@seeds
def test_with_lambda_above_one_E_grows_also_under_a_psd_kernel(seed):
    (u, f), k = draw(seed), symmetric_kernel(seed)
    assert (rate(k, 1.2) > 1).all() and (rate(k, 1.0) <= 1).all()
    energies = [E(now, k, f, 1.2) for now in path(u, k, f, 1.2, steps=200)]
    assert (energies[-1] > 10 * energies[0]).all()


@seeds
@pytest.mark.parametrize("lam", [0.0, 0.6])
def test_under_a_kernel_made_anew_from_the_tokens_the_energy_is_not_monotone(seed, lam):
    f = 1.5 * draw(seed)[0]

    def kernel(u):
        return (u @ u.mT / u.shape[-1] ** 0.5).exp()

    now, energies, held = f, [], kernel(f)
    for _ in range(5):
        energies.append(E(now, kernel(now), f, lam))
        assert (E(descend(now, kernel(now), f, lam), kernel(now), f, lam) <= energies[-1]).all()  # each step by itself
        now = descend(now, kernel(now), f, lam)
    energies = torch.stack(energies)
    assert (energies[1:] > 1.01 * energies[:-1]).any()
    fixed = torch.stack([E(now, held, f, lam) for now in path(f, held, f, lam, steps=5)])
    assert (fixed[1:] <= fixed[:-1]).all()


@seeds
def test_the_attention_kernel_is_symmetric_and_psd_for_equal_queries_and_keys_and_never_overflows(seed):
    q, k = draw(seed)
    kernel = attention_kernel(q, q)
    torch.testing.assert_close(kernel, kernel.mT, rtol=1e-14, atol=0)
    assert (torch.linalg.eigvalsh(kernel) > -1e-13).all()
    ratio = attention_kernel(q, k) / (q @ k.mT / 2).exp()
    torch.testing.assert_close(ratio, ratio[..., :1, :1].expand_as(ratio))  # one factor per head
    assert attention_kernel(100 * q, 100 * q).isfinite().all()


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precisions_are_summed_in_float32_and_a_step_keeps_the_type(half):
    u, f = (x.to(half) for x in draw(0, (2, 300, 8), (2, 300, 8)))
    k = torch.ones(300, 300, dtype=half)  # 90,000 pairs: more than a float16 holds
    for energy in (J(u, k), E(u, k, f, 0.6), G(u, f, fidelity_weights(k, 0.6))):
        assert energy.dtype == torch.float32
    torch.testing.assert_close(J(u, k).double(), J(u.double(), k.double()), rtol=1e-5, atol=0)
    assert descend(u, k, f, 0.6).dtype == half
    expected = descend(u.double(), k.double(), f.double(), 0.6)
    torch.testing.assert_close(descend(u, k, f, 0.6).double(), expected, rtol=1e-2, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(J(u, k).double(), J(u.double(), k.double()), rtol=1e-5, atol=0)


@pytest.mark.parametrize("leading", [(), (7,), (2, 1)])
def test_kernels_and_tokens_broadcast(leading):
    (u, f), k = draw(0), any_kernel(0, (3, 7, 7))
    f = f.expand(*leading, *SHAPE) if leading else f
    for h in range(3):
        torch.testing.assert_close(E(u, k, f, 0.6)[..., h], E(u[:, h], k[h], f[..., h, :, :], 0.6))
        torch.testing.assert_close(fixed_point(k, f, 0.6)[..., h, :, :], fixed_point(k[h], f[..., h, :, :], 0.6))
        torch.testing.assert_close(descend(u, k, f, 0.6)[..., h, :, :], descend(u[:, h], k[h], f[..., h, :, :], 0.6))
    square = draw(0, (7, 7))[0]  # as many channels as tokens: a matrix, not a batch of vectors
    torch.testing.assert_close(fixed_point(k, square, 0.6)[1], fixed_point(k[1], square, 0.6))


def test_everything_is_differentiable():
    (u, f), q = draw(0, (5, 3), (5, 3)), draw(1, (5, 3))[0]
    u, f, q = (x.requires_grad_() for x in (u, f, q))
    for function in (
        lambda u, f, k: E(u, k, f, 0.6),
        lambda u, f, k: descend(u, k, f, 0.6),
        lambda u, f, k: fixed_point(k, f, 0.6) + fixed_point(k, f, 0.0),
        lambda u, f, k: rate(k) + rate(k, 0.3, from_f=True),
    ):
        torch.autograd.gradcheck(lambda u, f, q, function=function: function(u, f, (q @ q.mT).exp()), (u, f, q))


def test_a_single_token_stays_where_it_is():
    u, f = draw(0, (1, 3), (1, 3))
    k = torch.ones(1, 1, dtype=torch.float64)
    assert J(u, k) == 0 and rate(k) == pytest.approx(0) and rate(k, 0.4) == pytest.approx(0.6)
    torch.testing.assert_close(descend(u, k), u)
    torch.testing.assert_close(fixed_point(k, f, 0.4), f)


U, K = torch.ones(3, 4), torch.ones(3, 3)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: J(torch.ones(3), K), r"u is \(3,\)"),
        (lambda: J(torch.ones(3, 4, dtype=torch.int64), K), "torch.int64, not a floating-point tensor"),
        (lambda: J([[1.0]], K), "u is list"),
        (lambda: J(torch.ones(0, 4), torch.ones(0, 0)), "N, d ≥ 1"),
        (lambda: J(U, torch.ones(4, 4)), r"these do not fit: u \(3, 4\) and the kernel \(4, 4\)"),
        (lambda: J(U, torch.ones(3, 2)), "these do not fit"),
        (lambda: J(U.expand(2, 3, 4), K.expand(5, 3, 3)), "do not broadcast"),
        (lambda: J(U * math.nan, K), "u contains NaN or Inf"),
        (lambda: J(U, K * math.inf), "the kernel contains NaN or Inf"),
        (lambda: G(U, torch.ones(3, 5), 1.0), "not equally many or wide"),
        (lambda: G(U, U, torch.ones(4)), r"lam is of shape \(4,\)"),
        (lambda: G(U, U, -torch.ones(3)), "lam holds values"),
        (lambda: G(U, U, -1), "lam=-1"),
        (lambda: E(U, K, U, math.nan), "lam_tilde=nan"),
        (lambda: descend(U, K, U, -0.1), "lam_tilde=-0.1"),
        (lambda: descend(U, K, lam_tilde=0.6), "give f, the first layer's values"),
        (lambda: descend(U, K * 0), "does not sum to more than 0"),
        (lambda: fixed_point(K * 0, U, 0.6), "does not sum to more than 0"),
        (lambda: rate(K, math.inf), "lam_tilde=inf"),
        (lambda: rate(torch.ones(3, 2)), "these do not fit"),
        (lambda: attention_kernel(U, torch.ones(3, 5)), "not equally many or wide"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_the_measures_energy_is_J():
    (u, _), k = draw(0), any_kernel(0)
    torch.testing.assert_close(dirichlet_energy(u, k), J(u, k))
