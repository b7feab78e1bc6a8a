"""The descent of random tokens on J and E."""

import pytest

from neutreno.oversmoothing.energies import descent


@pytest.mark.parametrize("seed", [0, 1])
def test_J_brings_tokens_to_one_value_and_E_does_not(seed):
    rows, ends = descent([0, 0.2, 1], steps=600, seed=seed)
    assert (rows[rows.step == 0][["E", "J", "distance"]] == 1).all(axis=None)
    assert (rows.groupby("lam").E.diff().dropna() <= 1e-12).all()
    assert ends.cosine[0] > 0.99 and ends.cosine_limit[0] == pytest.approx(1)
    assert (ends.cosine[1:] < 0.3).all() and ends.cosine_limit.is_monotonic_decreasing
    assert (ends.measured <= ends.rate * (1 + 1e-6)).all()
    assert (ends.measured > 0.95 * ends.rate).all() and ends.measured[0] == pytest.approx(ends.rate[0], rel=1e-4)
