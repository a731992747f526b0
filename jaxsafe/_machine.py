"""Which machine this is: platform, versions, and the settings that change numbers."""

import importlib.metadata
import os
import platform

import jax

_PACKAGES = ("jaxsafe", "jax", "jaxlib", "numpy", "flax", "optax")
_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_debug_nans",
    "jax_debug_infs",
    "jax_disable_jit",
)
_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")


def versions() -> dict[str, str]:
    """Python and the packages that compute."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def settings() -> dict[str, str]:
    """Settings of jax and XLA that differ from the default."""
    values = {name: getattr(jax.config, name, None) for name in _SETTINGS}
    values.update({name: os.environ.get(name) for name in _VARIABLES})
    return {name: str(value) for name, value in values.items() if value}


def devices() -> dict[str, str]:
    """Platform, kind and number of the devices."""
    found = jax.devices()
    return {
        "platform": found[0].platform,
        "device": found[0].device_kind,
        "devices": str(len(found)),
    }
