"""The engine: a model folder that answers prompts, in batches or token by token, under a scheduling policy.

    with Engine("path/to/model", policy="fcfs") as engine:
        for completion in engine.generate(["Once upon a time"], max_new_tokens=20):
            print(completion.text)

Requests of all callers are served together. Scheduler and executor run on a thread of their own (``loop``); what an
engine returns is ordinary objects, and every method may be called from any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import queue
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import torch
from attrs import evolve

from alignedsched.cluster import Cluster
from alignedsched.errors import AlignedSchedError, CallerError, ConfigError
from alignedsched.load import Costs
from alignedsched.measured import Measured
from alignedsched.plan import Outcome
from alignedsched.policies.protocols import Policy
from alignedsched.registry import policy as policy_named
from alignedsched.request import Request
from alignedsched.scheduler import Scheduler

from .clusters import Sizes, Workers, open_devices, plan_cluster, plan_workers
from .devices import Device
from .executor import TorchExecutor
from .figures import Figures
from .job import Job
from .kernels.choice import decoder_for
from .loop import Loop, Serving, Ticket
from .models import Decoder, ModelConfig, load_weights
from .prompts import Completion, Content, Prompt, Token
from .sampling import Sampling
from .text import Text
from .workers import WorkersExecutor

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GREEDY = Sampling()


class Engine:
    """Serves one model, in this process or over ``workers``.

    ``device``: cpu, cuda or cuda:N (for workers cpu or cuda). ``dtype``: a name of ``DTYPES`` (None: the checkpoint's
    own). ``topology``: colocated or disaggregated (see ``clusters``; workers have theirs). ``attention``: a name of
    ``kernels.choice`` (workers take ``auto``). ``kv_tokens`` and ``host_tokens`` are the KV that fits on the device and
    in host memory; ``relay_slots`` and ``host_chunk_bytes``: see ``memory.copier`` (not for workers). ``costs`` are
    shown to policies that compare step times, and price imbalance in ``figures``: costs, or the path of a file that
    `alignedsched-torch calibrate` wrote for this model; its links' speeds then replace those that are assumed. Close
    it, or use it as a context manager: open requests are then cancelled.

    Raises ConfigError naming the file, field or option that is wrong, ExecutorError when a worker does not start.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        policy: str | Policy = "cost_aligned",
        device: str = "cpu",
        dtype: str | None = None,
        topology: str = "colocated",
        kv_tokens: int | None = None,
        host_tokens: int = 0,
        page_size: int = 16,
        max_members: int = 256,
        max_tokens: int = 2048,
        run_ahead: int | None = None,
        max_horizon: int = 256,
        costs: Costs | str | Path | None = None,
        attention: str = "auto",
        relay_slots: int = 0,
        host_chunk_bytes: int | None = None,
        workers: Workers | None = None,
    ) -> None:
        measured = None
        if isinstance(costs, str | Path):
            measured = Measured.load(costs)
            costs = measured.costs(attention if attention in measured.kernels else None)
        self.config = ModelConfig.from_folder(folder)
        name = dtype if dtype is not None else self.config.dtype
        kind = _dtype(name, "" if dtype is not None else f"{Path(folder) / 'config.json'}: ")
        chosen = policy_named(policy) if isinstance(policy, str) else policy
        self.text = Text(folder, self.config.vocab)
        sizes = Sizes(kv_tokens, host_tokens, page_size, max_members, max_tokens, run_ahead)
        self.executor: Serving
        if workers is None:
            found = open_devices(device, topology)
            cluster = plan_cluster(self.config, kind, found, sizes)
            cluster = cluster if measured is None else measured.applied(cluster)
            self.executor = TorchExecutor(
                cluster, found, _decoders(folder, self.config, kind, found, cluster), attention=attention,
                relay_slots=relay_slots, host_chunk_bytes=host_chunk_bytes,
            )  # fmt: skip
        elif attention != "auto":
            raise ConfigError(f"attention {attention!r} is of one process; workers take what fits their device")
        elif relay_slots or host_chunk_bytes is not None:
            raise ConfigError("relay_slots and host_chunk_bytes are of one process; workers copy in another way")
        else:
            cluster = plan_workers(self.config, kind, workers, device, sizes)
            cluster = cluster if measured is None else measured.applied(cluster)
            self.executor = WorkersExecutor(
                cluster, folder, tensor_parallel=workers.tensor_parallel, device=device, dtype=name,
                limits=workers.limits, launcher=workers.launcher,
            )  # fmt: skip
        self.cluster = self.executor.cluster
        self._figures = Figures(self.cluster, costs)
        watched = evolve(chosen, watches=(*chosen.watches, self._figures.bubbles))
        try:
            self.scheduler = Scheduler(self.cluster, watched, costs, max_horizon=max_horizon)
        except BaseException:
            self.executor.close()
            raise
        self._loop = Loop(self.scheduler, self.executor, partial(self._figures.observe, self.scheduler))
        self._numbers = itertools.count()

    # -- batches

    def generate(
        self,
        prompts: Iterable[Content | Prompt],
        *,
        max_new_tokens: int = 128,
        sampling: Sampling = GREEDY,
        stop: tuple[int, ...] | None = None,
    ) -> list[Completion]:
        """Answer all prompts, in their order. One that cannot be answered has its error in its own completion.

        ``stop``: token ids that end an answer (None: the model's own). Raises ExecutorError when the engine is closed
        or has stopped.
        """
        each = self._each(prompts, max_new_tokens, sampling, stop, streamed=False)
        found = {number: item for number, item in each if isinstance(item, Completion)}
        return [found[number] for number in sorted(found)]

    def generate_each(
        self,
        prompts: Iterable[Content | Prompt],
        *,
        max_new_tokens: int = 128,
        sampling: Sampling = GREEDY,
        stop: tuple[int, ...] | None = None,
    ) -> Iterator[tuple[int, Token | Completion]]:
        """As ``generate``, told as it happens: (number of the prompt, its next token), at last its completion.

        Closing the iterator cancels what is open.
        """
        return self._each(prompts, max_new_tokens, sampling, stop, streamed=True)

    def _each(
        self,
        prompts: Iterable[Content | Prompt],
        max_new_tokens: int,
        sampling: Sampling,
        stop: tuple[int, ...] | None,
        streamed: bool,
    ) -> Iterator[tuple[int, Token | Completion]]:
        default = Prompt((), max_new_tokens, sampling, stop)
        answers: queue.SimpleQueue[tuple[int, int | Completion]] = queue.SimpleQueue()
        pending: dict[int, _Answer] = {}
        for number, prompt in enumerate(prompts):
            try:
                told = lambda item, number=number: answers.put((number, item))  # noqa: E731
                pending[number] = _Answer(self, _merged(prompt, default), told, streamed)
            except CallerError as error:
                yield number, Completion(0, (), None, "error", error)
        try:
            self._loop.submit([answer.ticket for answer in pending.values()])
            while pending:
                number, item = answers.get()
                if isinstance(item, Completion):
                    yield from ((number, token) for token in pending[number].last_text())
                    del pending[number]
                    yield number, item
                else:
                    yield number, pending[number].token(item)
        finally:
            self._loop.cancel(*(answer.ticket.job.id for answer in pending.values()))

    # -- one request at a time

    async def stream(
        self,
        prompt: Content | Prompt,
        *,
        max_new_tokens: int = 128,
        sampling: Sampling = GREEDY,
        stop: tuple[int, ...] | None = None,
    ) -> AsyncIterator[Token]:
        """The tokens of one answer as they are made. Closing the iterator cancels the request.

        Raises CallerError for a prompt that is wrong, ExecutorError when the request or the engine failed.
        """
        here = asyncio.get_running_loop()
        items: asyncio.Queue[int | Completion] = asyncio.Queue()

        def told(item: int | Completion) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop has closed before the cancel got through
                here.call_soon_threadsafe(items.put_nowait, item)

        answer = _Answer(self, _merged(prompt, Prompt((), max_new_tokens, sampling, stop)), told, streamed=True)
        self._loop.submit([answer.ticket])
        try:
            while True:
                item = await items.get()
                if isinstance(item, Completion):
                    for token in answer.last_text():
                        yield token
                    if item.error is not None:
                        raise item.error
                    return
                yield answer.token(item)
        finally:
            self._loop.cancel(answer.ticket.job.id)

    # -- the rest

    def figures(self) -> dict[str, Any]:
        """What the requests so far came to: an entry of ``runs`` as in docs/json.md, in real seconds."""
        return self._figures.summary(self.scheduler, self.executor)

    def close(self) -> None:
        """Cancel open requests and stop, worker processes too. A closed engine answers nothing."""
        self._loop.close()
        self.executor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def next_id(self) -> str:
        return f"r{next(self._numbers)}"


class _Answer:
    """One request between the loop's thread, which makes tokens, and whoever reads them."""

    def __init__(
        self, engine: Engine, prompt: Prompt, told: Callable[[int | Completion], None], streamed: bool
    ) -> None:
        ids = engine.text.ids(prompt.content)
        positions = engine.config.max_positions
        if len(ids) >= positions:
            raise CallerError(f"the prompt has {len(ids)} tokens, the model's {positions} positions leave no room")
        wanted, sampling = prompt.max_new_tokens, prompt.sampling
        if type(wanted) is not int or wanted < 1:
            raise CallerError(f"max_new_tokens must be a whole number of at least 1, got {wanted!r}")
        assert sampling is not None
        limit = min(wanted, positions - len(ids))
        stops = frozenset(engine.config.eos if prompt.stop is None else prompt.stop)
        request = Request(engine.next_id(), len(ids), limit, arrival=max(0.0, engine.executor.now()))
        job = Job(request, ids, limit, sampling, stops, heard=told if streamed else None)
        self.ticket = Ticket(job, self._ended)
        self._told = told
        self._text = engine.text
        self._detokenizer = engine.text.detokenizer()

    def _ended(self, outcome: Outcome, error: AlignedSchedError | None) -> None:
        job = self.ticket.job
        reason: Literal["stop", "length", "cancelled", "error"] = "length"
        if outcome is not Outcome.FINISHED:
            reason = "cancelled" if outcome is Outcome.CANCELLED else "error"
        elif job.produced[-1] in job.stops:
            reason = "stop"
        text = self._text.text(job.produced)
        self._told(Completion(len(job.prompt), tuple(job.produced), text, reason, error))

    def token(self, token: int) -> Token:
        return Token(token, self._detokenizer.add(token))

    def last_text(self) -> list[Token]:
        """What text is left when all tokens are there."""
        rest = self._detokenizer.rest()
        return [Token(None, rest)] if rest else []


def _decoders(
    folder: str | Path, config: ModelConfig, dtype: torch.dtype, devices: Mapping[str, Device], cluster: Cluster
) -> dict[str, Decoder]:
    """A decoder for each lane. Devices that share a memory share the weights."""
    places = {device.torch_device for device in devices.values()}
    loaded = {place: decoder_for(config, load_weights(folder, config, dtype, place)) for place in places}
    return {lane.id: loaded[devices[lane.ranks[0]].torch_device] for lane in cluster.lanes}


def _merged(prompt: Content | Prompt, default: Prompt) -> Prompt:
    """A prompt with everything said."""
    if not isinstance(prompt, Prompt):
        return evolve(default, content=prompt)
    return Prompt(
        prompt.content,
        default.max_new_tokens if prompt.max_new_tokens is None else prompt.max_new_tokens,
        prompt.sampling or default.sampling,
        default.stop if prompt.stop is None else prompt.stop,
    )


def _dtype(name: str, where: str) -> torch.dtype:
    if name not in DTYPES:
        raise ConfigError(f"{where}dtype {name!r} is not supported; supported: {', '.join(DTYPES)}")
    return DTYPES[name]
