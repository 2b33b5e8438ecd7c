"""The Triton code of `intervalkernel`, which says what it does and how it is called.

Loads triton, so it is imported where a kernel is about to run, and only there.
"""

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]


@triton.jit
def _softmax_step(
    score_MN, v_NE, highest, total, out_ME, factor, MASKED: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """One block of keys more. `factor` makes scores exponents of two; with it, scale and subtraction are one
    fused operation for each score."""
    new_highest = tl.maximum(highest, tl.max(score_MN, 1) * factor)
    if MASKED:
        # A row that has seen nothing yet stays at zero instead of becoming infinity minus infinity.
        pivot = tl.where(new_highest == float("-inf"), 0.0, new_highest)
    else:
        pivot = new_highest
    weight_MN = tl.exp2(score_MN * factor - pivot[:, None])
    keep = tl.exp2(highest - pivot)
    total = total * keep + tl.sum(weight_MN, 1)
    out_ME = out_ME * keep[:, None]
    out_ME = tl.dot(weight_MN.to(v_NE.dtype), v_NE, out_ME, input_precision=PRECISION)
    return new_highest, total, out_ME


@triton.jit
def _scores(q_MD, k_ND, scale, softcap, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr):
    score_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision=PRECISION)
    if SOFTCAP:
        score_MN = softcap * (2.0 * tl.sigmoid(2.0 * score_MN * scale / softcap) - 1.0)
    return score_MN


# Numbers that differ from pass to pass, and that no code is to be compiled for.
@triton.jit(do_not_specialize=["num_queries", "num_partial"])
def intervals(
    q, k, v, tiles, ranges, listed, causal_starts, out, partial, log_sums, sinks,
    q_batch, q_head, q_token, k_batch, k_head, k_slot, v_batch, v_head, v_slot,
    scale, softcap, num_queries, num_partial,
    NUM_GROUPS: tl.constexpr, GROUP: tl.constexpr, M: tl.constexpr,
    D: tl.constexpr, D_POW: tl.constexpr, E: tl.constexpr, E_POW: tl.constexpr,
    BLOCK_N: tl.constexpr, PACKED: tl.constexpr,
    SOFTCAP: tl.constexpr, SINKS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile = tiles + tl.program_id(0) * 10
    batch = tl.program_id(1) // NUM_GROUPS
    group = tl.program_id(1) % NUM_GROUPS
    query, count, first_slot = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    whole_start, own_start = tl.load(tile + 3), tl.load(tile + 4)
    first_range, end_range = tl.load(tile + 5), tl.load(tile + 6)
    first_listed, end_listed, part = tl.load(tile + 7), tl.load(tile + 8), tl.load(tile + 9)
    m, n = tl.arange(0, M), tl.arange(0, BLOCK_N)
    d, e = tl.arange(0, D_POW), tl.arange(0, E_POW)
    offset = m // GROUP
    head = group * GROUP + m % GROUP
    is_row = offset < count
    token = query + offset
    q_at = q + batch.to(tl.int64) * q_batch + head[:, None].to(tl.int64) * q_head
    q_at = q_at + token[:, None].to(tl.int64) * q_token + d[None, :]
    q_MD = tl.load(q_at, mask=is_row[:, None] & (d[None, :] < D), other=0.0)
    limit_M = first_slot + offset
    low_M = limit_M
    if PACKED:
        low_M = tl.load(causal_starts + token, mask=is_row, other=0)
    k_base = k + batch.to(tl.int64) * k_batch + group.to(tl.int64) * k_head
    v_base = v + batch.to(tl.int64) * v_batch + group.to(tl.int64) * v_head
    factor = 1.4426950408889634
    if not SOFTCAP:
        factor = scale * 1.4426950408889634
    highest = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    out_ME = tl.zeros((M, E_POW), tl.float32)
    # What needs a mask comes first (the other way round, ptxas would serialize the matrix products): listed
    # keys, which every row sees, and the causal stretch's last ones.
    num_listed = end_listed - first_listed
    num_masked = num_listed + first_slot + count - own_start
    for masked_at in range(0, num_masked, BLOCK_N):
        i = masked_at + n
        is_listed = i < num_listed
        own = own_start + i - num_listed
        slot = tl.load(listed + first_listed + i, mask=is_listed, other=0)
        slot = tl.where(is_listed, slot, own)
        is_key = i < num_masked
        long_slot = slot.to(tl.int64)
        mk_at = k_base + long_slot[:, None] * k_slot + d[None, :]
        mv_at = v_base + long_slot[:, None] * v_slot + e[None, :]
        mk_ND = tl.load(mk_at, mask=is_key[:, None] & (d[None, :] < D), other=0.0)
        mv_NE = tl.load(mv_at, mask=is_key[:, None] & (e[None, :] < E), other=0.0)
        masked_MN = _scores(q_MD, mk_ND, scale, softcap, SOFTCAP, PRECISION)
        # One comparison tells all: `own` of a listed key lies below every limit, of what is no key above.
        seen = own[None, :] <= limit_M[:, None]
        if PACKED:
            seen = seen & (tl.where(is_listed, 2147483647, own)[None, :] >= low_M[:, None])
        masked_MN = tl.where(seen, masked_MN, float("-inf"))
        highest, total, out_ME = _softmax_step(
            masked_MN, mv_NE, highest, total, out_ME, factor, True, PRECISION
        )
    # Whole blocks, which every row sees: the ranges', then the causal stretch's.
    for r in range(first_range, end_range + 1):
        begin = tl.load(ranges + 2 * r, mask=r < end_range, other=whole_start)
        stop = tl.load(ranges + 2 * r + 1, mask=r < end_range, other=own_start)
        for at in range(begin, stop, BLOCK_N):
            key = (at + n).to(tl.int64)
            k_at = k_base + key[:, None] * k_slot + d[None, :]
            v_at = v_base + key[:, None] * v_slot + e[None, :]
            if D == D_POW and E == E_POW:
                k_ND, v_NE = tl.load(k_at), tl.load(v_at)
            else:
                k_ND = tl.load(k_at, mask=d[None, :] < D, other=0.0)
                v_NE = tl.load(v_at, mask=e[None, :] < E, other=0.0)
            score_MN = _scores(q_MD, k_ND, scale, softcap, SOFTCAP, PRECISION)
            highest, total, out_ME = _softmax_step(
                score_MN, v_NE, highest, total, out_ME, factor, False, PRECISION
            )
    is_out = is_row[:, None] & (e[None, :] < E)
    num_heads: tl.constexpr = NUM_GROUPS * GROUP
    if part >= 0:
        out_ME = out_ME / tl.where(total == 0.0, 1.0, total)[:, None]
        row_at = (batch * num_partial + part + offset).to(tl.int64) * num_heads + head
        log_sum = tl.log2(total) + tl.where(total == 0.0, 0.0, highest)
        tl.store(log_sums + row_at, log_sum, mask=is_row)
        tl.store(partial + row_at[:, None] * E + e[None, :], out_ME, mask=is_out)
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


@triton.jit(do_not_specialize=["num_queries", "num_partial"])
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
