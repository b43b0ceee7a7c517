"""The smallest integration: an engine that keeps its own queue and block tables asks, step by step, who decodes.

Columns in, ordered ids and reasons out. The engine calls ``Hooks.decide`` once before each of its steps with what it
holds, and does what the ``Decision`` says as far as it can; the columns of the next call tell what became of it. The
policies are those of ``alignedsched.policies``, whole: rounds, waves and what they learn included. There is no clock
and no randomness in here: redundant ranks that are fed the same columns and the same ``now`` decide the same.

A step in which every member made one token and nobody came or went costs a comparison of lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from attrs import evolve, field, frozen

from ..asking import ask
from ..errors import CallerError, ConfigError
from ..load import Costs, Load
from ..outside import is_count, is_number, show
from ..policies.protocols import Policy, Sacrifice, Stepped, Take
from ..registry import policy as policy_named
from ..request import Request, RequestId
from .board import LANE, Board, BoardView, cluster_of
from .choosing import Choice, Chooser
from .columns import DEVICE, HOST, LONGEST, TO_DEVICE, TO_HOST, Queued, Resident
from .reading import Ended, Reader
from .step_log import StepLog

__all__ = ["DEVICE", "HOST", "TO_DEVICE", "TO_HOST", "Decision", "Hooks", "Queued", "Resident", "Sacrifice", "Take"]

TOLD_TOGETHER = 64  # plain steps at most that watches are told of as one


@frozen
class Decision:
    """What the engine's next step should be. In the order of doing:

    ``victims``: blocks are short, these make room first: ``RECOMPUTE`` drops the KV and the request queues again,
    ``PARK`` copies it to the host. ``to_host``: KV to the host (a hard park). ``to_device``: KV back. ``decode``: who
    decodes, longest first. ``parked``: who could and does not: its KV stays on the device (a soft park).
    ``prefill``: whose prefill goes on or begins, with the tokens of this step; who queues and is not named waits.

    ``why`` is the policy's reason for the composition, ``reasons`` those for single requests that changed. Call again
    at ``wake_at`` (seconds) at the latest. ``short``: blocks that the step lacks though nobody is left to make room.
    ``overruled``: the policy chose nothing although work waited, so it was done first come, first served.

    While nothing changes the very same object is returned: what was applied need not be applied again.
    """

    decode: tuple[RequestId, ...] = ()
    parked: tuple[RequestId, ...] = ()
    prefill: tuple[Take, ...] = ()
    victims: tuple[tuple[RequestId, Sacrifice], ...] = ()
    to_host: tuple[RequestId, ...] = ()
    to_device: tuple[RequestId, ...] = ()
    why: str = ""
    reasons: Mapping[RequestId, str] = field(factory=dict)
    wake_at: float | None = None
    short: int = 0
    overruled: bool = False


class Hooks:
    """One policy over one engine's lane.

    ``policy`` is a Policy or the name of one. ``block_size`` in tokens; ``capacity_blocks`` of the device's KV and
    ``host_blocks`` of the host's (0: KV never goes there); ``max_members``: requests that may hold a seat, whoever
    sits out included; ``max_tokens`` of one step; ``costs``: what a step costs (without it ``cost_aligned`` is
    ``fcfs``; `alignedsched advise` makes one out of a step log); ``log``: where a line goes for every step whose
    ``seconds`` are told, of the batch as it was decided (whoever runs other batches writes the log himself).

    Raises ConfigError naming the option that is out of range.
    """

    def __init__(
        self,
        policy: Policy | str,
        *,
        block_size: int,
        capacity_blocks: int,
        max_members: int,
        max_tokens: int = 8192,
        host_blocks: int = 0,
        costs: Costs | None = None,
        log: StepLog | None = None,
    ) -> None:
        if not isinstance(policy, Policy | str):
            raise ConfigError(f"Hooks: policy must be a Policy or the name of one, got {show(policy)}")
        self.policy = policy_named(policy) if isinstance(policy, str) else policy
        options = {
            "block_size": block_size,
            "capacity_blocks": capacity_blocks,
            "max_members": max_members,
            "max_tokens": max_tokens,
            "host_blocks": host_blocks,
        }
        for name, number in options.items():
            if not is_count(number, 0 if name == "host_blocks" else 1, LONGEST):
                raise ConfigError(
                    f"Hooks: {name} must be an integer of at least 1 (host_blocks: 0), got {show(number)}"
                )
        cluster = cluster_of(
            block_size=block_size, blocks=capacity_blocks, host_blocks=host_blocks, members=max_members,
            tokens=max_tokens,
        )  # fmt: skip
        self._board = Board(cluster)
        self._view = BoardView(self._board, costs)
        self._chooser = Chooser(self._board, self._view, self.policy)
        self._reader = Reader(self._board, self.policy)
        self._facts = _Facts(self.policy, log)
        self._last = Decision()
        self._asked: tuple[float | None, float | None] = (None, None)  # its `wake_at` and `look_at`
        self._dirty = True
        self._free = -1

    # -- what happens outside of steps

    def enqueue(self, request: Request, *, produced: int | None = None) -> None:
        """A request waits in the engine's queue: a new one, or one that lost its KV after ``produced`` tokens.

        What it produced is known of one that was resident, as far as the columns told. Victims that are to be computed
        again queue by themselves.

        For engines with deep queues, in place of the ``Queued`` table. Then ``end`` has to be told of whoever ends
        without ever having been resident between two steps: cancelled while it queued, or done with its first token.
        O(log n). Raises CallerError if it queues already, or is no Request.
        """
        if not isinstance(request, Request):
            raise CallerError(f"Hooks.enqueue: request must be a Request, got {show(request)}")
        if produced is not None and not is_count(produced, 0, LONGEST):
            raise CallerError(f"Hooks.enqueue: produced must be an integer of at least 0, got {show(produced)}")
        self._reader.enqueue(request, produced)
        self._dirty = True

    def end(self, request: RequestId, *, produced: int | None = None, finished: bool = True) -> None:
        """A request is over: finished, or cancelled. Unknown ids are passed over. O(log n).

        Where it is not told, a request that is missing from the columns counts as finished if it ran, else as
        cancelled; policies that learn output lengths learn better from what is told.
        """
        board = self._board
        row = board.rows.get(request)
        if row is not None:
            made = board.produced(row) if produced is None else produced
            board.remove(row)
            self._reader.ended.append(Ended(row.request, made, finished))
        elif request in board.queue:
            board.queue.remove(request)
        else:
            return
        self._reader.doubt()
        self._dirty = True

    # -- one step

    def decide(
        self,
        now: float,
        resident: Resident,
        queued: Queued | None = None,
        *,
        free_blocks: int,
        free_host_blocks: int = 0,
        seconds: float = 0.0,
    ) -> Decision:
        """What the next step should be, for an engine that holds ``resident`` and lets ``queued`` wait.

        ``now`` and ``seconds`` (what the steps since the last call took together; 0: unknown) are the engine's, and
        equal on redundant ranks.
        ``free_blocks`` are the device's blocks that nobody has, before the next step. ``queued`` is the whole queue,
        or None: as before, and as told by ``enqueue``. Ids that are gone from ``resident`` and do not queue have ended.

        O(rows) by comparing lists while nothing changes; else O(rows) plus the policy's own work. Raises CallerError
        naming table, column, row and id, and then nothing has changed; PolicyError if the policy raises.
        """
        self._check(now, free_blocks, free_host_blocks, seconds)
        if not isinstance(resident, Resident):
            raise CallerError(f"Hooks.decide: resident must be a Resident, got {show(resident)}")
        if queued is not None and not isinstance(queued, Queued):
            raise CallerError(f"Hooks.decide: queued must be a Queued or None, got {show(queued)}")
        board, reader = self._board, self._reader
        was, board.now = board.now, max(board.now, float(now))
        try:
            reader.read(resident, queued)
        except CallerError:
            board.now = was
            raise
        board.spare, board.host_spare = free_blocks, free_host_blocks
        self._dirty = self._dirty or reader.news or board.moved  # until it is decided, whatever a policy raises
        self._facts.stepped(reader.steps, seconds, alone=self._dirty)
        more, self._free = free_blocks > self._free, free_blocks
        due = self._due()
        if not (self._dirty or more or due or self._last.prefill or board.free < 0):
            reader.settle()
            self._last = evolve(self._last, victims=()) if self._last.victims else self._last
            return self._last
        self._dirty = True
        reader.doubt()
        self._facts.tell(reader.ended)
        self._last = self._decided(self._chooser.choose(due))
        reader.settle()
        reader.ordered = self._ordered()
        self._facts.load = self._load()
        self._dirty = False
        if self._last.victims:  # they are told once; the columns say what became of them
            self._free = board.spare  # what they leave is no news, and nobody begins on it in the next breath
            reader.doubt()
        return self._last

    @staticmethod
    def _check(now: float, free: int, host: int, seconds: float) -> None:
        for name, number in (("now", now), ("seconds", seconds)):
            if not is_number(number, 0.0):
                raise CallerError(f"Hooks.decide: {name} must be finite seconds of at least 0, got {show(number)}")
        for name, blocks in (("free_blocks", free), ("free_host_blocks", host)):
            if not is_count(blocks, 0, LONGEST):
                raise CallerError(f"Hooks.decide: {name} must be an integer of at least 0, got {show(blocks)}")

    def _due(self) -> bool:
        """Whether the policy wanted to be asked by now, with ``look_at`` only if nothing waits."""
        now, (wake_at, look_at) = self._board.now, self._asked
        woken = wake_at is not None and now >= wake_at
        return woken or (look_at is not None and now >= look_at and not self._chooser.waits())

    def _decided(self, choice: Choice) -> Decision:
        board, last = self._board, self._last
        decode, parked = last.decode, last.parked
        if board.moved:
            decode = tuple(board.batch.longest_first())
            here = (*board.resident, *board.candidates, *board.joining)
            parked = tuple(r for r in here if board.rows[r].place == DEVICE and r not in choice.to_host)
        self._asked = choice.wake_at, choice.look_at
        wake_at = min((at for at in self._asked if at is not None), default=None)
        return Decision(
            decode, parked, tuple(choice.prefill), tuple(choice.victims), tuple(choice.to_host),
            tuple(choice.to_device), choice.why, choice.reasons, wake_at, choice.short, choice.overruled,
        )  # fmt: skip

    def _ordered(self) -> frozenset[RequestId]:
        """Requests of the queue whose whole prefill is part of the step."""
        queue = self._board.queue
        begun = (take for take in self._last.prefill if take.request in queue)
        return frozenset(t.request for t in begun if t.tokens >= queue.get(t.request).prefill_tokens)

    def _load(self) -> Load:
        """The load of the step decided, with its chunks."""
        board, chunks = self._board, []
        for take in self._last.prefill:
            row = board.rows.get(take.request)
            start = 0 if row is None else row.base - 1 - row.left
            chunks.append((start, start + take.tokens))
        load = board.load()
        return Load(load.n, load.total, load.longest, tuple(chunks))


class _Facts:
    """What a policy's watches are told: plain steps many at a time, and who has ended."""

    def __init__(self, policy: Policy, log: StepLog | None) -> None:
        self.load = Load(0, 0, 0)  # of the first step not told
        self._policy = policy
        self._log = log
        self._steps = 0
        self._seconds = 0.0

    def stepped(self, steps: int, seconds: float, *, alone: bool) -> None:
        """``steps`` steps more were done in ``seconds``; ``alone`` ends what is told together."""
        load = self.load
        if load.chunks or not load.n:
            steps = 1
        if steps and seconds > 0:
            if self._log is not None and (load.n or load.chunks):
                done = self._steps + (steps - 1) // 2
                prefill = sum(end - start for start, end in load.chunks)
                longest = load.longest + done if load.n else 0
                self._log.step(load.n, load.total + load.n * done, longest, prefill, 1e3 * seconds / steps)
            self._steps += steps
            self._seconds += seconds
        if alone or load.chunks or self._steps >= TOLD_TOGETHER:
            self.flush()

    def flush(self) -> None:
        """Tell of the steps so far."""
        load, steps, seconds = self.load, self._steps, self._seconds
        self._steps, self._seconds = 0, 0.0
        if not steps:
            return
        if load.n or load.chunks:
            facts = Stepped(LANE, (load,), steps, seconds)
            for watch in self._policy.watches:
                ask(self._policy, partial(watch.stepped, facts))
        self.load = Load(load.n, load.total + load.n * steps, load.longest + steps) if load.n else load

    def tell(self, ended: list[Ended]) -> None:
        """Tell of the steps so far and of those that have ended, and forget them."""
        self.flush()
        gone, ended[:] = tuple(ended), []
        for watch in self._policy.watches:
            for end in gone:
                ask(self._policy, partial(watch.ended, end.request, end.produced, end.finished))
