"""What a timing was measured on."""

import os
import platform
from pathlib import Path

import torch


def describe(device: torch.device | str = "cpu") -> dict[str, str]:
    """Hardware and versions, for captions beside timings."""
    device = torch.device(device)
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    else:
        hardware = f"{_usable_cores()} cores of {_processor()}"
    return {"hardware": hardware, "python": platform.python_version(), "torch": torch.__version__}


def default_device() -> str:
    """The accelerator that torch finds, else the CPU."""
    return torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
