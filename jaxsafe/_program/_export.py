"""A program that leaves home: bytes that another machine runs without the user's code.

`jax.export` writes StableHLO for CPU, CUDA and TPU at once where every operation has a
lowering for all of them, else for the platform at hand. Only plain arrays cross the
border: a random key travels as its data and the name of its generator.
"""

import importlib.util
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsafe._program._observe import outputs_of
from jaxsafe._program._trace import Traced

_PLATFORMS = ("cpu", "cuda", "tpu")


class NotPortable(Exception):
    """The program cannot be exported, or not be run here; says why in one line."""


class RawArray(NamedTuple):
    """An array on the host; of random keys their data, and the generator's name."""

    data: np.ndarray
    generator: str = ""


def raw(value: Any) -> RawArray:
    """`value` on the host.

    Raises:
      NotPortable: other processes hold parts of it.
    """
    generator = ""
    if _is_key(value):
        generator = str(jax.random.key_impl(value))
        value = jax.random.key_data(value)
    if isinstance(value, jax.Array) and not (
        value.is_fully_addressable or value.is_fully_replicated
    ):
        raise NotPortable("other processes hold parts of an array")
    if not isinstance(value, np.ndarray | np.generic | jax.Array):
        value = jnp.asarray(value)  # a Python number takes the dtype of jax
    return RawArray(np.asarray(value), generator)


def from_raw(array: RawArray) -> jax.Array:
    """The array as it was."""
    data = jnp.asarray(array.data)
    if not array.generator:
        return data
    return jax.random.wrap_key_data(data, impl=array.generator)


def export(traced: Traced, arrays: list[RawArray]) -> tuple[bytes, tuple[str, ...]]:
    """A traced function as bytes, and the platforms they run on.

    Args:
      traced: the function.
      arrays: its values, each through `raw`.

    Raises:
      NotPortable: it calls back into Python, or has no stable form.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise NotPortable("flatbuffers is missing; pip install 'jaxsafe[replay]'")

    def plain(*data: Any) -> list[Any]:
        values = [
            from_raw(RawArray(x, a.generator))
            for x, a in zip(data, arrays, strict=True)
        ]
        outputs = outputs_of(traced.program, values)
        return [jax.random.key_data(x) if _is_key(x) else x for x in outputs]

    shapes = [jax.ShapeDtypeStruct(a.data.shape, _dtype(a.data)) for a in arrays]
    here = (jax.export.default_export_platform(),)
    for platforms in (_PLATFORMS, here):
        try:
            exported = jax.export.export(jax.jit(plain), platforms=platforms)(*shapes)
            return bytes(exported.serialize()), platforms
        except Exception as reason:
            failure = reason
    raise NotPortable(_one_line(failure)) from failure


def run_exported(data: bytes, arrays: list[RawArray]) -> list[np.ndarray]:
    """Run what `export` wrote; the outputs on the host.

    Raises:
      NotPortable: another platform, too few devices, or another version of jax.
    """
    try:
        exported = jax.export.deserialize(bytearray(data))
        values = [jnp.asarray(a.data) for a in arrays]
        if exported.nr_devices > 1:
            values = jax.device_put(values, _everywhere(exported.nr_devices))
        return [np.asarray(x) for x in jax.jit(exported.call)(*values)]
    except Exception as reason:
        raise NotPortable(_one_line(reason)) from reason


def _everywhere(count: int) -> jax.sharding.Sharding:
    devices = jax.devices()
    if len(devices) < count:
        raise ValueError(f"the program needs {count} devices, here are {len(devices)}")
    mesh = jax.sharding.Mesh(np.array(devices[:count]), ("device",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def _dtype(data: np.ndarray) -> Any:
    return jax.dtypes.canonicalize_dtype(data.dtype)


def _is_key(value: Any) -> bool:
    dtype = getattr(value, "dtype", None)
    return dtype is not None and bool(jnp.issubdtype(dtype, jax.dtypes.prng_key))


def _one_line(reason: Exception) -> str:
    first_line = next(iter(str(reason).splitlines()), "")
    return f"{type(reason).__name__}: {first_line}"
