"""What a machine was measured to do: costs of its steps, speed of its links, its memory; read and written as JSON.

`alignedsched-torch calibrate` writes such a file. `compare --hardware FILE` simulates the machine that it describes,
and an engine publishes its costs to the policy. Form and meaning of the fields: `docs/calibrate.md`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from attrs import asdict, evolve, field, frozen

from .cluster import HOST, Cluster, Link
from .cost_table import TableCosts
from .errors import ConfigError
from .outside import is_count, is_number, printable, read_json, show

FORMAT, VERSION = "alignedsched-measured", 1
DIRECTIONS = ("host->device", "device->host", "device->device")
_T = TypeVar("_T")


@frozen
class Errors:
    """Predicted against measured seconds of ``cases`` that no fit saw: |relative error| at the median and at 90 %.

    ``bias`` is the median of predicted / measured - 1: above 0 where the prediction is too slow.
    """

    cases: int
    p50: float
    p90: float
    bias: float


@frozen
class MeasuredKernel:
    """Steps under one attention kernel. ``held_out``: errors on batches that the table did not see, by kind of step."""

    costs: TableCosts
    held_out: Mapping[str, Errors] = field(factory=dict)


@frozen
class MeasuredLink:
    """Copies in one direction: b bytes take ``latency_s + b / bytes_per_s``.

    ``pieces``: bytes a second by the size of the pieces (bytes) that scattered KV is copied in. ``copy_beside`` and
    ``step_beside``: shares of their own speeds that a copy and decoding keep when they run beside each other.
    """

    bytes_per_s: float
    latency_s: float
    error: float  # median |relative error| of the straight line
    pieces: Mapping[int, float] = field(factory=dict)
    copy_beside: float | None = None
    step_beside: float | None = None


@frozen
class MeasuredModel:
    """The model that was measured, as far as memory and positions go."""

    name: str
    kv_bytes_per_token: int
    max_positions: int


@frozen
class MeasuredMemory:
    """KV memory in tokens, and the limits of a step, as they were measured with."""

    page_size: int
    kv_tokens: int
    host_tokens: int
    max_members: int
    max_tokens: int
    run_ahead: int


@frozen
class Measured:
    """One machine with one model. ``kernel`` names the one of ``kernels`` that its engine uses."""

    machine: Mapping[str, str]  # what it is: device, processor, versions, clock
    model: MeasuredModel
    memory: MeasuredMemory
    kernel: str
    kernels: Mapping[str, MeasuredKernel]
    links: Mapping[str, MeasuredLink] = field(factory=dict)

    def costs(self, kernel: str | None = None) -> TableCosts:
        """What steps cost, under a kernel (None: the engine's). Raises ConfigError listing the known ones."""
        name = self.kernel if kernel is None else kernel
        if name not in self.kernels:
            raise ConfigError(f"kernel {show(name)} was not measured; measured: {_some(self.kernels)}")
        return self.kernels[name].costs

    def applied(self, cluster: Cluster) -> Cluster:
        """The cluster with its links as fast as measured; those of a direction that was not stay as they are.

        Raises ConfigError where the cluster's KV is that of another model.
        """
        mine, other = self.model.kv_bytes_per_token, cluster.layout.bytes_per_token
        if mine != other:
            raise ConfigError(
                f"the costs were measured with {show(self.model.name)}, whose KV has {mine} bytes a token; "
                f"this model's has {other}"
            )
        return evolve(cluster, links=tuple(map(self._as_fast, cluster.links)))

    def _as_fast(self, link: Link) -> Link:
        way = "host->device" if link.source == HOST else "device->host" if link.target == HOST else "device->device"
        found = self.links.get(way)
        return link if found is None else evolve(link, bytes_per_s=found.bytes_per_s, latency_s=found.latency_s)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file. Raises OSError where that cannot be done."""
        Path(path).write_text(json.dumps(self.content(), indent=1) + "\n", encoding="utf-8")

    def content(self) -> dict[str, Any]:
        """Everything as plain data, for JSON."""
        kernels = {
            name: {
                "costs": kernel.costs.content(),
                "held_out": {kind: asdict(errors) for kind, errors in kernel.held_out.items()},
            }
            for name, kernel in self.kernels.items()
        }
        links = {
            name: asdict(link) | {"pieces": {str(size): speed for size, speed in link.pieces.items()}}
            for name, link in self.links.items()
        }
        return {
            "format": FORMAT,
            "version": VERSION,
            "machine": dict(self.machine),
            "model": asdict(self.model),
            "memory": asdict(self.memory),
            "kernel": self.kernel,
            "kernels": kernels,
            "links": links,
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Measured:
        """Read a file. Raises ConfigError naming the file and the field that is missing, wrong or unknown."""
        where = os.fspath(path)
        content = read_json(path)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ConfigError(f"{where}: format must be {FORMAT!r}, as `alignedsched-torch calibrate` writes it")
        if content.get("version") != VERSION:
            raise ConfigError(f"{where}: version must be {VERSION}, got {show(content.get('version'))}")
        top = _Fields({k: v for k, v in content.items() if k not in ("format", "version")}, where)
        read = cls(
            machine=top.each("machine", _text),
            model=_model(top.fields("model")),
            memory=_memory(top.fields("memory")),
            kernel=top.text("kernel"),
            kernels=top.each("kernels", _kernel),
            links=top.each("links", _link),
        )
        top.close()
        if read.kernel not in read.kernels:
            raise ConfigError(f"{where}: kernel {show(read.kernel)} is none of kernels: {_some(read.kernels)}")
        for name, kernel in read.kernels.items():
            most = kernel.costs.sheets[-1].n
            if read.memory.max_members > most:
                raise ConfigError(
                    f"{where}: memory.max_members is {read.memory.max_members}, but kernels.{printable(name, 60)} was "
                    f"measured up to {most} members"
                )
        unknown = next((name for name in read.links if name not in DIRECTIONS), None)
        if unknown is not None:
            raise ConfigError(f"{where}: links: {show(unknown)} is none of {', '.join(DIRECTIONS)}")
        return read


def _some(names: Iterable[str]) -> str:
    """Names for a message: the first few, each short."""
    return ", ".join(printable(name, 60) for name in islice(names, 6))


class _Fields:
    """The fields of one JSON object; each is asked for once, and what nobody asked for is unknown."""

    def __init__(self, content: object, where: str) -> None:
        if not isinstance(content, dict):
            raise ConfigError(f"{where} must be an object, got {show(content)}")
        self._left = dict(content)
        self._where = where
        self._joint = "." if ": " in where else ": "  # the first name stands behind that of the file

    def at(self, name: str) -> str:
        return f"{self._where}{self._joint}{printable(name, 60)}"

    def take(self, name: str) -> Any:
        if name not in self._left:
            raise ConfigError(f"{self.at(name)} is missing")
        return self._left.pop(name)

    def text(self, name: str) -> str:
        return _text(self.take(name), self.at(name))

    def count(self, name: str, least: int = 1) -> int:
        value = self.take(name)
        if not is_count(value, least):
            raise ConfigError(f"{self.at(name)} must be a whole number of at least {least}, got {show(value)}")
        return value

    def number(self, name: str, least: float = 0.0, above: bool = False) -> float:
        return _number(self.take(name), self.at(name), least, above)

    def share(self, name: str) -> float | None:
        value = self.take(name)
        return None if value is None else _number(value, self.at(name), 0.0, above=False)

    def fields(self, name: str) -> _Fields:
        return _Fields(self.take(name), self.at(name))

    def each(self, name: str, read: Callable[[object, str], _T]) -> dict[str, _T]:
        """Every value of an object, by its name."""
        inner = self.fields(name)
        return {key: read(value, inner.at(key)) for key, value in inner._left.items()}

    def close(self) -> None:
        unknown = next(iter(self._left), None)
        if unknown is not None:
            raise ConfigError(f"{self._where}: {show(unknown)} is no field of version {VERSION}")


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{where} must be a text that is not empty, got {show(value)}")
    return value


def _number(value: object, where: str, least: float, above: bool) -> float:
    if not is_number(value, least) or (above and value == least):
        raise ConfigError(f"{where} must be a finite number {'above' if above else 'of at least'} {least:g}, "
                          f"got {show(value)}")  # fmt: skip
    return float(value)


def _model(fields: _Fields) -> MeasuredModel:
    model = MeasuredModel(fields.text("name"), fields.count("kv_bytes_per_token"), fields.count("max_positions", 2))
    fields.close()
    return model


def _memory(fields: _Fields) -> MeasuredMemory:
    names = (("page_size", 1), ("kv_tokens", 1), ("host_tokens", 0), ("max_members", 1), ("max_tokens", 1),
             ("run_ahead", 0))  # fmt: skip
    memory = MeasuredMemory(**{name: fields.count(name, least) for name, least in names})
    fields.close()
    return memory


def _kernel(content: object, where: str) -> MeasuredKernel:
    fields = _Fields(content, where)
    costs = TableCosts.read(fields.take("costs"), fields.at("costs"))
    kernel = MeasuredKernel(costs, fields.each("held_out", _errors))
    fields.close()
    return kernel


def _errors(content: object, where: str) -> Errors:
    fields = _Fields(content, where)
    errors = Errors(fields.count("cases"), fields.number("p50"), fields.number("p90"), fields.number("bias", -1.0))
    fields.close()
    return errors


def _link(content: object, where: str) -> MeasuredLink:
    fields = _Fields(content, where)
    link = MeasuredLink(
        bytes_per_s=fields.number("bytes_per_s", above=True),
        latency_s=fields.number("latency_s"),
        error=fields.number("error"),
        pieces=_pieces(fields),
        copy_beside=fields.share("copy_beside"),
        step_beside=fields.share("step_beside"),
    )
    fields.close()
    return link


def _pieces(fields: _Fields) -> dict[int, float]:
    """Bytes a second by size; JSON's names are text."""
    found: dict[int, float] = {}
    for name, speed in fields.each("pieces", lambda value, at: _number(value, at, 0.0, above=True)).items():
        if not (name.isascii() and name.isdecimal() and len(name) < 19 and int(name)):
            raise ConfigError(f"{fields.at('pieces')}: {show(name)} is no size in bytes")
        found[int(name)] = speed
    return found
