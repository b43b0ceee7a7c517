"""An executor that keeps the contract and nothing more: every freedom it has, it takes at random.

Orders take effect at whatever step run-ahead allows, reports come late, several at once, twice or in the wrong order,
copies end in any order or fail, steps fail, lanes and devices vanish.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from random import Random

from attrs import evolve

from ..events import CopyDone, CopyFailed, ExecutorEvent, StepsDone, StepsFailed
from .contract import Contract
from .lane_model import Fragment, LaneModel


class Adversary(Contract):
    """Carries plans out as unhelpfully as the contract allows, and checks them (see ``Contract``)."""

    # -- what it tells

    def reports(self, model: LaneModel, rng: Random, everything: bool = False) -> list[ExecutorEvent]:
        """Some of what is to be told, merged, skipped and reordered as the contract allows."""
        if model.silent:
            return []
        waiting = [f for f in model.mail if not f.told]
        count = len(waiting) if everything or model.failed else rng.randint(0, len(waiting))
        chosen = waiting[:count]
        if not everything and not model.failed and rng.random() < 0.2:
            # a later order's report overtakes: leave out what belongs to one earlier order
            orders = sorted({f.order for f in chosen})
            if len(orders) > 1:
                kept_back = rng.choice(orders[:-1])
                chosen = [f for f in chosen if f.order != kept_back]
        merged: list[Fragment] = []
        for fragment in chosen:
            fragment.told = True
            model.told = max(model.told, fragment.through)
            last = merged[-1] if merged else None
            if last is not None and last.order == fragment.order and (fragment.failed or rng.random() < 0.7):
                merged[-1] = Fragment(
                    last.order, last.first, fragment.through, last.finished + fragment.finished,
                    last.prefilled + fragment.prefilled, fragment.chunked, fragment.failed,
                )  # fmt: skip
            else:
                merged.append(fragment)
        if model.failed and any(f.failed for f in chosen):
            model.failed = False
        self._prune(model)
        events = [self._event(model, fragment, rng) for fragment in merged]
        if not any(f.failed for f in merged) and rng.random() < 0.3:
            events = _shuffled_by_order(events, rng)
        return events

    def _event(self, model: LaneModel, fragment: Fragment, rng: Random) -> ExecutorEvent:
        if fragment.failed is not None:
            return evolve(fragment.failed, finished=tuple(fragment.finished))
        synchronous = model.launched <= fragment.through + model.lane.run_ahead
        launched = None if synchronous and rng.random() < 0.5 else model.launched
        return StepsDone(
            model.lane.id, fragment.order, fragment.first, fragment.through, tuple(fragment.finished),
            tuple(fragment.prefilled), 0.001, launched,
        )  # fmt: skip

    @staticmethod
    def _known(model: LaneModel) -> int:
        """The last step the scheduler knows to be done: the one before the first step not told."""
        untold = (f.through - 1 for f in model.mail if not f.told and f.through >= f.first and f.failed is None)
        return min(untold, default=model.done)

    def _prune(self, model: LaneModel) -> None:
        """Forget what the scheduler knows for certain."""
        while model.mail and model.mail[0].told:
            model.mail.pop(0)
        known = self._known(model)
        for number in [n for n in model.rows if n <= known]:
            del model.rows[number]

    # -- copies

    def endable(self) -> list[int]:
        """Copies under way whose completion will be heard."""
        return [number for number in self.copies if number not in self.mute]

    def end_copy(self, number: int, arrives: bool) -> ExecutorEvent:
        copy = self.copies.pop(number)
        self.aborted.discard(number)
        self.mute.discard(number)
        if self.astray.pop(number, None) is not None:
            return CopyDone(number) if arrives else CopyFailed(number, "too late")
        target = self.kv[copy.request][copy.target]
        if not arrives:
            target.written = target.readable
            return CopyFailed(number, "the link was busy")
        target.readable = copy.end
        return CopyDone(number)

    # -- trouble

    def fail_step(self, model: LaneModel, poisoned: tuple[str, ...], reason: str) -> None:
        """The oldest launched step fails; the scheduler hears of it with the lane's next reports."""
        number = model.done + 1
        order, first, _ = model.by_order[number]
        self._rollback(model, model.done)
        event = StepsFailed(model.lane.id, order, first, model.done, reason, poisoned)
        model.mail.append(Fragment(order, first, model.done, failed=event))
        self._stop(model)
        model.failed = True

    def lose_output(self, model: LaneModel, reason: str) -> bool:
        """A step that ended, but was not told, turns out to have failed, and all after it. False if there is none."""
        at = next((at for at, f in enumerate(model.mail) if not f.told and f.through >= f.first), None)
        if at is None or any(later.told for later in model.mail[at:]):
            return False
        fragment = model.mail[at]
        for lost in model.mail[at:]:
            self.finished -= {request for request, _ in lost.finished}
        del model.mail[at:]
        through = fragment.through - 1
        self._rollback(model, through)
        model.done = through
        event = StepsFailed(model.lane.id, fragment.order, fragment.first, through, reason)
        model.mail.append(Fragment(fragment.order, fragment.first, through, failed=event))
        self._stop(model)
        model.failed = True
        return True

    def row_requests(self, model: LaneModel) -> list[str]:
        """Requests in the oldest launched step."""
        return [row.request for row in model.rows.get(model.done + 1, ())]

    def _rollback(self, model: LaneModel, last: int) -> None:
        """Steps beyond ``last`` never happened."""
        for number in sorted((n for n in model.rows if n > last), reverse=True):
            for row in model.rows.pop(number):
                kv = self.kv.get(row.request, {}).get(model.lane.ranks[row.rank])
                if kv is not None:
                    kv.written, kv.readable = row.before, min(kv.readable, row.before)
            model.by_order.pop(number, None)

    @staticmethod
    def _stop(model: LaneModel) -> None:
        model.launched = model.done
        model.members.clear()
        model.pending.clear()
        model.took.clear()
        model.order = None

    def lose_lane(self, model: LaneModel) -> None:
        """The lane stops; what was not told has not happened."""
        known = self._known(model)
        for fragment in model.mail:
            if fragment.through > known:
                self.finished -= {request for request, _ in fragment.finished}
        self._rollback(model, known)
        self._stop(model)
        model.mail.clear()
        model.lost, model.failed, model.silent = True, False, False

    def lane_back(self, model: LaneModel, skip: int) -> int:
        """The lane is back; returns its next step."""
        model.lost = False
        model.launched = model.done = model.told = max(model.launched, model.done, model.told) + skip
        model.rows.clear()
        return model.done + 1

    def lose_device(self, device: str) -> None:
        tiers = {tier.id for tier in self.cluster.tiers.values() if tier.device == device}
        for model in self.lanes.values():
            if device in model.lane.ranks and not model.lost:
                self.lose_lane(model)
        for number in [n for n, copy in self.copies.items() if {copy.source, copy.target} & tiers]:
            copy = self.copies.pop(number)
            self.aborted.discard(number)
            self.mute.discard(number)
            if self.astray.pop(number, None) is None and copy.target not in tiers:
                target = self.kv[copy.request][copy.target]
                target.written = target.readable
        for there in self.kv.values():
            for tier in tiers & set(there):
                del there[tier]

    def change_weights(self) -> None:
        self.weights += 1

    # -- what is still to come

    def outstanding(self) -> bool:
        """Whether anything is under way, or still to be told."""
        return bool(self.endable()) or any(self.busy(model) for model in self.lanes.values())

    def busy(self, model: LaneModel) -> bool:
        untold = not model.silent and any(not f.told for f in model.mail)
        return untold or model.done < model.launched or self.may_launch(model)


def _shuffled_by_order(events: list[ExecutorEvent], rng: Random) -> list[ExecutorEvent]:
    """Events in another order, those of one order still in theirs."""
    keys = [getattr(event, "order", -1) for event in events]
    shuffled = list(keys)
    rng.shuffle(shuffled)
    queues: Mapping[int, deque[ExecutorEvent]] = {
        key: deque(e for e, k in zip(events, keys, strict=True) if k == key) for key in set(keys)
    }
    return [queues[key].popleft() for key in shuffled]
