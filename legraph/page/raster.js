"use strict";
// The mask as pixels: how much of each pixel is visible, exactly, at every zoom.
//
// A rectangle covers a pixel by (part of its column) x (part of its row). Either factor is a sum of two steps,
// and the difference of a step from pixel to pixel is not zero at two places only. So a rectangle is sixteen
// additions, whatever its size, and one running sum over the picture adds all of them up: a million edges take
// no longer than a few screens.

class Coverage {
  constructor(width, height) {
    this.width = width;
    this.height = height;
    this.stride = width + 2;
    this.sums = new Float64Array(this.stride * (height + 2));
  }

  add(left, right, top, bottom, weight) {
    const x0 = clamp(left, 0, this.width);
    const x1 = clamp(right, 0, this.width);
    const y0 = clamp(top, 0, this.height);
    const y1 = clamp(bottom, 0, this.height);
    if (x0 >= x1 || y0 >= y1 || weight === 0) return;
    this.addRow(y0, x0, x1, weight);
    this.addRow(y1, x0, x1, -weight);
  }

  addRow(y, x0, x1, weight) {
    const row = Math.floor(y);
    const part = y - row;
    const at = row * this.stride;
    this.addSteps(at, x0, x1, weight * (1 - part));
    if (part > 0) this.addSteps(at + this.stride, x0, x1, weight * part);
  }

  addSteps(at, x0, x1, weight) {
    const { sums } = this;
    const i0 = Math.floor(x0);
    const i1 = Math.floor(x1);
    sums[at + i0] += weight * (1 - (x0 - i0));
    sums[at + i0 + 1] += weight * (x0 - i0);
    sums[at + i1] -= weight * (1 - (x1 - i1));
    sums[at + i1 + 1] -= weight * (x1 - i1);
  }

  // Differences become values: along each row, then down the columns.
  finish() {
    const { sums, stride } = this;
    for (let row = 0; row < this.height; row++) {
      const at = row * stride;
      let along = 0;
      for (let i = at; i < at + stride; i++) {
        along += sums[i];
        sums[i] = row === 0 ? along : along + sums[i - stride];
      }
    }
    return this;
  }
}

// What is seen of the mask: pixel = token * cell + shift, in both directions.
class Window {
  constructor(width, height, cell, shiftX, shiftY) {
    Object.assign(this, { width, height, cell, shiftX, shiftY });
  }

  x(token) {
    return token * this.cell + this.shiftX;
  }

  y(token) {
    return token * this.cell + this.shiftY;
  }

  // First and last chunk of which anything is seen, as [from, to).
  chunks(graph, size, shift) {
    const first = clamp(Math.floor(-shift / this.cell), 0, graph.numTokens - 1);
    const last = clamp(Math.ceil((size - shift) / this.cell) - 1, 0, graph.numTokens - 1);
    return [graph.chunkOf(first), graph.chunkOf(last) + 1];
  }

  rows(graph) {
    return this.chunks(graph, this.height, this.shiftY);
  }

  columns(graph) {
    return this.chunks(graph, this.width, this.shiftX);
  }
}

// Two pictures: [a chunk's own tokens, its parents], or with attention [visible, visible x shade].
function maskCoverage(graph, seen, attention) {
  const pictures = [new Coverage(seen.width, seen.height), new Coverage(seen.width, seen.height)];
  if (attention && attention.ofTokens) addCells(pictures, graph, seen, attention);
  else addChunks(pictures, graph, seen, attention);
  return pictures.map((picture) => picture.finish());
}

function addChunks(pictures, graph, seen, attention) {
  const [fromRow, toRow] = seen.rows(graph);
  const columns = seen.columns(graph);
  for (let chunk = fromRow; chunk < toRow; chunk++) {
    addTriangle(pictures, graph, seen, chunk, attention ? attention.shade(attention.own(chunk)) : null);
    addParents(pictures, graph, seen, chunk, columns, attention);
  }
}

// Graphs with the attention of tokens are small.
function addCells([visible, shaded], graph, seen, attention) {
  for (let query = 0; query < graph.numTokens; query++) {
    for (let key = 0; key <= query; key++) {
      if (!graph.isVisible(query, key)) continue;
      const place = [seen.x(key), seen.x(key + 1), seen.y(query), seen.y(query + 1)];
      visible.add(...place, 1);
      shaded.add(...place, attention.shade(attention.ofToken(query, key)));
    }
  }
}

function addParents([own, other], graph, seen, chunk, [fromColumn, toColumn], attention) {
  const top = seen.y(graph.start(chunk));
  const bottom = seen.y(graph.end(chunk));
  const first = graph.runOffsets[chunk];
  const end = graph.runOffsets[chunk + 1];
  // The run before the first visible column may reach into it.
  const from = Math.max(first, lastNotAbove(graph.runStarts, fromColumn, first, end));
  for (let run = from; run < end && graph.runStarts[run] < toColumn; run++) {
    const left = Math.max(graph.runStarts[run], fromColumn);
    const right = Math.min(graph.runEnds[run], toColumn);
    if (left >= right) continue;
    const [x0, x1] = [seen.x(graph.start(left)), seen.x(graph.end(right - 1))];
    if (!attention) {
      other.add(x0, x1, top, bottom, 1);
      continue;
    }
    own.add(x0, x1, top, bottom, 1);
    const pair = attention.ofRun(chunk, run) - graph.runStarts[run];
    for (let parent = left; parent < right; parent++)
      other.add(
        seen.x(graph.start(parent)),
        seen.x(graph.end(parent)),
        top,
        bottom,
        attention.shade(attention.mass[pair + parent]),
      );
  }
}

// Row of pixels by row of pixels, or token by token where a token is more than a pixel.
function addTriangle([own, other], graph, seen, chunk, shade) {
  const [start, end] = [graph.start(chunk), graph.end(chunk)];
  const step = Math.max(1, 1 / seen.cell);
  const first = Math.max(start, start + Math.floor((-seen.shiftY / seen.cell - start) / step) * step);
  const left = seen.x(start);
  for (let q = first; q < end; q += step) {
    const next = Math.min(q + step, end);
    const [top, bottom] = [seen.y(q), seen.y(next)];
    if (top > seen.height) break;
    // A row of pixels crosses the diagonal: on average a token sees half of what it passes.
    const isCell = seen.cell >= 1;
    const strips = isCell ? [[left, seen.x(next), 1]] : [[left, seen.x(q), 1], [seen.x(q), seen.x(next), 0.5]];
    for (const [x0, x1, weight] of strips) {
      own.add(x0, x1, top, bottom, weight);
      if (shade !== null) other.add(x0, x1, top, bottom, weight * shade);
    }
  }
}

// The pixels of the mask; what lies beyond the last token stays transparent.
function maskImage(graph, seen, colours, attention) {
  const image = new ImageData(seen.width, seen.height);
  const [first, second] = maskCoverage(graph, seen, attention);
  const right = Math.min(seen.width, Math.round(seen.x(graph.numTokens)));
  const bottom = Math.min(seen.height, Math.round(seen.y(graph.numTokens)));
  const pixels = new Uint32Array(image.data.buffer);
  // A pixel is nearly always of one colour; the few others are borders, or many tokens.
  const mix = (attention ? attentionMixer : maskMixer)(colours, seen.cell < 0.5);
  for (let y = Math.max(0, Math.round(seen.shiftY)); y < bottom; y++) {
    for (let x = Math.max(0, Math.round(seen.shiftX)); x < right; x++) {
      const at = y * first.stride + x;
      pixels[y * seen.width + x] = mix(first.sums[at], second.sums[at]);
    }
  }
  return image;
}

// What is thinner than a pixel would fade away: a chunk of ten among a hundred thousand tokens is to be seen.
const THIN = 0.4;
// Sums of many steps are not exact; a pixel with less is empty.
const NOTHING = 2e-5;

function visibleShare(coverage) {
  return coverage > 0 ? Math.min(1, coverage ** THIN) : 0;
}

function maskMixer({ masked, own, parent }, isThin) {
  const [none, allOwn, allParent] = [masked, own, parent].map((colour) => packedColour(...colour));
  return (ofOwn, ofParent) => {
    if (ofParent > 0.998) return allParent;
    if (ofOwn > 0.998) return allOwn;
    if (ofOwn < NOTHING && ofParent < NOTHING) return none;
    const together = Math.max(NOTHING, ofOwn + ofParent);
    const shown = isThin ? visibleShare(together) : Math.min(1, together);
    const share = ofOwn / together;
    const mixed = (i) => masked[i] + (parent[i] + (own[i] - parent[i]) * share - masked[i]) * shown;
    return packedColour(mixed(0), mixed(1), mixed(2));
  };
}

function attentionMixer({ masked, scale }, isThin) {
  const steps = Array.from({ length: 256 }, (_, step) => scaleColour(scale, step / 255));
  const none = packedColour(...masked);
  return (visible, shade) => {
    if (visible < NOTHING) return none;
    const colour = steps[Math.round(255 * clamp(shade / visible, 0, 1))];
    const shown = isThin ? visibleShare(visible) : Math.min(1, visible);
    const mixed = (i) => masked[i] + (colour[i] - masked[i]) * shown;
    return packedColour(mixed(0), mixed(1), mixed(2));
  };
}

function scaleColour(scale, share) {
  const place = clamp(share, 0, 1) * (scale.length - 1);
  const low = Math.min(Math.floor(place), scale.length - 2);
  return scale[low].map((value, i) => value + (scale[low + 1][i] - value) * (place - low));
}

// Little-endian, as canvases on all of today's machines are: red first.
function packedColour(red, green, blue) {
  return (255 << 24) | (byteOf(blue) << 16) | (byteOf(green) << 8) | byteOf(red);
}

function byteOf(value) {
  return Math.round(clamp(value, 0, 255));
}

function colourOf(text) {
  return [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
}
