"""``check_policy``: does a policy keep every promise a policy makes, among every trouble there is?"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping

from ..errors import ConfigError
from .policy_lives import adversarial, lived, lived_among_clutter
from .probe import Probe
from .results import Findings, Report, check_names
from .served import Served, calm, crowded
from .subjects import PolicyFactory, name_of, policy_factory, spec_of

POLICY_CHECKS: Mapping[str, str] = {
    "raises_nothing": "a policy that raises is asked again later, and work waits meanwhile",
    "proposals_legal": "known ids, once each, in states where the proposal makes sense",
    "chooses_something": "work that can go on is not left while nothing runs, beyond `may_idle_s`",
    "wakes_later": "`wake_at` is a finite time after now, and not asked for without end",
    "views_unmodified": "views are read-only",
    "pure_until_taken": "nothing has an effect until `taken`: asked again, it answers the same",
    "state_is_plain": "`state()` is plain data that JSON can hold",
    "restored_goes_on": "a fresh policy loaded with `state()` goes on as the old one would have",
    "deterministic": "the same events give the same plans, whatever else lives in the process",
    "same_in_another_process": "the same events give the same plans under another PYTHONHASHSEED",
    "same_over_plain_views": "it proposes the same over a view with no scheduler behind",
    "bounded_wait": "nobody is overtaken without end while there is room for everybody",
    "everything_ends": "once nothing stands in its way any more, every request ends",
    "plans_are_legal": "the scheduler's plans can be carried out (a bug of the scheduler, not of the policy)",
    "invariants": "the scheduler's books stay in order (a bug of the scheduler, not of the policy)",
}
OTHER_HASH_SEED = "20260"
COMPARED = 3  # of how many lives one is lived again, to be compared
RESTORES = 0.2  # how often a fresh policy takes over in the lives where that happens


def check_policy(
    factory: PolicyFactory | str,
    *,
    seeds: Iterable[int] = range(12),
    events: int = 80,
    most_overtaken: int | None = 64,
    known_gaps: Mapping[str, str] | None = None,
    another_process: bool = True,
) -> Report:
    """Run a policy through every check of ``POLICY_CHECKS`` and report on each by name.

    ``factory`` makes a fresh ``Policy`` on each call; it may be given as the name of a registered policy or as
    ``"module:attribute"``. Each seed is three lives: ``events`` calls in an adversarial world, as many requests in a
    crowd, and twice as many on a calm cluster, where nobody may be overtaken by more than ``most_overtaken`` requests
    (None: the policy promises no such thing).
    ``known_gaps`` maps checks that are known to fail to the reason; one that passes all the same fails.
    ``another_process`` starts one more Python process.

    Raises ConfigError for an unknown policy or check, or when assertions are switched off (``python -O``).
    """
    need_assertions()
    check_names("known_gaps", known_gaps or {}, POLICY_CHECKS)
    make = policy_factory(factory)
    findings = Findings(POLICY_CHECKS)
    numbers = list(seeds)
    for number in numbers:
        findings.begin(number)
        adversarial(number, events, Probe(make, findings), findings)
        for setting, count, examine in ((calm(number), 2 * events, 0.1), (crowded(number), events, 0.05)):
            findings.begin(number)
            probe = Probe(make, findings, examine=examine)
            Served(setting, probe, findings, most_overtaken).run(number, count)
    if most_overtaken is None:
        findings.skipped["bounded_wait"] = "the caller says that the policy promises no bound"
    again = numbers[:: max(1, COMPARED if len(numbers) > COMPARED else 1)]
    _compare(make, again, events, findings)
    _compare_processes(factory, make, again if another_process else [], events, findings)
    return findings.report(f"policy {name_of(factory)}", "policy", known_gaps or {})


def digests(factory: PolicyFactory | str, seeds: Iterable[int], events: int) -> list[str]:
    """One digest a life over all its plans: the same in every process, if the policy is deterministic."""
    make = policy_factory(factory)
    return [(lived(make, seed, events) or ["-"])[-1] for seed in seeds]


def need_assertions() -> None:
    """Raise ConfigError where assertions are switched off: suites stand upon them."""
    if not __debug__:
        raise ConfigError("conformance suites need assertions: run without python -O and PYTHONOPTIMIZE")


def _compare(make: PolicyFactory, seeds: list[int], events: int, findings: Findings) -> None:
    """Lives lived again: among other objects, and with a fresh policy taking over now and then."""
    for seed in seeds:
        first = lived(make, seed, events)
        findings.begin(seed)
        if _differ(findings, first, lived_among_clutter(make, seed, events), "deterministic"):
            findings.skipped["restored_goes_on"] = findings.skipped["same_in_another_process"] = "not deterministic"
            continue
        _differ(findings, first, lived(make, seed, events, restore=RESTORES), "restored_goes_on")


def _differ(findings: Findings, first: list[str], second: list[str], check: str) -> bool:
    if first == second:
        return False
    same = next((at for at, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), -1)
    findings.calls = same + 1 if same >= 0 else min(len(first), len(second)) + 1
    findings.note(check, f"call {findings.calls} of the same life gives another plan")
    return True


def _compare_processes(
    factory: PolicyFactory | str, make: PolicyFactory, seeds: list[int], events: int, findings: Findings
) -> None:
    check, spec = "same_in_another_process", spec_of(factory)
    if check in findings.skipped:
        return
    if not seeds:
        findings.skipped[check] = "the caller wants no other process"
    elif spec is None:
        findings.skipped[check] = "no other process can import the factory; give it as 'module:attribute'"
    else:
        here, there = digests(make, seeds, events), _digests_elsewhere(spec, seeds, events)
        for seed, mine, others in zip(seeds, here, there, strict=True):
            if mine != others:
                findings.begin(seed)
                findings.calls = events
                findings.note(check, f"another process (PYTHONHASHSEED={OTHER_HASH_SEED}) gives other plans")


def _digests_elsewhere(spec: str, seeds: list[int], events: int) -> list[str]:
    environment = {
        **os.environ,
        "PYTHONHASHSEED": OTHER_HASH_SEED,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, "-m", "alignedsched.testing", "digest", spec, "--events", str(events), "--seeds"]
    done = subprocess.run([*command, *map(str, seeds)], env=environment, capture_output=True, text=True, check=False)
    lines = done.stdout.split()
    if done.returncode or len(lines) != len(seeds):
        return [f"failed: {done.stderr[-200:]}"] * len(seeds)
    return lines
