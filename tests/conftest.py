"""Settings under which every test runs: strict promotion, several CPU devices."""

import contextlib
import gc
import os
import pathlib

# Before jax starts its backend: sharding tests need more than one device.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)

import hypothesis
import jax
import pytest

# Two thirds of the time goes into compiling, often what was compiled before. A worker
# that reads what another has half written is warned and compiles.
_PROGRAMS = pathlib.Path(__file__).parents[1] / ".pytest_cache" / "programs"
jax.config.update("jax_compilation_cache_dir", str(_PROGRAMS))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# Every full collection walks all that jax has traced so far.
gc.set_threshold(200_000, 50, 50)

# Compilation makes the first example slow; a red example must be red again.
hypothesis.settings.register_profile("jaxsafe", deadline=None, derandomize=True)
hypothesis.settings.load_profile("jaxsafe")


# Our own array code must not lean on implicit promotion; optax and flax do.
_STRICT = ("ops/", "losses/", "clean/", "test_catalog", "test_gate")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    with contextlib.ExitStack() as settings:
        if any(f"tests/{part}" in item.path.as_posix() for part in _STRICT):
            settings.enter_context(jax.numpy_dtype_promotion("strict"))
            settings.enter_context(jax.numpy_rank_promotion("raise"))
        return (yield)


_WHERE = {
    "several_devices": (
        lambda: jax.device_count() > 1,
        "needs several devices, which a CPU always has",
    ),
    "cpu": (
        lambda: jax.default_backend() == "cpu",
        "about what XLA makes of it on a CPU",
    ),
}


def pytest_runtest_setup(item):
    for mark, (fits, reason) in _WHERE.items():
        if item.get_closest_marker(mark) and not fits():
            pytest.skip(reason)


@pytest.fixture
def getkey():
    """A function that returns a fresh random key on every call, the same every run."""
    count = iter(range(1_000_000))
    return lambda: jax.random.key(next(count))
