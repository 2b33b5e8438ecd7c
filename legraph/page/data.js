"use strict";
// Reading what pagedata.py packed, and looking things up in sorted arrays.

const ARRAYS = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, f4: Float32Array };

function unpacked(packed) {
  const raw = atob(packed.data);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return new ARRAYS[packed.type](bytes.buffer);
}

// [0, a, a + b, ...]: one more than there are lengths.
function offsetsOf(lengths) {
  const offsets = new Uint32Array(lengths.length + 1);
  for (let i = 0; i < lengths.length; i++) offsets[i + 1] = offsets[i] + lengths[i];
  return offsets;
}

// The last index in [from, to) whose value is not greater; from - 1 if there is none.
function lastNotAbove(sorted, value, from = 0, to = sorted.length) {
  let low = from;
  let high = to;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= value) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

function clamp(value, least, most) {
  return Math.max(least, Math.min(most, value));
}
