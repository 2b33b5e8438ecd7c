"use strict";
// The panel: what is known of the selected chunk, or of the whole graph when nothing is selected.

const MOST_LINKS = 20;
const MOST_TOKENS = 1500;
// Why a chunk generated no further, by what a run calls it.
const ENDINGS = new Map([
  ["end", ", to the end token"],
  ["stop", ", to a stop string"],
  ["length", ", to the limit"],
  ["cancelled", ", cancelled"],
]);

class Panel {
  // `pick(chunk)` is called by links; `point(token or null)` when the pointer is over a token.
  constructor(root, graph, attention, { pick, point }) {
    Object.assign(this, { root, graph, attention, pick, point });
  }

  showGraph() {
    const { totals, cost } = this.graph.data;
    this.root.replaceChildren(
      element("h2", {}, "Graph"),
      facts([
        ["tokens", number(totals.num_tokens)],
        ["chunks", `${number(totals.num_chunks)}, ${totals.num_leaves === 1 ? "1 leaf" : `${number(totals.num_leaves)} leaves`}`],
        ["edges", number(totals.num_edges)],
        ["positions", totals.positions],
        ["tokenizer", totals.tokenizer],
        ["visible pairs", `${number(totals.visible_pairs)} of ${number(totals.causal_pairs)} causal (${percent(totals.density)})`],
        [
          "blocks",
          `${number(totals.blocks.active)} active of ${number(totals.blocks.all)} (${totals.blocks.block_size} × ` +
            `${totals.blocks.block_size}), ${number(totals.blocks.full)} full`,
        ],
        ["arithmetic", `${percent(totals.arithmetic)} of full causal attention`],
      ]),
      ...this.branches(),
      ...cost.map(costTable),
      this.graph.texts ? "" : element("p", { class: "note" }, "The tokenizer is not to be had here: tokens are shown by their ids."),
    );
    this.root.scrollTop = 0;
  }

  branches() {
    const { outputs } = this.graph;
    if (!outputs.length) return [];
    const items = outputs.map((output) =>
      element(
        "li",
        {},
        this.link(output.chunk),
        element("span", { class: "muted" }, ` ${count(output.tokens, "token")}${ENDINGS.get(output.finish) ?? ""}`),
        element("p", { class: "generated", dir: "auto" }, withHiddenShown(output.text)),
      ),
    );
    return [element("h3", {}, "Generated"), element("ul", { class: "branches" }, ...items)];
  }

  showNode(node) {
    const { label, tokens } = this.graph.data.dag.nodes[node];
    const chunks = this.graph.chunksOfNode[node];
    this.root.replaceChildren(
      element("h2", {}, label),
      facts([["chunks", number(chunks.length)], ["tokens", number(tokens)]]),
      element("h3", {}, "Chunks"),
      this.links(chunks, chunks.length),
    );
    this.root.scrollTop = 0;
  }

  showChunk(chunk) {
    const { graph } = this;
    const [start, end] = [graph.start(chunk), graph.end(chunk)];
    const how = graph.generate.get(chunk);
    const children = [...graph.children(chunk)];
    this.root.replaceChildren(
      element("h2", {}, graph.names[chunk]),
      facts([
        ["tokens", `${number(end - start)}, at ${number(start)}..${number(end - 1)}`],
        ["positions", `${number(graph.position(start))}..${number(graph.position(end - 1))}`],
        ...(how ? [["generates", settings(how)]] : []),
        ...this.outputFacts(chunk),
      ]),
      ...this.attentionOf(chunk),
      element("h3", {}, `Parents (${number(graph.numParents(chunk))})`),
      this.links(graph.parents(chunk), graph.numParents(chunk)),
      element("h3", {}, `Children (${number(children.length)})`),
      this.links(children, children.length),
      element("h3", {}, "Text"),
      this.text(chunk),
    );
    this.root.scrollTop = 0;
  }

  outputFacts(chunk) {
    const output = this.graph.outputOf.get(chunk);
    if (!output) return [];
    const found = [["generated", `${count(output.tokens, "token")}${ENDINGS.get(output.finish) ?? ""}`]];
    if (output.logProbs && output.logProbs.length) {
      const sum = output.logProbs.reduce((total, one) => total + one, 0);
      const mean = percent(Math.exp(sum / output.logProbs.length));
      found.push(["log-probability", `${Number(sum.toPrecision(3))}, ${mean} a token (geometric mean)`]);
    }
    return found;
  }

  // Where the chunk's attention goes, the most first.
  attentionOf(chunk) {
    const { attention, graph } = this;
    if (!attention) return [];
    const pairs = [[chunk, attention.own(chunk)]];
    for (const parent of graph.parents(chunk)) pairs.push([parent, attention.between(chunk, parent)]);
    pairs.sort(([, a], [, b]) => b - a);
    const rows = pairs.slice(0, MOST_LINKS).map(([other, mass]) => this.bar(this.link(other), mass));
    if (attention.sinks) rows.push(this.bar(element("span", { class: "muted" }, "attention sinks"), attention.sinks[chunk]));
    if (pairs.length > MOST_LINKS) rows.push(element("p", { class: "note" }, `and ${number(pairs.length - MOST_LINKS)} more`));
    return [element("h3", {}, "Looks at"), element("div", { class: "bars" }, ...rows)];
  }

  bar(label, mass) {
    const meter = element("span", { class: "bar" });
    meter.style.setProperty("--share", mass.toFixed(4));
    return element("div", { class: "bar-row" }, label, meter, element("span", { class: "mass" }, percent(mass)));
  }

  link(chunk) {
    return element("button", { type: "button", class: "link", onclick: () => this.pick(chunk) }, this.graph.names[chunk]);
  }

  links(chunks, size) {
    if (!size) return element("p", { class: "note" }, "none");
    const made = element("p", { class: "links" });
    for (const chunk of chunks) {
      if (made.children.length === MOST_LINKS) {
        made.append(element("span", { class: "muted" }, `and ${number(size - MOST_LINKS)} more`));
        break;
      }
      made.append(this.link(chunk));
    }
    return made;
  }

  text(chunk) {
    const made = element("div", { class: "text", dir: "ltr" });
    this.appendTokens(made, this.graph.start(chunk), this.graph.end(chunk));
    return made;
  }

  appendTokens(made, from, end) {
    const to = Math.min(end, from + MOST_TOKENS);
    for (let token = from; token < to; token++) made.append(this.token(token));
    if (to === end) return;
    const more = element("button", { type: "button", class: "more" }, `${number(end - to)} more tokens`);
    more.addEventListener("click", () => {
      more.remove();
      this.appendTokens(made, to, end);
    });
    made.append(more);
  }

  token(token) {
    const { graph } = this;
    const generatedAt = graph.generatedAt(token);
    const kinds = ["token", token % 2 ? "odd" : "even"];
    let title = `token ${number(token)}, id ${graph.ids[token]}, position ${number(graph.position(token))}`;
    if (generatedAt >= 0) kinds.push("generated");
    // A character that several tokens make stands with the last of them; the others are thin marks.
    const isSilent = graph.piece(token) === "";
    if (isSilent) title += `, ${tokenLabel(graph, token)}, a part of the next character`;
    const made = element("span", { "data-token": token }, isSilent ? "·" : tokenText(graph, token));
    const logProbs = generatedAt >= 0 ? graph.outputOf.get(graph.chunkOf(token)).logProbs : null;
    if (logProbs) {
      const probability = Math.exp(logProbs[generatedAt]);
      kinds.push("measured");
      made.style.setProperty("--doubt", (1 - probability).toFixed(3));
      title += `, generated with probability ${percent(probability)} (log ${logProbs[generatedAt].toFixed(3)})`;
    } else if (generatedAt >= 0) title += ", generated";
    made.className = kinds.join(" ");
    made.title = title;
    made.addEventListener("pointerenter", () => this.point(token));
    made.addEventListener("pointerleave", () => this.point(null));
    return made;
  }
}

// Ends of lines stay ends of lines, and can be seen.
function tokenText(graph, token) {
  const piece = graph.piece(token);
  if (piece === null) return tokenLabel(graph, token);
  const shown = withHiddenShown(piece).replace(/\n/g, "⏎\n").replace(/\t/g, "⇥\t");
  return /^ +$/.test(shown) ? "·".repeat(shown.length) : shown;
}

function settings(how) {
  const said = [`up to ${count(how.max_new_tokens, "token")}`];
  for (const [name, value] of Object.entries(how)) {
    const isEmpty = value === null || (Array.isArray(value) && !value.length);
    if (isEmpty || ["chunk", "max_new_tokens"].includes(name)) continue;
    const shown = Array.isArray(value) ? value.map((one) => onOneLine(JSON.stringify(one))).join(" ") : value;
    said.push(`${name.replace(/_/g, " ")} ${shown}`);
  }
  return said.join(", ");
}

function facts(pairs) {
  const rows = pairs.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]);
  return element("dl", {}, ...rows);
}

function costTable(device) {
  const row = (kernel, ms, note, kind) =>
    element("tr", { class: kind }, element("td", {}, kernel), element("td", {}, milliseconds(ms)), element("td", {}, note));
  const kernels = device.kernels.map(({ kernel, ms, how }) => {
    const isTaken = kernel === device.taken;
    const made = row(kernel, ms, isTaken ? "taken" : "", isTaken ? "taken" : "");
    made.title = how;
    return made;
  });
  return element(
    "section",
    {},
    element("h3", {}, "Predicted for one layer"),
    element("p", { class: "note" }, device.name),
    element("table", {}, ...kernels, row("plain causal", device.causal_ms, "unstructured", "muted")),
  );
}
