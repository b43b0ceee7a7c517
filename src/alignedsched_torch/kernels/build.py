"""The kernels compiled for a Hopper GPU, with no GPU at hand, and what they need of it.

    python -m alignedsched_torch.kernels.build [--json]

Triton brings its own assembler and disassembler, so registers, shared memory, spills and the width of memory accesses
can be read off the machine code anywhere. It says that a kernel can keep enough bytes under way, not how fast it is.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attrs import asdict, frozen

from . import device
from .decode import MERGED_AT_ONCE
from .options import PER_PROCESSOR, options, power
from .pages import BLOCK
from .plan import LEAST_TOKENS, SEGMENTS
from .rowwise import BLOCK as GATE_BLOCK
from .rowwise import warps

ARCHITECTURE = 90
REGISTERS, SHARED_BYTES, RESERVED_BYTES, THREADS = 65536, 232448, 1024, 2048  # of a Hopper processor; a program's own
WIDTHS = {"bf16": 2, "fp16": 2, "fp32": 4}
_MEMORY = re.compile(r"\b(LDGSTS|LDG|STG|UTMALDG|LDL|STL)\b((?:\.\w+)*)")


@frozen
class Case:
    """A kernel and the constants it is compiled with."""

    name: str
    kernel: str
    types: dict[str, str]
    constants: dict[str, int]
    warps: int
    wanted: int = 1  # programs at once on a processor


@frozen
class Resources:
    """What one compiled kernel needs, and what the processor then holds."""

    name: str
    registers: int  # a thread
    shared: int  # bytes a program
    spilled: int  # instructions that move registers to and from local memory
    copies: dict[str, int]  # instructions that read or write global memory, by name and width
    programs: int  # that fit on a processor at once
    wanted: int


def cases() -> Iterator[Case]:
    """Shapes of today's models, and the corners: small and large pages, one query a KV head, wide and narrow heads."""
    for dtype in WIDTHS:
        yield decode_case(dtype)
    for page in (16, 32, 128):
        yield decode_case("bf16", page=page)
    for group, dim in ((1, 128), (8, 128), (4, 64), (8, 256), (4, 96)):
        yield decode_case("bf16", group=group, dim=dim)
    yield decode_case("bf16", segments=SEGMENTS)
    yield decode_case("bf16", kernel="unsplit_kernel")
    yield merge_case()
    yield merge_case(segments=SEGMENTS)
    yield rope_case()
    for hidden in (896, 4096, 8192):
        yield add_norm_case(hidden)
    yield gate_case()
    words = 32 * 2 * 8 * 64 * 128 // 2
    yield Case("move_pages, 8 MiB pages", "move_pages_kernel", {}, {"WORDS": words, "BLOCK": BLOCK}, 4)


def decode_case(
    dtype: str, *, kernel: str = "balanced_kernel", kv_heads: int = 8, group: int = 4, dim: int = 128, page: int = 64,
    segments: int = 0,
) -> Case:  # fmt: skip
    """Decode attention as ``decode`` launches it."""
    chosen = options(dim, WIDTHS[dtype])
    constants = {
        "KV_HEADS": kv_heads, "GROUP": group, "ROWS": power(group), "DIM": dim, "WIDTH": power(dim), "PAGE": page,
        "TILE": chosen.tile, "STAGES": chosen.stages, "SEGMENTS": segments, "LEAST": max(1, LEAST_TOKENS // page),
    }  # fmt: skip
    name = kernel.removesuffix("_kernel") + (", invariant" if segments else "")
    title = f"{name}, {dtype}, {group} queries a KV head, head {dim}, page {page}"
    return Case(title, kernel, dict.fromkeys(("q", "kv", "out"), dtype), constants, chosen.warps, PER_PROCESSOR)


def merge_case(*, segments: int = 0) -> Case:
    """Parts of cut runs put together."""
    constants = {
        "KV_HEADS": 8, "GROUP": 4, "DIM": 128, "WIDTH": 128, "PAGE": 64, "PARTS": MERGED_AT_ONCE,
        "SEGMENTS": segments, "LEAST": LEAST_TOKENS // 64,
    }  # fmt: skip
    return Case(f"merge{', invariant' if segments else ''}, bf16", "merge_kernel", {"out": "bf16"}, constants, 4)


def rope_case() -> Case:
    """Rope with the KV write."""
    constants = {"KV_HEADS": 8, "GROUP": 4, "ROWS": 4, "DIM": 128, "WIDTH": 64, "PAGE": 64}
    names = ("q", "k", "v", "cos", "sin", "q_out", "kv")
    return Case("rope_write, bf16", "rope_write_kernel", dict.fromkeys(names, "bf16"), constants, 1)


def add_norm_case(hidden: int) -> Case:
    """A residual's sum with its norm."""
    width, names = power(hidden), ("x", "more", "weight", "total", "normed")
    constants = {"COUNT": hidden, "WIDTH": width}
    return Case(
        f"add_norm, bf16, {hidden} values", "add_norm_kernel", dict.fromkeys(names, "bf16"), constants, warps(width)
    )


def gate_case() -> Case:
    """The gate of Llama-3.1-8B's MLP."""
    constants = {"COUNT": 14336, "BLOCK": GATE_BLOCK}
    return Case("gate, bf16, 14336 values", "gate_kernel", dict.fromkeys(("both", "out"), "bf16"), constants, 4)


_POINTERS = {
    "rows": "i64", "table": "i64", "lengths": "i64", "page": "i64", "offset": "i64", "source_ids": "i64",
    "target_ids": "i64", "starts": "i32", "source": "i32", "target": "i32", "part_sum": "fp32", "part_top": "fp32",
    "part_weight": "fp32",
}  # fmt: skip


def compiled(case: Case) -> Any:
    """The kernel compiled. Pointers and strides are taken to be multiples of 16, as they are in a pool of KV."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if device.INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET is set: kernels are interpreted in this process, not compiled")
    kernel = getattr(device, case.kernel)
    pointers = _POINTERS | case.types
    constants = {name: value for name, value in case.constants.items() if name in kernel.arg_names}
    signature, attributes = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in pointers:
            signature[name] = f"*{pointers[name]}"
        else:
            signature[name] = "fp32" if name in ("scale", "eps") else "i32"
        if name in pointers or (name.endswith("stride") and name != "table_stride"):
            attributes[place,] = [["tt.divisibility", 16]]
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, places, attributes)
    return triton.compile(source, target=GPUTarget("cuda", ARCHITECTURE, 32), options={"num_warps": case.warps})


def resources(case: Case) -> Resources:
    """What a case needs, read off its machine code."""
    made = compiled(case)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(made.asm["cubin"])
        usage = _tool("cuobjdump", "-res-usage", str(file))
        code = _tool("nvdisasm", "-c", str(file))
    registers = int(usage.split("REG:")[1].split()[0])
    shared = int(made.metadata.shared)
    copies: dict[str, int] = {}
    for name, suffixes in _MEMORY.findall(code):
        bits = next((part for part in suffixes.split(".") if part in ("U8", "U16", "64", "128")), "32")
        copies[f"{name}.{bits}"] = copies.get(f"{name}.{bits}", 0) + 1
    spilled = sum(count for name, count in copies.items() if name[:3] in ("LDL", "STL"))
    threads = 32 * case.warps
    fits = min(
        REGISTERS // (-(-registers // 8) * 8 * threads),
        SHARED_BYTES // (shared + RESERVED_BYTES),
        THREADS // threads,
        32,
    )
    return Resources(case.name, registers, shared, spilled, copies, fits, case.wanted)


def _tool(name: str, *arguments: str) -> str:
    """Run one of the tools that Triton brings."""
    import triton.backends.nvidia as nvidia

    tool = Path(nvidia.__file__).parent / "bin" / name
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def main(argv: list[str]) -> None:
    """Compile all cases and print what they need."""
    if "--json" not in argv:
        sys.stdout.write("registers  shared  spills  programs  kernel, and its memory accesses\n")
    for case in cases():
        found = resources(case)
        if "--json" in argv:
            sys.stdout.write(json.dumps(asdict(found)) + "\n")
            continue
        copies = ", ".join(f"{count} {name}" for name, count in sorted(found.copies.items()))
        sys.stdout.write(
            f"{found.registers:9}  {found.shared:6}  {found.spilled:6}  {found.programs:3} of {found.wanted:1}"
            f"  {found.name}: {copies}\n"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
