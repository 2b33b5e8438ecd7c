"use strict";
// The page: one state (what is pinned, what is pointed at), which every view shows.

class Page {
  constructor(data) {
    this.graph = new Graph(data);
    this.attention = data.attention && new Attention(data.attention, this.graph);
    // Pinned is {chunk} or {node}; hovered is {chunk}, {node} or {cell}.
    this.pinned = null;
    this.hovered = null;
    this.fillHeader(data);
    this.makeViews();
    this.listen();
    this.followTheme();
    this.offerAttention();
    this.panel.showGraph();
    this.update();
  }

  fillHeader({ title, totals }) {
    byId("title").textContent = title;
    const chips = [
      [number(totals.num_tokens), totals.num_tokens === 1 ? "token" : "tokens"],
      [number(totals.num_chunks), totals.num_chunks === 1 ? "chunk" : "chunks"],
      [number(totals.num_edges), totals.num_edges === 1 ? "edge" : "edges"],
      [percent(totals.density), "visible", "of the pairs that a causal mask has"],
      [`${number(totals.blocks.active)}/${number(totals.blocks.all)}`, "active blocks", `of ${totals.blocks.block_size} × ${totals.blocks.block_size} pairs`],
      [percent(totals.arithmetic), "arithmetic", "of what full causal attention computes, in blocks"],
    ];
    byId("totals").append(
      ...chips.map(([value, name, title]) =>
        element("span", { class: "chip", title: title ?? null }, element("b", {}, value), ` ${name}`),
      ),
    );
  }

  makeViews() {
    this.mask = new MaskView(byId("mask"), this.graph, {
      hover: (cell) => this.hover(cell && { cell }),
      hoverChunk: (chunk) => this.hover(chunk === null ? null : { chunk }),
      pick: (chunk) => this.pin({ chunk }),
    });
    this.dag = new DagView(byId("dag"), this.graph, {
      hoverNode: (node) => this.hover(node === null ? null : this.ofNode(node)),
      pickNode: (node) => this.pin(node === null ? null : this.ofNode(node)),
    });
    this.panel = new Panel(byId("panel"), this.graph, this.attention, {
      pick: (chunk) => this.goTo(chunk),
      point: (token) => this.hover(token === null ? null : { token }),
    });
    this.search = new Search(byId("search"), byId("hits"), this.graph, (chunk) => this.goTo(chunk));
  }

  // A box that stands for one chunk is that chunk.
  ofNode(node) {
    const chunks = this.graph.chunksOfNode[node];
    return chunks.length === 1 ? { chunk: chunks[0] } : { node };
  }

  listen() {
    byId("zoom-in").addEventListener("click", () => this.mask.zoomBy(2));
    byId("zoom-out").addEventListener("click", () => this.mask.zoomBy(0.5));
    byId("reset").addEventListener("click", () => this.reset());
    byId("theme").addEventListener("click", () => this.setTheme(this.theme === "dark" ? "light" : "dark"));
    byId("help-button").addEventListener("click", () => this.toggleHelp());
    document.addEventListener("keydown", (event) => this.press(event));
  }

  press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, select")) return;
    const act = this.keys()[event.key];
    if (!act || (byId("help").open && !["Escape", "?"].includes(event.key))) return;
    act();
    event.preventDefault();
  }

  keys() {
    return {
      "/": () => byId("search").focus(),
      "+": () => this.mask.zoomBy(2),
      "=": () => this.mask.zoomBy(2),
      "-": () => this.mask.zoomBy(0.5),
      0: () => this.reset(),
      t: () => byId("theme").click(),
      "?": () => this.toggleHelp(),
      Escape: () => (byId("help").open ? byId("help").close() : this.pin(null)),
      z: () => this.pinned && this.mask.showChunk(this.chunksOf(this.pinned)[0]),
      ArrowDown: () => this.move((chunk) => chunk + 1),
      ArrowUp: () => this.move((chunk) => chunk - 1),
      ArrowLeft: () => this.move((chunk) => this.graph.parents(chunk).next().value),
      ArrowRight: () => this.move((chunk) => this.graph.children(chunk).next().value),
    };
  }

  // From nothing, every arrow leads to the first chunk.
  move(next) {
    const chunk = this.pinned ? next(this.chunksOf(this.pinned)[0]) : 0;
    if (chunk !== undefined && chunk >= 0 && chunk < this.graph.numChunks) this.pin({ chunk });
  }

  reset() {
    this.mask.reset();
    this.dag.reset();
  }

  toggleHelp() {
    const help = byId("help");
    if (help.open) help.close();
    else help.showModal();
  }

  hover(what) {
    this.hovered = what;
    this.update();
  }

  pin(what) {
    const isSame = what && this.pinned && what.chunk === this.pinned.chunk && what.node === this.pinned.node;
    if (isSame) return;
    this.pinned = what;
    if (!what) this.panel.showGraph();
    else if (what.chunk !== undefined) this.panel.showChunk(what.chunk);
    else this.panel.showNode(what.node);
    if (what) this.dag.reveal(what.node ?? this.graph.nodeOf[what.chunk]);
    this.update();
  }

  goTo(chunk) {
    this.pin({ chunk });
    this.mask.showChunk(chunk);
  }

  chunksOf({ chunk, node, cell, token }) {
    if (node !== undefined) return this.graph.chunksOfNode[node];
    if (cell) return [this.graph.chunkOf(cell.query)];
    return [token !== undefined ? this.graph.chunkOf(token) : chunk];
  }

  // What is pinned stays lit whatever is pointed at.
  update() {
    const lit = this.pinned || this.hovered;
    const cell = this.hoveredCell();
    this.relight(lit);
    const keyChunk = this.hovered && this.hovered.cell ? this.graph.chunkOf(this.hovered.cell.key) : null;
    // Around a cell that is pointed at, everything stays to be seen.
    const isStrong = Boolean(this.pinned || (this.hovered && !cell));
    this.mask.show({ flags: this.flags, isStrong, cell });
    this.dag.show({ flags: this.flags, keyChunk });
    this.say();
  }

  // The walk over all parents is made once for what is lit, not for every move of the pointer.
  relight(lit) {
    const isNode = lit && lit.node !== undefined;
    const of = isNode ? `node ${lit.node}` : lit ? `chunk ${this.chunksOf(lit)[0]}` : "nothing";
    if (of === this.litOf) return;
    this.litOf = of;
    this.flags = lit ? this.graph.light(this.chunksOf(lit)) : null;
  }

  hoveredCell() {
    if (!this.hovered) return null;
    if (this.hovered.token !== undefined) return { query: this.hovered.token, key: this.hovered.token };
    return this.hovered.cell || null;
  }

  say() {
    const status = byId("status");
    const what = this.hovered || this.pinned;
    if (!what) status.textContent = "Point at a cell, a name or a box; click to keep a chunk; ? lists the keys.";
    else if (what.cell) status.replaceChildren(...this.sayCell(what.cell));
    else status.textContent = this.sayChunks(what);
  }

  sayCell({ query, key }) {
    const { graph, attention } = this;
    const sees = graph.isVisible(query, key);
    const verdict = element("b", { class: sees ? "yes" : "no" }, sees ? "may attend to" : "may not attend to");
    const parts = [tokenName(graph, query), " ", verdict, " ", `${tokenName(graph, key)}: ${graph.reason(query, key)}`];
    if (attention && sees) {
      const [child, parent] = [graph.chunkOf(query), graph.chunkOf(key)];
      if (attention.hasTokens) parts.push(`. The token pays ${percent(attention.ofToken(query, key))}`);
      const other = parent === child ? "itself" : graph.names[parent];
      parts.push(`. ${graph.names[child]} pays ${percent(attention.between(child, parent))} to ${other}`);
    }
    return parts;
  }

  sayChunks(what) {
    const { graph } = this;
    if (what.node !== undefined) {
      const { label, tokens } = graph.data.dag.nodes[what.node];
      return `${label}: ${count(tokens, "token")}`;
    }
    if (what.token !== undefined) {
      return `${tokenName(graph, what.token)}: id ${graph.ids[what.token]}, position ${number(graph.position(what.token))}`;
    }
    const { chunk } = what;
    const parents = [...take(graph.parents(chunk), 3)].map((parent) => graph.names[parent]).join(", ");
    const more = graph.numParents(chunk) > 3 ? ` and ${number(graph.numParents(chunk) - 3)} more` : "";
    const sees = parents ? `sees ${parents}${more}` : "a root";
    const [first, last] = [graph.position(graph.start(chunk)), graph.position(graph.end(chunk) - 1)];
    return `${graph.names[chunk]}: ${count(graph.length(chunk), "token")} at positions ${number(first)}..${number(last)}, ${sees}`;
  }

  // The system's theme, until somebody chooses another.
  followTheme() {
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", () => this.isThemeChosen || this.applyTheme(dark.matches ? "dark" : "light"));
    this.applyTheme(dark.matches ? "dark" : "light");
  }

  setTheme(theme) {
    this.isThemeChosen = true;
    this.applyTheme(theme);
  }

  applyTheme(theme) {
    this.theme = theme;
    document.documentElement.dataset.theme = theme;
    byId("theme").setAttribute("aria-pressed", String(theme === "dark"));
    this.mask.setColours(themeColours());
  }

  offerAttention() {
    const { attention } = this;
    if (!attention) return;
    byId("attention").hidden = false;
    fillSelect(byId("layer"), attention.numLayers);
    fillSelect(byId("head"), attention.numHeads);
    byId("colour").addEventListener("change", () => this.showAttention());
    for (const name of ["layer", "head"])
      byId(name).addEventListener("change", () => {
        if (byId("colour").value === "mask") byId("colour").value = "attention";
        this.chooseAttention(name);
      });
    if (!attention.hasTokens) byId("colour").querySelector("[value=tokens]").remove();
    if (attention.detail !== "all")
      byId("attention-note").textContent =
        attention.detail === "means"
          ? "Too much for one page: means over heads for each layer, and over layers for each head."
          : "Too much for one page: the mean over all layers and heads.";
    byId("colour").value = "attention";
    this.showAttention();
  }

  chooseAttention(changed) {
    const other = changed === "layer" ? "head" : "layer";
    const chosen = (name) => (byId(name).value === "mean" ? null : Number(byId(name).value));
    if (!this.attention.has(chosen("layer"), chosen("head"))) byId(other).value = "mean";
    if (!this.attention.has(chosen("layer"), chosen("head"))) byId(changed).value = "mean";
    this.attention.choose(chosen("layer"), chosen("head"));
    this.showAttention();
    if (this.pinned && this.pinned.chunk !== undefined) this.panel.showChunk(this.pinned.chunk);
  }

  showAttention() {
    const colour = byId("colour").value;
    this.attention.chooseTokens(colour === "tokens");
    const shown = colour === "mask" ? null : this.attention;
    document.body.classList.toggle("with-attention", Boolean(shown));
    byId("most").textContent = percent(this.attention.most);
    this.mask.showAttention(shown);
    this.dag.showAttention(shown);
  }
}

function byId(id) {
  return document.getElementById(id);
}

function* take(items, most) {
  let left = most;
  for (const item of items) {
    if (left-- <= 0) return;
    yield item;
  }
}

function fillSelect(select, size) {
  select.append(element("option", { value: "mean" }, `all ${select.id}s`));
  for (let at = 0; at < size; at++) select.append(element("option", { value: at }, `${select.id} ${at}`));
}

function tokenName(graph, token) {
  const chunk = graph.chunkOf(token);
  const label = graph.texts ? `'${shortened(tokenText(graph, token).replace(/\n/g, ""), 24)}'` : `id ${graph.ids[token]}`;
  return `${graph.names[chunk]}[${token - graph.start(chunk)}] ${label}`;
}

function themeColours() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  const names = ["paper", "ink", "muted", "masked", "own", "parent", "bracket", "generate", "highlight"];
  const colours = Object.fromEntries(names.map((name) => [name, colour(name)]));
  const scale = [0, 1, 2, 3, 4, 5].map((step) => colourOf(colour(`scale-${step}`)));
  const [masked, own, parent] = [colours.masked, colours.own, colours.parent].map(colourOf);
  return { ...colours, child: colour("partial"), rgb: { masked, own, parent, scale } };
}

new Page(JSON.parse(byId("data").textContent));
