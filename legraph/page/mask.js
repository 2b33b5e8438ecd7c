"use strict";
// The mask: a canvas of pixels, a canvas of lines and names over it, and zooming between the whole and tokens.

const MARGIN_LEFT = 144;
const MARGIN_TOP = 112;
const MARGIN_END = 10;
// Cells of so many pixels have lines between them; one token is never drawn larger than the other.
const LEAST_LINED = 8;
const MOST_CELL = 48;
const MINIMAP = 84;

class MaskView {
  // `told` has what happens: hover(cell or null), hoverChunk(chunk or null), pick(chunk).
  constructor(root, graph, told) {
    Object.assign(this, { root, graph, told, attention: null, flags: null, cell: null });
    this.pixels = root.querySelector("#mask-pixels");
    this.lines = root.querySelector("#mask-lines");
    this.plotElement = root.querySelector("#mask-plot");
    this.minimap = root.querySelector("#minimap");
    this.transform = d3.zoomIdentity;
    this.zoom = d3.zoom().on("zoom", (event) => {
      this.transform = event.transform;
      this.redraw();
    });
    this.plotSelection = d3.select(this.plotElement);
    this.plotSelection.call(this.zoom).on("dblclick.zoom", null);
    this.listen();
    new ResizeObserver(() => this.resize()).observe(root);
  }

  listen() {
    this.root.addEventListener("pointermove", (event) => this.point(event));
    this.root.addEventListener("pointerleave", () => this.told.hover(null));
    this.root.addEventListener("click", (event) => {
      const { query, key } = this.tokensAt(event);
      const token = query ?? key;
      if (token !== null) this.told.pick(this.graph.chunkOf(token));
    });
    this.plotElement.addEventListener("dblclick", (event) => {
      const { query } = this.tokensAt(event);
      if (query !== null) this.showChunk(this.graph.chunkOf(query));
    });
    this.minimap.addEventListener("click", (event) => {
      event.stopPropagation();
      const box = this.minimap.getBoundingClientRect();
      const share = (at, from, size) => clamp((at - from) / size, 0, 1) * this.graph.numTokens;
      this.centre(share(event.clientX, box.left, box.width), share(event.clientY, box.top, box.height));
    });
  }

  resize() {
    const width = this.root.clientWidth;
    const height = this.root.clientHeight;
    if (width < MARGIN_LEFT + 60 || height < MARGIN_TOP + 60) return;
    this.plot = {
      left: MARGIN_LEFT,
      top: MARGIN_TOP,
      width: width - MARGIN_LEFT - MARGIN_END,
      height: height - MARGIN_TOP - MARGIN_END,
    };
    this.ratio = window.devicePixelRatio || 1;
    // Whole pixels, like the canvas: what is pointed at is what is drawn there.
    this.plotElement.style.width = `${this.plot.width}px`;
    this.plotElement.style.height = `${this.plot.height}px`;
    sizeCanvas(this.pixels, this.plot.width, this.plot.height, this.ratio);
    sizeCanvas(this.lines, width, height, this.ratio);
    this.setLimits();
    this.minimapImage = null;
    this.redraw();
  }

  // At zoom 1 all tokens fit.
  setLimits() {
    const { width, height } = this.plot;
    this.fit = Math.min(Math.min(width, height) / this.graph.numTokens, MOST_CELL);
    const most = Math.max(1, MOST_CELL / this.fit);
    // Some twenty notches of a wheel lead from the whole to a token, however many there are.
    const speed = clamp(Math.log2(most) / 2000, 0.002, 0.01);
    const lines = 25;
    this.zoom
      .extent([[0, 0], [width, height]])
      .translateExtent([[0, 0], [width, height]])
      .scaleExtent([1, most])
      .wheelDelta((event) => -event.deltaY * (event.deltaMode === 1 ? lines : 1) * speed);
  }

  seen(ratio = 1) {
    const { k, x, y } = this.transform;
    const { width, height } = this.plot;
    const size = (length) => Math.round(length * ratio);
    return new Window(size(width), size(height), this.fit * k * ratio, x * ratio, y * ratio);
  }

  // One drawing for all that happens between two frames.
  redraw() {
    this.isStale = true;
    this.redrawLines();
  }

  redrawLines() {
    if (!this.plot || this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = null;
      if (this.isStale) this.drawPixels();
      this.isStale = false;
      this.drawLines();
    });
  }

  drawPixels() {
    const context = this.pixels.getContext("2d");
    const seen = this.seen(this.ratio);
    context.putImageData(maskImage(this.graph, seen, this.colours.rgb, this.attention), 0, 0);
    this.drawGrid(context, seen);
    this.tell(this.seen());
  }

  // For who reads the page by script.
  tell(seen) {
    Object.assign(this.plotElement.dataset, { cell: seen.cell, x: seen.shiftX, y: seen.shiftY });
    if (!performance.getEntriesByName("mask-drawn").length) performance.mark("mask-drawn");
  }

  // Lines between chunks, and between tokens where they are large enough.
  drawGrid(context, seen) {
    context.fillStyle = this.colours.paper;
    const hasCells = seen.cell >= LEAST_LINED * this.ratio;
    if (hasCells) this.drawCellLines(context, seen);
    context.globalAlpha = hasCells ? 1 : 0.5;
    this.drawChunkLines(context, seen, hasCells ? 2 : 1);
    context.globalAlpha = 1;
  }

  drawChunkLines(context, seen, width) {
    const { graph } = this;
    const [right, bottom] = [seen.x(graph.numTokens), seen.y(graph.numTokens)];
    const draw = ([from, to], line) => {
      for (let chunk = from + 1; chunk < to; chunk++) {
        const isLarge = (at) => graph.length(at) * seen.cell >= LEAST_BRACKET * this.ratio;
        if (isLarge(chunk) || isLarge(chunk - 1)) line(graph.start(chunk));
      }
    };
    draw(seen.columns(graph), (token) => context.fillRect(Math.round(seen.x(token)), 0, width, bottom));
    draw(seen.rows(graph), (token) => context.fillRect(0, Math.round(seen.y(token)), right, width));
  }

  drawCellLines(context, seen) {
    const { graph } = this;
    const end = [Math.min(seen.width, seen.x(graph.numTokens)), Math.min(seen.height, seen.y(graph.numTokens))];
    const first = (shift) => clamp(Math.floor(-shift / seen.cell), 0, graph.numTokens);
    for (let token = first(seen.shiftX); seen.x(token) <= end[0]; token++)
      context.fillRect(Math.round(seen.x(token)), 0, 1, end[1]);
    for (let token = first(seen.shiftY); seen.y(token) <= end[1]; token++)
      context.fillRect(0, Math.round(seen.y(token)), end[0], 1);
  }

  drawLines() {
    const context = this.lines.getContext("2d");
    const seen = this.seen();
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.clearRect(0, 0, this.root.clientWidth, this.root.clientHeight);
    context.save();
    context.beginPath();
    context.rect(this.plot.left, this.plot.top, this.plot.width, this.plot.height);
    context.clip();
    context.translate(this.plot.left, this.plot.top);
    if (this.flags) this.drawBands(context, seen);
    if (this.cell) this.drawCell(context, seen);
    context.restore();
    new Axes(context, this.graph, this.plot, seen, this.colours).draw(this.flags);
    this.drawMinimap();
  }

  drawBands(context, seen) {
    const { graph, colours } = this;
    const [right, bottom] = [seen.x(graph.numTokens), seen.y(graph.numTokens)];
    const bands = this.focusRuns().map(([from, to]) => {
      const [start, end] = [graph.start(from), graph.end(to - 1)];
      return { x0: seen.x(start), x1: seen.x(end), y0: seen.y(start), y1: seen.y(end) };
    });
    const rows = bands.map(({ y0, y1 }) => atLeast(y0, y1, 2));
    const columns = bands.map(({ x0, x1 }) => atLeast(x0, x1, 2));
    if (this.isStrong) {
      context.fillStyle = colours.paper;
      context.globalAlpha = 0.62;
      for (const [top, height] of gaps(rows, Math.max(0, seen.shiftY), Math.min(bottom, seen.height)))
        for (const [left, width] of gaps(columns, Math.max(0, seen.shiftX), Math.min(right, seen.width)))
          context.fillRect(left, top, width, height);
      context.globalAlpha = 1;
    }
    context.strokeStyle = colours.highlight;
    context.lineWidth = 1.5;
    for (const [top, end] of rows) context.strokeRect(seen.shiftX - 2, top, right - seen.shiftX + 4, end - top);
    for (const [left, end] of columns) context.strokeRect(left, seen.shiftY - 2, end - left, bottom - seen.shiftY + 4);
  }

  focusRuns() {
    const runs = [];
    for (let chunk = 0; chunk < this.graph.numChunks; chunk++) {
      if (!(this.flags[chunk] & FOCUS)) continue;
      const last = runs[runs.length - 1];
      if (last && last[1] === chunk) last[1]++;
      else runs.push([chunk, chunk + 1]);
    }
    return runs;
  }

  drawCell(context, seen) {
    const size = Math.max(seen.cell, 3);
    const x = seen.x(this.cell.key) - (size - seen.cell) / 2;
    const y = seen.y(this.cell.query) - (size - seen.cell) / 2;
    context.fillStyle = this.colours.highlight;
    context.globalAlpha = 0.28;
    context.fillRect(0, y, x, size);
    context.fillRect(x, 0, size, y);
    context.globalAlpha = 1;
    context.strokeStyle = this.colours.ink;
    context.lineWidth = seen.cell >= LEAST_LINED ? 2 : 1;
    context.strokeRect(x, y, size, size);
  }

  drawMinimap() {
    const ratio = this.ratio;
    const context = this.minimap.getContext("2d");
    if (!this.minimapImage) {
      sizeCanvas(this.minimap, MINIMAP, MINIMAP, ratio);
      const size = Math.round(MINIMAP * ratio);
      const whole = new Window(size, size, size / this.graph.numTokens, 0, 0);
      this.minimapImage = maskImage(this.graph, whole, this.colours.rgb, this.attention);
    }
    context.putImageData(this.minimapImage, 0, 0);
    const seen = this.seen();
    const scale = (MINIMAP * ratio) / this.graph.numTokens / seen.cell;
    const clipped = (size) => Math.min(size * scale, MINIMAP * ratio);
    context.strokeStyle = this.colours.highlight;
    context.lineWidth = 2 * ratio;
    const [left, top] = [-seen.shiftX * scale, -seen.shiftY * scale];
    context.strokeRect(left, top, Math.max(3, clipped(seen.width)), Math.max(3, clipped(seen.height)));
  }

  // The tokens under the pointer; beside the plot only one of them. Null where there is none.
  tokensAt(event) {
    if (!this.plot) return { query: null, key: null };
    const box = this.plotElement.getBoundingClientRect();
    const seen = this.seen();
    const token = (at, shift, size) => {
      const found = Math.floor((at - shift) / seen.cell);
      return at >= 0 && at < size && found >= 0 && found < this.graph.numTokens ? found : null;
    };
    return {
      query: token(event.clientY - box.top, seen.shiftY, box.height),
      key: token(event.clientX - box.left, seen.shiftX, box.width),
    };
  }

  point(event) {
    const { query, key } = this.tokensAt(event);
    if (query !== null && key !== null) this.told.hover({ query, key });
    else if (query !== null || key !== null) this.told.hoverChunk(this.graph.chunkOf(query ?? key));
    else this.told.hover(null);
  }

  // Flags of chunks, whether all others step back, and the cell that is pointed at.
  show({ flags, isStrong, cell }) {
    Object.assign(this, { flags, isStrong, cell });
    this.redrawLines();
  }

  showAttention(attention) {
    this.attention = attention;
    this.minimapImage = null;
    this.redraw();
  }

  setColours(colours) {
    this.colours = colours;
    this.minimapImage = null;
    this.redraw();
  }

  zoomBy(factor) {
    this.zoom.scaleBy(this.moving(), factor);
  }

  reset() {
    this.zoom.transform(this.moving(), d3.zoomIdentity);
  }

  centre(keyToken, queryToken) {
    this.zoom.translateTo(this.plotSelection, keyToken * this.fit, queryToken * this.fit);
  }

  // The chunk's own square in the middle, with its surroundings.
  showChunk(chunk) {
    if (!this.plot) return;
    const { width, height } = this.plot;
    const length = this.graph.length(chunk);
    const cell = clamp(Math.min(width, height) / (length * 2), this.fit, Math.min(24, MOST_CELL));
    const k = Math.max(1, cell / this.fit);
    const middle = (this.graph.start(chunk) + length / 2) * this.fit;
    const at = d3.zoomIdentity.translate(width / 2, height / 2).scale(k).translate(-middle, -middle);
    this.zoom.transform(this.moving(), this.zoom.constrain()(at, [[0, 0], [width, height]], this.zoom.translateExtent()));
  }

  // Movement shows where things went; who asked for less of it gets none.
  moving() {
    const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
    return isStill ? this.plotSelection : this.plotSelection.transition().duration(250);
  }
}

function sizeCanvas(canvas, width, height, ratio) {
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
}

function atLeast(start, end, size) {
  const more = Math.max(0, size - (end - start)) / 2;
  return [start - more, end + more];
}

// What lies between ascending stretches, as [start, length], within [from, to].
function gaps(stretches, from, to) {
  const found = [];
  let at = from;
  for (const [start, end] of stretches) {
    if (start > at) found.push([at, Math.min(start, to) - at]);
    at = Math.max(at, end);
  }
  if (to > at) found.push([at, to - at]);
  return found.filter(([, length]) => length > 0);
}
