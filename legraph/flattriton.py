"""The Triton code of `flatkernel`, which says what it does and how it is called.

Loads triton, so it is imported where a kernel is about to run, and only there.
"""

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]


@triton.jit
def rows_partial(
    q, k, v, rows, blocks, counts, partial, log_sums,
    q_head, q_token, k_head, k_slot, v_head, v_slot, row_stride, block_stride,
    scale, softcap, num_queries, num_slots,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, PER_TILE: tl.constexpr, M: tl.constexpr,
    D: tl.constexpr, D_POW: tl.constexpr, E: tl.constexpr, E_POW: tl.constexpr,
    BLOCK_N: tl.constexpr, STEP_N: tl.constexpr, SPLITS: tl.constexpr, SOFTCAP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    tile, group, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    m = tl.arange(0, M)
    token = tile * PER_TILE + m // GROUP
    head = group * GROUP + m % GROUP
    is_row = (m < PER_TILE * GROUP) & (token < num_queries)
    d, e, n = tl.arange(0, D_POW), tl.arange(0, E_POW), tl.arange(0, STEP_N)
    q_at = q + head[:, None] * q_head + token[:, None] * q_token + d[None, :]
    q_MD = tl.load(q_at, mask=is_row[:, None] & (d[None, :] < D), other=0.0)
    # A cache of many graphs may hold more numbers than an int32 can count.
    k_base, v_base = k + group.to(tl.int64) * k_head, v + group.to(tl.int64) * v_head
    highest = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    out_ME = tl.zeros((M, E_POW), tl.float32)
    count = tl.load(counts + tile)
    share = (count + SPLITS - 1) // SPLITS
    for i in range(split * share, tl.minimum((split + 1) * share, count)):
        first = tl.load(blocks + tile * block_stride + i) * BLOCK_N
        for part in tl.static_range(0, BLOCK_N, STEP_N):
            slot = (first + part + n).to(tl.int64)
            is_slot = slot < num_slots
            k_at = k_base + slot[:, None] * k_slot + d[None, :]
            k_ND = tl.load(k_at, mask=is_slot[:, None] & (d[None, :] < D), other=0.0)
            row_at = rows + token[:, None].to(tl.int64) * row_stride + slot[None, :]
            seen_MN = tl.load(row_at, mask=is_row[:, None] & is_slot[None, :], other=0) != 0
            score_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision=PRECISION) * scale
            if SOFTCAP:
                score_MN = softcap * (2.0 * tl.sigmoid(2.0 * score_MN / softcap) - 1.0)
            score_MN = tl.where(seen_MN, score_MN * 1.4426950408889634, float("-inf"))
            new_highest = tl.maximum(highest, tl.max(score_MN, 1))
            # A row that has seen nothing yet stays at zero instead of becoming infinity minus infinity.
            pivot = tl.where(new_highest == float("-inf"), 0.0, new_highest)
            weight_MN = tl.exp2(score_MN - pivot[:, None])
            keep = tl.exp2(highest - pivot)
            total = total * keep + tl.sum(weight_MN, 1)
            v_at = v_base + slot[:, None] * v_slot + e[None, :]
            v_NE = tl.load(v_at, mask=is_slot[:, None] & (e[None, :] < E), other=0.0)
            out_ME = out_ME * keep[:, None] + tl.dot(
                weight_MN.to(v_NE.dtype), v_NE, input_precision=PRECISION
            )
            highest = new_highest
    out_ME = out_ME / tl.where(total == 0.0, 1.0, total)[:, None]
    at = (split * num_queries + token) * NUM_HEADS + head
    tl.store(log_sums + at, tl.log2(total) + tl.where(total == 0.0, 0.0, highest), mask=is_row)
    tl.store(partial + at[:, None] * E + e[None, :], out_ME, mask=is_row[:, None] & (e[None, :] < E))


@triton.jit
def rows_combine(
    partial, log_sums, sinks, out, num_queries,
    NUM_HEADS: tl.constexpr, E: tl.constexpr, E_POW: tl.constexpr, SPLITS: tl.constexpr,
    SINKS: tl.constexpr,
):  # fmt: skip
    token, head = tl.program_id(0), tl.program_id(1)
    s, e = tl.arange(0, SPLITS), tl.arange(0, E_POW)
    at = (s * num_queries + token) * NUM_HEADS + head
    log_sum = tl.load(log_sums + at)
    highest = tl.max(log_sum, 0)
    # A key without a value: it only adds to the denominator.
    sink = float("-inf")
    if SINKS:
        sink = tl.load(sinks + head).to(tl.float32) * 1.4426950408889634
        highest = tl.maximum(highest, sink)
    weight = tl.exp2(log_sum - highest)
    total = tl.sum(weight, 0)
    if SINKS:
        total += tl.exp2(sink - highest)
    part_SE = tl.load(partial + at[:, None] * E + e[None, :], mask=e[None, :] < E, other=0.0)
    result = tl.sum(part_SE * weight[:, None], 0) / total
    tl.store(out + (token * NUM_HEADS + head) * E + e, result.to(out.dtype.element_ty), mask=e < E)
