"""The machine a number was measured on, and the state it was in."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess
from datetime import UTC, datetime
from typing import Any

import jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
_ROOT = pathlib.Path(__file__).parents[1]


def name() -> str:
    """Processor or accelerator, with the versions that decide about rounding."""
    python = platform.python_version()
    return f"{device_kind()}, jax {jax.__version__}, Python {python}"


def device_kind() -> str:
    """The processor or accelerator that jax uses."""
    device = jax.devices()[0]
    return _processor() if device.platform == "cpu" else device.device_kind


def context() -> dict[str, Any]:
    """All that decides about a time, for the record."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_kind(),
        "platform": jax.default_backend(),
        "devices": jax.device_count(),
        "driver": getattr(jax.devices()[0].client, "platform_version", ""),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": {p: importlib.metadata.version(p) for p in _PACKAGES},
        "commit": _git("rev-parse", "HEAD"),
        "clean_tree": _git("status", "--porcelain") == "",
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "allocator": {k: v for k, v in os.environ.items() if k.startswith("MALLOC_")},
    }


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *words], cwd=_ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
