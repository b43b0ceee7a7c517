"""A pytest plugin for vLLM's own tests: where they would build its schedulers, they build the adapter's.

python -m pytest -p swapped tests/v1/core/test_scheduler.py
"""

from __future__ import annotations

import vllm.v1.core.sched.async_scheduler as asynchronous
import vllm.v1.core.sched.diffusion_scheduler  # noqa: F401 (on vLLM's own base, as it is in use)
import vllm.v1.core.sched.scheduler as synchronous

from alignedsched.adapters.vllm import AlignedAsyncScheduler, AlignedScheduler

synchronous.Scheduler = AlignedScheduler
asynchronous.AsyncScheduler = AlignedAsyncScheduler
