"""The memory allocator of a process, which is told before it starts."""

import os
import sys

# glibc: keep freed memory rather than hand it back after every evaluation of f (1.4 times the speed on two cores)
KEEP_MEMORY = {
    "MALLOC_TOP_PAD_": "67108864",
    "MALLOC_TRIM_THRESHOLD_": "2147483648",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
}


def keep_memory() -> None:
    """For the processes that this one starts, which inherit it."""
    for name, value in KEEP_MEMORY.items():
        os.environ.setdefault(name, value)


def restart_with_kept_memory(module: str) -> None:
    """Start the program ``python -m module`` anew, unless its memory is kept already."""
    if not KEEP_MEMORY.keys() <= os.environ.keys():
        keep_memory()
        os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]])
