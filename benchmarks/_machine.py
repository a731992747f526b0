"""The machine a number was measured on, in one line."""

import pathlib
import platform

import jax


def name() -> str:
    """Processor or accelerator, with the versions that decide about rounding."""
    device = jax.devices()[0]
    kind = device.device_kind
    if device.platform == "cpu":
        kind = _processor()
    python = platform.python_version()
    return f"{kind}, jax {jax.__version__}, Python {python}"


def _processor() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
