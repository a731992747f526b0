"""A NaN on one of two devices, met by equinox's `error_if` or by a guard of ours.

A script of its own: the first of the two ends the process.
"""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxsafe import guard, transforms


def theirs(x):
    checked = eqx.error_if(x, ~jnp.isfinite(x).all(), "not finite")
    return checked.sum()


def ours(x):
    tx, params = optax.sgd(1.0), jnp.zeros(4)
    control = transforms.init_control()
    *_, control = guard.apply_gradients(
        tx, x, params, tx.init(params), control, value=x.sum()
    )
    return control.ok


if __name__ == "__main__":
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    x = jnp.asarray([1.0, jnp.nan, 3.0, 4.0])
    x = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    step = {"theirs": theirs, "ours": ours}[sys.argv[1]]
    print("[" + str(bool(jax.jit(step)(x))).lower() + "]")  # noqa: T201
