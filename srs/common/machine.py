"""The machine: how it is prepared so that equal inputs give equal results, and what a timing was measured on."""

import os
import platform
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch


def describe(device: torch.device | str = "cpu") -> dict[str, str]:
    """Hardware, which kernels torch takes on it, and versions: what the last digits depend on, and captions of timings say."""
    device = torch.device(device)
    if device.type == "cuda":
        hardware, kernels = torch.cuda.get_device_name(device), f"CUDA {torch.version.cuda}"
    else:
        cores, threads = usable_cores(), torch.get_num_threads()
        hardware = f"{f'{threads} of ' if threads < cores else ''}{cores} cores of {_processor()}"
        limit = os.environ.get("ONEDNN_MAX_CPU_ISA")  # of convolutions and products
        kernels = torch.backends.cpu.get_cpu_capability() + (f" (oneDNN: {limit})" if limit else "")
    return {"hardware": hardware, "kernels": kernels, "python": platform.python_version(), "torch": torch.__version__}


def prepare_device(threads: int | None = None) -> str:
    """CUDA where there is one, else the CPU, set up so that equal inputs give equal results in full float32.

    ``threads`` for this process's work on the CPU; None: torch's choice.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if not torch.cuda.is_available():
        return "cpu"
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic cuBLAS asks for
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads memory that it has not written
    _raise_precision()
    return "cuda"


#: Where torch keeps how float32 is computed: products, convolutions and recurrent layers, by CUDA and by oneDNN.
_FLOAT32 = [torch.backends.cuda.matmul] + [
    getattr(backend, kind)
    for backend in (torch.backends.cudnn, torch.backends.mkldnn)
    for kind in ("matmul", "conv", "rnn")
    if hasattr(backend, kind)
]
_scope = threading.Lock()
_within: list[ExitStack] = []  # of each scope that some thread is in, what puts things back: the outermost's


@contextmanager
def full_precision() -> Iterator[None]:
    """Within, products and convolutions of float32 are computed in float32, whatever faster kind (TF32, bfloat16) is allowed
    outside, by torch's older settings or by `fp32_precision`. Threads may be within at once: the last puts back what was."""
    with _scope:
        _within.append(_raise_precision() if not _within else _within[-1])
    try:
        yield
    finally:
        with _scope:
            before = _within.pop()
            if not _within:
                before.close()


def _raise_precision() -> ExitStack:
    """Computes float32 in float32 from now on; what is returned puts things back when it is closed."""
    undo = ExitStack()
    with suppress(RuntimeError):  # of torch, where only its newer settings were used: the older ones are then not read
        if (before := torch.get_float32_matmul_precision()) != "highest":
            torch.set_float32_matmul_precision("highest")
            undo.callback(torch.set_float32_matmul_precision, before)
    with suppress(RuntimeError):
        if torch.backends.cudnn.allow_tf32:
            torch.backends.cudnn.allow_tf32 = False
            undo.callback(setattr, torch.backends.cudnn, "allow_tf32", True)
    for kind in _FLOAT32:
        if (before := kind.fp32_precision) not in ("none", "ieee"):
            kind.fp32_precision = "ieee"
            undo.callback(setattr, kind, "fp32_precision", before)
    return undo


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
