"""Memory that several processes see: nameless, so that none is left behind however its processes end.

A region is a file that exists in memory only (``memfd_create``). Its descriptor travels to the workers over a socket;
it is gone with the last process that has it, killed ones included.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Sequence
from functools import cached_property

import torch
from attrs import frozen

from alignedsched.errors import ExecutorError

from ..devices import CpuDevice


class Region:
    """``size`` bytes, zero at first; pages nobody touches take no memory. Mapped when first looked at."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size

    @cached_property
    def bytes(self) -> mmap.mmap:
        """The memory itself."""
        return mmap.mmap(self.fd, self.size)

    @classmethod
    def make(cls, name: str, size: int) -> Region:
        """Raises ExecutorError when the system has no room for it."""
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, max(1, size))
            return cls(fd, max(1, size))
        except (OSError, ValueError) as error:
            os.close(fd)
            raise ExecutorError(f"no {size} bytes of shared memory for {name}: {error}") from error

    @classmethod
    def open(cls, fd: int) -> Region:
        """What another process made."""
        return cls(fd, os.fstat(fd).st_size)

    def tensor(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """The first bytes as a tensor. Raises ExecutorError when they are too few."""
        count = math.prod(shape)
        if not count:
            return torch.empty(tuple(shape), dtype=dtype)
        if count * dtype.itemsize > self.size:
            raise ExecutorError(f"a region of {self.size} bytes holds no {list(shape)} of {dtype}")
        return torch.frombuffer(self.bytes, dtype=dtype, count=count).view(tuple(shape))

    def close(self) -> None:
        """This process gives its descriptor back; tensors over the region stay valid."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class SharedDevice(CpuDevice):
    """Main memory as a device whose one large tensor lies in a region."""

    def __init__(self, name: str, region: Region) -> None:
        super().__init__(name)
        self._region = region

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return self._region.tensor(shape, dtype)


@frozen(eq=False)
class Record:
    """One record of a ring, and where the next one begins."""

    payload: bytes
    end: int


class Ring:
    """Records in a region, written by one process, read by any number of others.

    Positions count bytes since the beginning and never fall. Neither side polls the memory: a writer tells its readers
    how far it has written, readers tell how far they have read, both over a socket, whose system calls also order the
    memory accesses. A record is its length, 8 bytes, and its bytes, padded to 8.
    """

    def __init__(self, region: Region) -> None:
        self._bytes = region.bytes
        self.capacity = region.size // 8 * 8
        self.head = 0

    def write(self, payload: bytes, read: int) -> bool:
        """Append a record; False while the slowest reader, which has read up to ``read``, leaves no room for it.

        Raises ExecutorError for one that will never fit.
        """
        size = 8 + -(-len(payload) // 8) * 8
        if size > self.capacity:
            raise ExecutorError(f"a message of {len(payload)} bytes does not fit a ring of {self.capacity}")
        if self.head + size - read > self.capacity:
            return False
        self._put(self.head, len(payload).to_bytes(8, "little") + payload)
        self.head += size
        return True

    def read(self, at: int, head: int) -> Record:
        """The record at ``at``, where ``head`` has been told. Raises ExecutorError if there is no whole one."""
        length = int.from_bytes(self._get(at, 8), "little")
        end = at + 8 + -(-length // 8) * 8
        if end > head:
            raise ExecutorError(f"a ring holds a record of {length} bytes at {at}, but was written up to {head}")
        return Record(self._get(at + 8, length), end)

    def _put(self, at: int, data: bytes) -> None:
        place = at % self.capacity
        first = min(len(data), self.capacity - place)
        self._bytes[place : place + first] = data[:first]
        if first < len(data):
            self._bytes[: len(data) - first] = data[first:]

    def _get(self, at: int, count: int) -> bytes:
        place = at % self.capacity
        first = self._bytes[place : min(place + count, self.capacity)]
        return first if len(first) == count else first + self._bytes[: count - len(first)]
