"""glibc's allocator, told to keep what it has.

XLA on CPU takes large results from `mmap`, and fresh pages fault: a pass over 256 MB
runs at 1 to 2 GB/s instead of 6 to 23. That would be what is measured. The variables
are read when a process starts, so it starts once more.
"""

import os
import platform
import sys

_SETTINGS = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "20000000000",
    "MALLOC_TOP_PAD_": "1000000000",
    "MALLOC_ARENA_MAX": "1",
}


def settle(module: str, arguments: list[str]) -> None:
    """Start the process again under the settings, unless it has them."""
    if platform.libc_ver()[0] != "glibc" or _SETTINGS.items() <= os.environ.items():
        return
    os.environ.update(_SETTINGS)
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])
