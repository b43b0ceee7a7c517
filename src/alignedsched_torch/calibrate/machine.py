"""What a measurement was made on: processor or GPU, clocks, versions of whatever decides how fast things are."""

from __future__ import annotations

import os
import platform
import subprocess
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
    """Clocks, power and temperature now, and the driver, as `nvidia-smi` tells them; empty where it is not there."""
    asked = (
        "clocks.sm",
        "clocks.mem",
        "clocks.max.sm",
        "temperature.gpu",
        "power.draw",
        "power.limit",
        "driver_version",
    )
    command = ["nvidia-smi", f"--query-gpu={','.join(asked)}", "--format=csv,noheader", f"--id={device.index or 0}"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in told.strip().split(",")]
    return {name: value for name, value in zip(asked, values, strict=False) if value}
