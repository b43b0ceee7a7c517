"""What runs on the GPU: Triton programs for decode attention, for what rows need besides, and for moving pages.

All arithmetic is in float32, whatever is stored; products of float32 are exact ones (no TF32). Under Triton's
interpreter operands are widened before any arithmetic, because it keeps bfloat16 as bare bits. Places in a pool are
64 bits wide: one holds more than 2**31 elements.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = bool(triton.knobs.runtime.interpret)  # programs run in Triton's interpreter, on CPU tensors
_EMULATED = tl.constexpr(INTERPRETED)
_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _product(a, b):
    """Matrix product of two tiles, accumulated in float32."""
    if _EMULATED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    else:
        return tl.dot(a.to(b.dtype), b, input_precision="ieee")


@triton.jit
def _pages_at(table, at, last, PAGE: tl.constexpr, TILE: tl.constexpr):
    """Where the tile of tokens from ``at`` on lies: one page where tiles never leave theirs, else a page a token."""
    if PAGE % TILE == 0:
        return tl.load(table + tl.minimum(at, last) // PAGE)
    else:  # said, because the compiler leaves out only a branch that it sees
        return tl.load(table + tl.minimum(at + tl.arange(0, TILE), last) // PAGE)


@triton.jit
def _attend(
    q, keys, values, table, start, stop, page_stride, factor,
    DIM: tl.constexpr, PAGE: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Attention of ``q`` [rows, width] to the tokens ``start`` (the first of a page) to ``stop`` of one run.

    Returns the weighted sum of values [rows, width], the largest score [rows], in powers of two, and the sum of the
    weights [rows]. The pages of the next tile are looked up before this one is read, so that nothing but KV waits in
    the pipeline.
    """
    token, d = tl.arange(0, TILE), tl.arange(0, q.shape[1])
    top = tl.full([q.shape[0]], float("-inf"), tl.float32)
    weight = tl.zeros([q.shape[0]], tl.float32)
    total = tl.zeros([q.shape[0], q.shape[1]], tl.float32)
    last = tl.maximum(stop - 1, 0)  # with nothing to read, too, a page of the run's own is looked up
    page = _pages_at(table, start, last, PAGE, TILE)
    for at in tl.range(start, stop, TILE, num_stages=STAGES):
        following = _pages_at(table, at + TILE, last, PAGE, TILE)
        place = page * page_stride
        if PAGE % TILE == 0:
            offset = place + (at % PAGE + token)[:, None] * DIM + d[None, :]
        else:
            offset = place[:, None] + ((at + token) % PAGE)[:, None] * DIM + d[None, :]
        seen = at + token < stop
        mask = seen[:, None]
        if q.shape[1] != DIM:
            mask = mask & (d[None, :] < DIM)
        k = tl.load(keys + offset, mask=mask, other=0.0)
        score = tl.where(seen[None, :], _product(q, tl.trans(k)) * factor, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        share = tl.exp2(score - higher[:, None])
        fade = tl.exp2(top - higher)
        weight = weight * fade + tl.sum(share, 1)
        v = tl.load(values + offset, mask=mask, other=0.0)
        total = total * fade[:, None] + _product(share, v)
        top, page = higher, following
    return total, top, weight


@triton.jit
def _mean(total, weight):
    """Sums by weights; nothing where there was nothing to read."""
    return total / tl.where(weight > 0, weight, 1.0)[:, None]


@triton.jit
def _segment(length, PAGE: tl.constexpr, LEAST: tl.constexpr, SEGMENTS: tl.constexpr):
    """Tokens a segment of a request with that length; as ``plan.segment_pages``."""
    pages = (length + PAGE - 1) // PAGE
    return tl.maximum(LEAST, (pages + SEGMENTS - 1) // SEGMENTS) * PAGE


@triton.jit(do_not_specialize=["table_stride", "PROGRAMS"])
def balanced_kernel(
    q, kv, rows, table, lengths, starts, out, part_sum, part_top, part_weight,
    q_stride, page_stride, table_stride, scale, PROGRAMS,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    PAGE: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr, SEGMENTS: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    """One program of a plan: its stretch of runs, each written out if it is whole, else kept as a part.

    Program p's first part is number 2p and any other one 2p + 1; with ``SEGMENTS``, a part's number is its segment's.
    """
    p = tl.program_id(0)
    first, last = tl.load(starts + p), tl.load(starts + p + 1)
    begin, end = tl.load(starts + PROGRAMS + 1 + p), tl.load(starts + PROGRAMS + 2 + p)
    g, d = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    within = (g[:, None] < GROUP) & (d[None, :] < DIM)
    for i in range(last - first + 1):
        run = first + i
        row, head = (run // KV_HEADS).to(tl.int64), run % KV_HEADS
        passed = run < last  # the program goes on to the run's end
        there = passed | (end > 0)  # else nothing of this run is the program's, and it may lie behind all rows
        slot = tl.load(rows + row, mask=there, other=0)
        length = tl.load(lengths + slot).to(tl.int32)
        unit = PAGE
        if SEGMENTS:
            unit = _segment(length, PAGE, LEAST, SEGMENTS)
        start = tl.where(run == first, begin, 0) * unit
        stop = tl.where(passed, length, tl.minimum(end * unit, length))
        mine = passed | (end * unit > start)
        step = tl.maximum(stop - start, 1)
        if SEGMENTS:
            step = unit
        place = row * q_stride + (head * GROUP + g)[:, None] * DIM + d[None, :]
        queries = tl.load(q + place, mask=within & there, other=0.0)
        keys = kv + head * (PAGE * DIM)
        for at in range(start, tl.where(mine, tl.maximum(stop, start + 1), start), step):
            total, top, weight = _attend(
                queries, keys, keys + KV_HEADS * PAGE * DIM, table + slot * table_stride,
                at, tl.minimum(at + step, stop), page_stride, scale * _LOG2E, DIM, PAGE, TILE, STAGES,
            )  # fmt: skip
            if SEGMENTS:
                whole = unit >= length
                part = run.to(tl.int64) * SEGMENTS + at // unit
            else:
                whole = passed & (start == 0)
                part = (2 * p + tl.where(run == first, 0, 1)).to(tl.int64)
            made = (row * KV_HEADS + head) * GROUP * DIM + g[:, None] * DIM + d[None, :]
            tl.store(out + made, _mean(total, weight).to(out.dtype.element_ty), mask=within & whole)
            kept = (g < GROUP) & (whole == 0)
            tl.store(part_sum + part * GROUP * DIM + g[:, None] * DIM + d[None, :], total, mask=within & kept[:, None])
            tl.store(part_top + part * GROUP + g, top, mask=kept)
            tl.store(part_weight + part * GROUP + g, weight, mask=kept)


@triton.jit(do_not_specialize=["PROGRAMS"])
def merge_kernel(
    rows, lengths, starts, out, part_sum, part_top, part_weight, PROGRAMS,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr,
    PARTS: tl.constexpr, SEGMENTS: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    """Put one query head of one cut run together, ``PARTS`` parts at a time, in the order of its tokens.

    Program (p, g) is for the run that begins in program p of the plan and is cut by its end, if there is one; with
    ``SEGMENTS`` it is for run p.
    """
    p, g = tl.program_id(0), tl.program_id(1)
    if SEGMENTS:
        run = p
        length = tl.load(lengths + tl.load(rows + run // KV_HEADS)).to(tl.int32)
        unit = _segment(length, PAGE, LEAST, SEGMENTS)
        count = (length + unit - 1) // unit
        count = tl.where(count > 1, count, 0)
    else:
        run = tl.load(starts + p + 1)
        count = tl.load(starts + 2 * (PROGRAMS + 1) + p)
        late = tl.load(starts + p) < run
    if count == 0:
        return
    d, place = tl.arange(0, WIDTH), tl.arange(0, PARTS)
    top, weight = tl.full([1], float("-inf"), tl.float32), tl.zeros([1], tl.float32)
    total = tl.zeros([WIDTH], tl.float32)
    for at in range(0, count, PARTS):
        i = at + place
        if SEGMENTS:
            part = run.to(tl.int64) * SEGMENTS + i
        else:
            part = (2 * (p + i) + tl.where((i == 0) & late, 1, 0)).to(tl.int64)
        there = i < count
        tops = tl.load(part_top + part * GROUP + g, mask=there, other=float("-inf"))
        weights = tl.load(part_weight + part * GROUP + g, mask=there, other=0.0)
        sums = tl.load(
            part_sum + (part * GROUP + g)[:, None] * DIM + d[None, :],
            mask=there[:, None] & (d[None, :] < DIM), other=0.0,
        )  # fmt: skip
        higher = tl.maximum(top, tl.max(tops, 0))
        share, fade = tl.exp2(tops - higher), tl.exp2(top - higher)
        weight = weight * fade + tl.sum(weights * share, 0)
        total = total * fade + tl.sum(sums * share[:, None], 0)
        top = higher
    made = (run.to(tl.int64) * GROUP + g) * DIM
    tl.store(out + made + d, (total / weight).to(out.dtype.element_ty), mask=d < DIM)


@triton.jit(do_not_specialize=["table_stride"])
def unsplit_kernel(
    q, kv, rows, table, lengths, out, q_stride, page_stride, table_stride, scale,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    PAGE: tl.constexpr, TILE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One program for each request and KV head, however long it is: the step lasts as long as the longest."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(rows + row)
    length = tl.load(lengths + slot).to(tl.int32)
    g, d = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    within = (g[:, None] < GROUP) & (d[None, :] < DIM)
    place = (head * GROUP + g)[:, None] * DIM + d[None, :]
    queries = tl.load(q + row * q_stride + place, mask=within, other=0.0)
    keys = kv + head * (PAGE * DIM)
    total, _, weight = _attend(
        queries, keys, keys + KV_HEADS * PAGE * DIM, table + slot * table_stride,
        0, length, page_stride, scale * _LOG2E, DIM, PAGE, TILE, STAGES,
    )  # fmt: skip
    made = out + row * (KV_HEADS * GROUP * DIM) + place
    tl.store(made, _mean(total, weight).to(out.dtype.element_ty), mask=within & (length > 0))


@triton.jit
def rope_write_kernel(
    q, k, v, cos, sin, page, offset, q_out, kv, q_stride, k_stride, v_stride, page_stride,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    PAGE: tl.constexpr,
):  # fmt: skip
    """Turn a row's queries and key of one KV head by its position; write the queries, and key and value to their page.

    Page -1: the row is padding, nothing is written to a page.
    """
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    HALF: tl.constexpr = DIM // 2
    d = tl.arange(0, WIDTH)  # of one half
    half = d < HALF
    c = tl.load(cos + row * HALF + d, mask=half, other=0.0).to(tl.float32)
    s = tl.load(sin + row * HALF + d, mask=half, other=0.0).to(tl.float32)
    g = tl.arange(0, ROWS)
    within = (g[:, None] < GROUP) & half[None, :]
    place = (head * GROUP + g)[:, None] * DIM + d[None, :]
    one = tl.load(q + row * q_stride + place, mask=within, other=0.0).to(tl.float32)
    two = tl.load(q + row * q_stride + place + HALF, mask=within, other=0.0).to(tl.float32)
    into = q_out + row * (KV_HEADS * GROUP * DIM) + place
    tl.store(into, (one * c[None, :] - two * s[None, :]).to(q_out.dtype.element_ty), mask=within)
    tl.store(into + HALF, (two * c[None, :] + one * s[None, :]).to(q_out.dtype.element_ty), mask=within)
    where = tl.load(page + row)
    writes = half & (where >= 0)
    target = kv + where * page_stride + (head * PAGE + tl.load(offset + row)) * DIM + d
    source = k + row * k_stride + head * DIM + d
    one = tl.load(source, mask=half, other=0.0).to(tl.float32)
    two = tl.load(source + HALF, mask=half, other=0.0).to(tl.float32)
    tl.store(target, (one * c - two * s).to(kv.dtype.element_ty), mask=writes)
    tl.store(target + HALF, (two * c + one * s).to(kv.dtype.element_ty), mask=writes)
    source = v + row * v_stride + head * DIM + d
    value = target + KV_HEADS * PAGE * DIM
    tl.store(value, tl.load(source, mask=half, other=0.0), mask=writes)
    tl.store(value + HALF, tl.load(source + HALF, mask=half, other=0.0), mask=writes)


@triton.jit
def add_norm_kernel(x, more, weight, total, normed, eps, COUNT: tl.constexpr, WIDTH: tl.constexpr):
    """A row of ``x + more`` [rows, COUNT], and its root-mean-square norm times ``weight`` [COUNT]."""
    d = tl.arange(0, WIDTH)
    within = d < COUNT
    at = tl.program_id(0).to(tl.int64) * COUNT + d
    a = tl.load(x + at, mask=within, other=0.0).to(tl.float32)
    b = tl.load(more + at, mask=within, other=0.0).to(tl.float32)
    rounded = (a + b).to(total.dtype.element_ty)
    tl.store(total + at, rounded, mask=within)
    wide = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / COUNT + eps)
    w = tl.load(weight + d, mask=within, other=0.0).to(tl.float32)
    tl.store(normed + at, (wide * scale * w).to(normed.dtype.element_ty), mask=within)


@triton.jit
def gate_kernel(both, out, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """``silu(gate) * value`` of a piece of a row of gates and values [rows, 2 COUNT], to [rows, COUNT]."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    within = d < COUNT
    source = both + row * (2 * COUNT) + d
    gate = tl.load(source, mask=within, other=0.0).to(tl.float32)
    value = tl.load(source + COUNT, mask=within, other=0.0).to(tl.float32)
    tl.store(out + row * COUNT + d, (gate * tl.sigmoid(gate) * value).to(out.dtype.element_ty), mask=within)


@triton.jit(do_not_specialize=["count"])  # else one is compiled for each kind of number
def move_pages_kernel(
    source, source_ids, target, target_ids, count, source_stride, target_stride,
    WORDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Copy pages by number, all programs taking turns at pieces of ``BLOCK`` words. Page -1 of the target: skip."""
    pieces: tl.constexpr = (WORDS + BLOCK - 1) // BLOCK
    word = tl.arange(0, BLOCK)
    first = tl.program_id(0)
    for i in range(first, count * pieces, tl.num_programs(0)):
        at = (i - first) + first  # a tensor under the interpreter too
        which = at // pieces
        place = at % pieces * BLOCK + word
        read = tl.load(source_ids + which)
        written = tl.load(target_ids + which)
        mask = (place < WORDS) & (written >= 0)
        found = tl.load(source + read * source_stride + place, mask=mask)
        tl.store(target + written * target_stride + place, found, mask=mask)
