"use strict";
// What stands beside the mask: brackets with the names of chunks, texts of tokens, marks of what is lit.

// Narrower brackets than this, in pixels, are shared by neighbours; tokens of so many pixels show their text.
const LEAST_BRACKET = 13;
const LEAST_TOKEN = 11;
const TOKEN_STRIP = 62;
const MARK = 4;

// Groups of chunks [from, to) that share a bracket: neighbours that are small and named alike. What is small
// all the same is put together with its neighbours, and has no name then.
function brackets(graph, [from, to], cell) {
  const size = (group) => (graph.end(group.to - 1) - graph.start(group.from)) * cell;
  const isSmall = (group) => size(group) < LEAST_BRACKET;
  const found = [];
  let stem = null;
  for (let chunk = from; chunk < to; chunk++) {
    const last = found[found.length - 1];
    const ownStem = graph.length(chunk) * cell < LEAST_BRACKET ? stemOf(graph.names[chunk]) : null;
    if (last && ownStem !== null && ownStem === stem) last.to = chunk + 1;
    else found.push({ from: chunk, to: chunk + 1 });
    stem = ownStem;
  }
  return found.reduce((kept, group) => {
    const last = kept[kept.length - 1];
    if (last && last.isRest && isSmall(group)) last.to = group.to;
    else kept.push({ ...group, isRest: isSmall(group) });
    return kept;
  }, []);
}

function stemOf(name) {
  return name.replace(/\d+$/, "");
}

function bracketLabel(graph, { from, to }) {
  const [first, last] = [graph.names[from], graph.names[to - 1]];
  return to - from === 1 ? first : `${foldedNames(first, last)} ×${number(to - from)}`;
}

// doc0 and doc499 are doc0…499.
function foldedNames(first, last) {
  const stem = stemOf(first);
  const rest = last.slice(stem.length);
  return last.startsWith(stem) && /^\d+$/.test(rest) ? `${first}…${rest}` : `${first}…${last}`;
}

class Axes {
  constructor(context, graph, plot, seen, colours) {
    Object.assign(this, { context, graph, plot, seen, colours });
    this.showsTokens = seen.cell >= LEAST_TOKEN;
    this.strip = (this.showsTokens ? TOKEN_STRIP : 0) + MARK + 3;
  }

  draw(flags) {
    this.drawRows(flags);
    this.drawColumns(flags);
  }

  drawRows(flags) {
    const { context, plot, seen, graph } = this;
    const rows = seen.rows(graph);
    const at = (token) => clamp(plot.top + seen.y(token), plot.top, plot.top + plot.height);
    const edge = plot.left - this.strip;
    for (const bracket of brackets(graph, rows, seen.cell)) {
      const [a, b] = [at(graph.start(bracket.from)), at(graph.end(bracket.to - 1))];
      this.bracket(edge, a + 0.5, edge, b - 0.5, -4, 0);
      if (b - a >= LEAST_BRACKET - 1) this.text(bracket, edge - 9, (a + b) / 2, edge - 14, 0, flags);
    }
    if (this.showsTokens)
      this.tokens(at, plot.top, plot.height, (token, middle) => this.token(token, plot.left - MARK - 4, middle, 0));
    this.marks(rows, at, flags, FOCUS | CHILD, (a, b) => context.fillRect(plot.left - MARK - 1, a, MARK, b - a));
  }

  drawColumns(flags) {
    const { context, plot, seen, graph } = this;
    const columns = seen.columns(graph);
    const at = (token) => clamp(plot.left + seen.x(token), plot.left, plot.left + plot.width);
    const edge = plot.top - this.strip;
    for (const bracket of brackets(graph, columns, seen.cell)) {
      const [a, b] = [at(graph.start(bracket.from)), at(graph.end(bracket.to - 1))];
      this.bracket(a + 0.5, edge, b - 0.5, edge, 0, -4);
      this.columnText(bracket, a, b, edge, flags);
    }
    if (this.showsTokens)
      this.tokens(at, plot.left, plot.width, (token, middle) => this.token(token, middle, plot.top - MARK - 4, 1));
    this.marks(columns, at, flags, FOCUS | PARENT, (a, b) => context.fillRect(a, plot.top - MARK - 1, b - a, MARK));
  }

  columnText(bracket, a, b, edge, flags) {
    const { context } = this;
    context.font = LABEL_FONT;
    const label = bracketLabel(this.graph, bracket);
    if (context.measureText(label).width <= b - a - 6) this.text(bracket, (a + b) / 2, edge - 12, b - a, 2, flags);
    else if (b - a >= LEAST_BRACKET - 1) this.text(bracket, (a + b) / 2, edge - 9, edge - 14, 1, flags);
  }

  bracket(x0, y0, x1, y1, inX, inY) {
    const { context } = this;
    context.strokeStyle = this.colours.bracket;
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(x0, y0);
    context.lineTo(x0 + inX, y0 + inY);
    context.lineTo(x1 + inX, y1 + inY);
    context.lineTo(x1, y1);
    context.stroke();
  }

  // Direction 0: ends at the place; 1: the same, turned upwards; 2: centred.
  text(bracket, x, y, width, direction, flags) {
    const { context, colours } = this;
    const isFocus = flags && bracket.to - bracket.from === 1 && flags[bracket.from] & FOCUS;
    context.font = isFocus ? `bold ${LABEL_FONT}` : LABEL_FONT;
    context.fillStyle = isFocus ? colours.ink : colours.bracket;
    this.write(fitted(context, bracketLabel(this.graph, bracket), width), x, y, direction);
  }

  token(token, x, y, direction) {
    const { context, colours, graph } = this;
    context.font = TOKEN_FONT;
    context.fillStyle = graph.generatedAt(token) >= 0 ? colours.generate : colours.ink;
    this.write(fitted(context, tokenLabel(graph, token), TOKEN_STRIP - 6), x, y, direction);
  }

  write(text, x, y, direction) {
    const { context } = this;
    context.save();
    context.translate(x, y);
    context.direction = "ltr";
    context.textBaseline = "middle";
    context.textAlign = ["right", "left", "center"][direction];
    if (direction === 1) context.rotate(-Math.PI / 2);
    context.fillText(text, 0, 0);
    context.restore();
  }

  tokens(at, from, size, draw) {
    const { seen, graph } = this;
    const shift = from === this.plot.top ? seen.shiftY : seen.shiftX;
    const first = clamp(Math.floor(-shift / seen.cell), 0, graph.numTokens - 1);
    for (let token = first; token < graph.numTokens; token++) {
      const middle = from + (token + 0.5) * seen.cell + shift;
      if (middle > from + size) break;
      if (middle > from) draw(token, middle);
    }
  }

  marks([from, to], at, flags, wanted, fill) {
    const { context, graph, colours } = this;
    for (let chunk = from; chunk < to; chunk++) {
      const output = graph.outputOf.get(chunk);
      if (output) {
        context.fillStyle = colours.generate;
        const [a, b] = [at(graph.end(chunk) - output.tokens), at(graph.end(chunk))];
        fill(a, Math.max(b, a + 1));
      }
      const lit = flags ? flags[chunk] & wanted : 0;
      if (!lit) continue;
      context.fillStyle = lit & FOCUS ? colours.highlight : lit & PARENT ? colours.parent : colours.child;
      const [a, b] = [at(graph.start(chunk)), at(graph.end(chunk))];
      fill(a, Math.max(b, a + 1));
    }
  }
}

const LABEL_FONT = "11px system-ui, sans-serif";
const TOKEN_FONT = "11px ui-monospace, monospace";

function fitted(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  const each = context.measureText(text).width / Array.from(text).length;
  return shortened(text, Math.max(2, Math.floor(width / each)));
}
