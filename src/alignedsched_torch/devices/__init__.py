"""Devices: one small interface, and what it is on a CPU, on CUDA, in virtual time and with threads."""

from __future__ import annotations

from .base import Device, DeviceError, Event, Piece, Stream
from .cpu import CpuDevice
from .cuda import CudaDevice
from .modelled import Clock, ModelledDevice, ModelledLink
from .threaded import ThreadedDevice

__all__ = [
    "Clock",
    "CpuDevice",
    "CudaDevice",
    "Device",
    "DeviceError",
    "Event",
    "ModelledDevice",
    "ModelledLink",
    "Piece",
    "Stream",
    "ThreadedDevice",
]
