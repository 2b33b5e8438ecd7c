"""The Triton code of `intervalkernel`, which says what it does and how it is called.

Loads triton, so it is imported where a kernel is about to run, and only there.
"""

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]


@triton.jit
def _interval_step(
    q_MD, k_base, v_base, k_slot, v_slot, begin, stop, limit_M, highest, total, out_ME, scale, softcap,
    D: tl.constexpr, D_POW: tl.constexpr, E: tl.constexpr, E_POW: tl.constexpr, BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of keys. MASKED: only keys before `stop` and up to each row's limit count."""
    d, e = tl.arange(0, D_POW), tl.arange(0, E_POW)
    slot = begin + tl.arange(0, BLOCK_N)
    k_at = k_base + slot[:, None].to(tl.int64) * k_slot + d[None, :]
    v_at = v_base + slot[:, None].to(tl.int64) * v_slot + e[None, :]
    if MASKED:
        k_ND = tl.load(k_at, mask=(slot[:, None] < stop) & (d[None, :] < D), other=0.0)
        v_NE = tl.load(v_at, mask=(slot[:, None] < stop) & (e[None, :] < E), other=0.0)
    elif D == D_POW and E == E_POW:
        k_ND, v_NE = tl.load(k_at), tl.load(v_at)
    else:
        k_ND = tl.load(k_at, mask=d[None, :] < D, other=0.0)
        v_NE = tl.load(v_at, mask=e[None, :] < E, other=0.0)
    score_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision=PRECISION)
    if SOFTCAP:
        score_MN = softcap * (2.0 * tl.sigmoid(2.0 * score_MN * scale / softcap) - 1.0)
        score_MN = score_MN * 1.4426950408889634
    else:
        score_MN = score_MN * (scale * 1.4426950408889634)
    if MASKED:
        seen = (slot[None, :] < stop) & (slot[None, :] <= limit_M[:, None])
        score_MN = tl.where(seen, score_MN, float("-inf"))
    new_highest = tl.maximum(highest, tl.max(score_MN, 1))
    if MASKED:
        # A row that has seen nothing yet stays at zero instead of becoming infinity minus infinity.
        pivot = tl.where(new_highest == float("-inf"), 0.0, new_highest)
    else:
        pivot = new_highest
    weight_MN = tl.exp2(score_MN - pivot[:, None])
    keep = tl.exp2(highest - pivot)
    total = total * keep + tl.sum(weight_MN, 1)
    out_ME = out_ME * keep[:, None]
    out_ME = tl.dot(weight_MN.to(v_NE.dtype), v_NE, out_ME, input_precision=PRECISION)
    return new_highest, total, out_ME


@triton.jit
def intervals(
    q, k, v, tiles, ranges, out, partial, log_sums, sinks,
    q_batch, q_head, q_token, k_batch, k_head, k_slot, v_batch, v_head, v_slot,
    scale, softcap, num_queries, num_partial,
    NUM_GROUPS: tl.constexpr, GROUP: tl.constexpr, M: tl.constexpr,
    D: tl.constexpr, D_POW: tl.constexpr, E: tl.constexpr, E_POW: tl.constexpr,
    BLOCK_N: tl.constexpr, SOFTCAP: tl.constexpr, SINKS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile = tiles + tl.program_id(0) * 8
    batch = tl.program_id(1) // NUM_GROUPS
    group = tl.program_id(1) % NUM_GROUPS
    query, count, first_slot = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    causal, first_range, end_range = tl.load(tile + 3), tl.load(tile + 4), tl.load(tile + 5)
    has_causal, part = tl.load(tile + 6), tl.load(tile + 7)
    m = tl.arange(0, M)
    d, e = tl.arange(0, D_POW), tl.arange(0, E_POW)
    offset = m // GROUP
    head = group * GROUP + m % GROUP
    is_row = offset < count
    token = query + offset
    q_at = q + batch * q_batch + head[:, None] * q_head + token[:, None].to(tl.int64) * q_token + d[None, :]
    q_MD = tl.load(q_at, mask=is_row[:, None] & (d[None, :] < D), other=0.0)
    k_base = k + batch.to(tl.int64) * k_batch + group * k_head
    v_base = v + batch.to(tl.int64) * v_batch + group * v_head
    highest = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    out_ME = tl.zeros((M, E_POW), tl.float32)
    no_limit = tl.full((M,), 2147483647, tl.int32)
    for r in range(first_range, end_range):
        begin, stop = tl.load(ranges + 2 * r), tl.load(ranges + 2 * r + 1)
        whole = begin + (stop - begin) // BLOCK_N * BLOCK_N
        for at in range(begin, whole, BLOCK_N):
            highest, total, out_ME = _interval_step(
                q_MD, k_base, v_base, k_slot, v_slot, at, stop, no_limit, highest, total, out_ME, scale,
                softcap, D, D_POW, E, E_POW, BLOCK_N, False, SOFTCAP, PRECISION,
            )  # fmt: skip
        if whole < stop:
            highest, total, out_ME = _interval_step(
                q_MD, k_base, v_base, k_slot, v_slot, whole, stop, no_limit, highest, total, out_ME,
                scale, softcap, D, D_POW, E, E_POW, BLOCK_N, True, SOFTCAP, PRECISION,
            )  # fmt: skip
    if has_causal != 0:
        limit_M = first_slot + offset
        # Keys up to the first query are seen by every row.
        whole = causal + (first_slot + 1 - causal) // BLOCK_N * BLOCK_N
        for at in range(causal, whole, BLOCK_N):
            highest, total, out_ME = _interval_step(
                q_MD, k_base, v_base, k_slot, v_slot, at, whole, no_limit, highest, total, out_ME, scale,
                softcap, D, D_POW, E, E_POW, BLOCK_N, False, SOFTCAP, PRECISION,
            )  # fmt: skip
        stop = first_slot + count
        for at in range(whole, stop, BLOCK_N):
            highest, total, out_ME = _interval_step(
                q_MD, k_base, v_base, k_slot, v_slot, at, stop, limit_M, highest, total, out_ME, scale,
                softcap, D, D_POW, E, E_POW, BLOCK_N, True, SOFTCAP, PRECISION,
            )  # fmt: skip
    is_out = is_row[:, None] & (e[None, :] < E)
    num_heads: tl.constexpr = NUM_GROUPS * GROUP
    if part >= 0:
        out_ME = out_ME / tl.where(total == 0.0, 1.0, total)[:, None]
        row_at = (batch * num_partial + part + offset) * num_heads + head
        log_sum = tl.log2(total) + tl.where(total == 0.0, 0.0, highest)
        tl.store(log_sums + row_at, log_sum, mask=is_row)
        tl.store(partial + row_at[:, None].to(tl.int64) * E + e[None, :], out_ME, mask=is_out)
    else:
        if SINKS:
            sink = tl.load(sinks + head).to(tl.float32) * 1.4426950408889634
            top = tl.maximum(highest, sink)
            scaled = tl.exp2(highest - top)
            out_ME = out_ME * (scaled / (total * scaled + tl.exp2(sink - top)))[:, None]
        else:
            out_ME = out_ME / total[:, None]
        out_at = (batch.to(tl.int64) * num_queries + token) * num_heads + head
        tl.store(out + out_at[:, None] * E + e[None, :], out_ME.to(out.dtype.element_ty), mask=is_out)


@triton.jit
def intervals_join(
    partial, log_sums, sinks, joins, out, num_queries, num_partial,
    NUM_HEADS: tl.constexpr, E: tl.constexpr, E_POW: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    join = joins + tl.program_id(0) * 4
    head, batch = tl.program_id(1), tl.program_id(2)
    token, first, parts, stride = tl.load(join), tl.load(join + 1), tl.load(join + 2), tl.load(join + 3)
    e = tl.arange(0, E_POW)
    highest = float("-inf")
    total = 0.0
    if SINKS:
        highest = tl.load(sinks + head).to(tl.float32) * 1.4426950408889634
        total = 1.0
    out_E = tl.zeros((E_POW,), tl.float32)
    for i in range(parts):
        at = (batch * num_partial + first + i * stride).to(tl.int64) * NUM_HEADS + head
        log_sum = tl.load(log_sums + at)
        new_highest = tl.maximum(highest, log_sum)
        pivot = tl.where(new_highest == float("-inf"), 0.0, new_highest)
        weight, keep = tl.exp2(log_sum - pivot), tl.exp2(highest - pivot)
        out_E = out_E * keep + weight * tl.load(partial + at * E + e, mask=e < E, other=0.0)
        total = total * keep + weight
        highest = new_highest
    at = (batch.to(tl.int64) * num_queries + token) * NUM_HEADS + head
    tl.store(out + at * E + e, (out_E / total).to(out.dtype.element_ty), mask=e < E)
