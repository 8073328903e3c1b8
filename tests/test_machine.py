import platform
import subprocess
import sys

import pytest

KEPT = """
import ctypes, sys
import torch
from srs import machine

class Mallinfo(ctypes.Structure):  # what glibc says of itself, bytes
    _fields_ = [(name, ctypes.c_int) for name in "arena a b c d e f used free top".split()]

machine.prepare_device(threads=1, keep=sys.argv[1] == "keep")
torch.ones(6 << 20)  # 24 MiB, freed at once
mallinfo = ctypes.CDLL(None).mallinfo
mallinfo.restype = Mallinfo
print(mallinfo().free / 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_freed_memory_is_kept_on_request():
    def kept(choice: str) -> float:
        return float(subprocess.run([sys.executable, "-c", KEPT, choice], check=True, capture_output=True, text=True).stdout)

    assert kept("return") < 24 <= kept("keep")  # MiB
