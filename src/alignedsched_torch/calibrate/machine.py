"""What a measurement was made on: processor or GPU, clocks, versions of whatever decides how fast things are."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = ("alignedsched", "torch", "numpy", "triton", "flashinfer-python", "cuda-bindings")


def machine(device: torch.device) -> dict[str, str]:
    """Names and their values, all text; what is not there is left out."""
    found = {"device": str(device), "system": platform.platform(), "python": platform.python_version()}
    found |= _gpu(device) if device.type == "cuda" else {}
    found |= {"processor": _processor(), "cpus": str(os.cpu_count()), "threads": str(torch.get_num_threads())}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next((name for name in names if name), platform.machine() or "unknown")


def _gpu(device: torch.device) -> dict[str, str]:
    about = torch.cuda.get_device_properties(device)
    found = {
        "gpu": about.name,
        "gpus": str(torch.cuda.device_count()),
        "gpu_memory_bytes": str(about.total_memory),
        "multiprocessors": str(about.multi_processor_count),
        "compute_capability": f"{about.major}.{about.minor}",
        "cuda": str(torch.version.cuda),
    }
    return found | gpu_state(device)


def gpu_state(device: torch.device) -> dict[str, str]:
    """Clocks, power and temperature now, where the driver's library tells them."""
    asked = {
        "sm_clock_mhz": torch.cuda.clock_rate,
        "temperature_c": torch.cuda.temperature,
        "power_mw": torch.cuda.power_draw,
    }
    found = {}
    for name, ask in asked.items():
        try:
            found[name] = str(ask(device))
        except (RuntimeError, ImportError, OSError):  # no NVML, or a virtual GPU that does not say
            continue
    return found
