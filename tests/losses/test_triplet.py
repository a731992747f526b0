"""Triplet loss: degrees, far triplets, eps, bad input."""

import numpy as np
import optax
import pytest

from jaxsafe import losses

X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


@pytest.mark.parametrize("degree", [1, 2])
def test_the_distance_of_a_triplet_by_degree(degree):
    negative = X + np.asarray([0.3, 0.0, 0.4], np.float32)
    ours = losses.triplet_margin_loss(X, X, negative, norm_degree=degree)
    np.testing.assert_allclose(ours, 1 - (0.7 if degree == 1 else 0.5), rtol=1e-5)


def test_triplets_as_far_as_1e20_still_differ():
    a, p, n = (np.asarray([v, 0.0], np.float32) for v in (0.0, 2e20, 1e20))
    np.testing.assert_allclose(losses.triplet_margin_loss(a, p, n), 1e20, rtol=1e-6)


def test_the_eps_of_optax():
    args = (X, X[::-1], X + 1)
    np.testing.assert_allclose(
        losses.triplet_margin_loss(*args, eps=0.5),
        optax.losses.triplet_margin_loss(*args, eps=0.5),
        rtol=1e-5,
        atol=1e-6,
    )


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="norm_degree must be 1 or 2"):
        losses.triplet_margin_loss(X, X, X, norm_degree=3)
