"""Machines to compile for, whether they are here or not.

A compiler needs no device: libtpu compiles for a TPU on any machine, the plugin of
CUDA for a described GPU. What they say of bytes, temporaries and kernels is exact, what
they would say of time is a guess, so it is not asked.
"""

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

# As in openxla/xla, xla/backends/gpu/target_config/specs/h200.txtpb.
_H200 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 4890000000000
  l2_cache_size: 62914560
  clock_rate_ghz: 1.98
  device_memory_size: 150754820096
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H200"
"""


class Target(NamedTuple):
    """Something to compile for.

    Attributes:
      name: for people.
      device: puts an abstract device into a `with`; None: the one that is here.
    """

    name: str
    device: Callable[[], Any] | None


HERE = Target("this machine", None)


def available() -> list[Target]:
    """This machine, and those that a compiler is installed for."""
    found = [HERE]
    if importlib.util.find_spec("libtpu"):
        found.append(Target("TPU v5e", _tpu))
    if any(map(importlib.util.find_spec, ("jax_cuda12_plugin", "jax_cuda13_plugin"))):
        found.append(Target("H200", _h200))
    return found


def compiled(target: Target, fn: Any, args: Any, *, donated: bool) -> Any:
    """The program for the target, as `jax.stages.Compiled`."""
    jitted = jax.jit(fn, donate_argnums=(0,) if donated else ())
    if target.device is None:
        return jitted.lower(*args).compile()
    with _platform(target):
        where = SingleDeviceSharding(target.device())
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), args
        )
        return jitted.lower(*abstract).compile()


def _tpu() -> Any:
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    return chips.devices[0]


def _h200() -> Any:
    described = topologies.get_topology_desc(
        platform="cuda",
        topology_name="h200",
        topology="1x1x1",
        target_config=_H200,
    )
    return described.devices[0]


@contextlib.contextmanager
def _platform(target: Target) -> Iterator[None]:
    """No GPU need be here, though jax asks for it (jax issue 28376)."""
    if target.name != "H200":
        yield
        return
    from jax._src import xla_bridge

    known = xla_bridge.canonicalize_platform

    def canonical(platform: str) -> str:
        return platform if platform == "cuda" else known(platform)

    xla_bridge.canonicalize_platform = canonical
    try:
        yield
    finally:
        xla_bridge.canonicalize_platform = known
