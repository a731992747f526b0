"""Bad input to ops and losses: an error that says what is wrong and what to do."""

import jax
import jax.numpy as jnp
import pytest

from jaxsafe import _errors, losses, ops

REDUCTIONS = [ops.softmax, ops.log_softmax, ops.logsumexp, ops.norm]


@pytest.mark.parametrize("function", REDUCTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("compiled", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_an_axis_that_is_not_there(function, compiled):
    message = rf"^ops.{function.__name__}: axis must lie in \[-2, 2\).*\(got 2\)"
    with pytest.raises(ValueError, match=message):
        compiled(lambda x: function(x, axis=2))(jnp.ones((3, 4)))


def test_an_axis_that_is_not_there_in_a_loss():
    with pytest.raises(ValueError, match=r"axis must lie in .* \(got -3\)"):
        losses.softmax_cross_entropy_with_integer_labels(
            jnp.ones((3, 4)), jnp.zeros(3, jnp.int32), axis=-3
        )


@pytest.mark.parametrize(
    ("function", "labels"),
    [
        (losses.softmax_cross_entropy_with_integer_labels, jnp.zeros(0, jnp.int32)),
        (losses.sigmoid_binary_cross_entropy, jnp.zeros((0, 4))),
        (losses.huber_loss, jnp.zeros((0, 4))),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_empty_batch(function, labels):
    message = (
        rf"^losses.{function.__name__}: \w+ must not be empty \(got shape \(0, 4\)"
    )
    with pytest.raises(ValueError, match=message):
        jax.jit(function)(jnp.zeros((0, 4)), labels)


@pytest.mark.parametrize("value", ["1.0", None, jnp.ones(2), float("nan"), -1.0])
def test_a_number_has_to_be_one(value):
    with pytest.raises(ValueError, match=r"^f: limit must be a finite number above 0"):
        _errors.check_positive("f", "limit", value)
    with pytest.raises(ValueError, match=r"^f: limit must lie in \(0, 1\]"):
        _errors.check_fraction("f", "limit", value)
