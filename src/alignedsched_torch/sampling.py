"""The next token of every row at once, on the device; a row's draw depends on its own seed and position alone.

A row's random number comes from hashing (seed, position), not from a generator that others share: the same request
gives the same tokens in any batch, after any preemption, as long as its logits are the same.
"""

from __future__ import annotations

import torch
from attrs import field, frozen

from alignedsched.errors import CallerError

# splitmix64 (Steele, Lea, Flood 2014), in wrapping 64-bit arithmetic
_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _finite(instance: object, attribute: object, value: float) -> None:
    if not 0 <= value < float("inf"):
        raise CallerError(f"temperature must be a finite number of at least 0, got {value!r}")


def _share(instance: object, attribute: object, value: float) -> None:
    if not 0 < value <= 1:
        raise CallerError(f"top_p must be above 0 and at most 1, got {value!r}")


def _count(instance: object, attribute: object, value: int) -> None:
    if type(value) is not int or value < 0:
        raise CallerError(f"top_k must be a whole number of at least 0 (0: all), got {value!r}")


def _seed(instance: object, attribute: object, value: int) -> None:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise CallerError(f"seed must be a whole number from 0 to 2**63 - 1, got {value!r}")


@frozen
class Sampling:
    """How a request's tokens are chosen. Temperature 0: the likeliest (greedy). Raises CallerError naming the field."""

    temperature: float = field(default=0.0, validator=_finite)
    top_p: float = field(default=1.0, validator=_share)
    top_k: int = field(default=0, validator=_count)
    seed: int = field(default=0, validator=_seed)


def uniform(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Numbers in [0, 1) from (seed, position), float64 with 53 random bits. Both [rows], int64."""
    z = seeds * _GOLDEN + (positions + 1) * _MIX_1
    for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
        z = (z ^ _shifted(z, shift)) * factor
    z = z ^ _shifted(z, 31)
    return _shifted(z, 11).to(torch.float64) / (1 << 53)


def _shifted(z: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_p: torch.Tensor,
    top_k: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """Tokens [rows] from logits [rows, vocab]; the other arguments are [rows]. O(vocab log vocab) a row."""
    ordered, tokens = logits.double().sort(dim=-1, descending=True, stable=True)
    scaled = ordered / temperature.clamp_min(1e-12).to(torch.float64)[:, None]
    shares = scaled.softmax(-1)
    before = shares.cumsum(-1) - shares  # likelihood of everything likelier
    place = torch.arange(logits.shape[-1], device=logits.device)
    limit = top_k.masked_fill(top_k == 0, logits.shape[-1])
    kept = (before < top_p.to(torch.float64)[:, None]) & (place < limit[:, None])
    shares = shares * kept
    reached = shares.cumsum(-1)
    drawn = uniform(seeds, positions)[:, None] * reached[:, -1:]
    choice = (reached <= drawn).sum(-1).clamp_max(logits.shape[-1] - 1)
    last = kept.sum(-1) - 1
    choice = torch.minimum(choice, last).masked_fill(temperature == 0, 0)
    return tokens.gather(-1, choice[:, None])[:, 0]
