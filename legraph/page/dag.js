"use strict";
// The DAG: boxes and curves where pagedata.py has laid them, as SVG that can be zoomed.

const STACK = 3;
const NODE_FONT = 11;
// Smaller, labels cannot be read: a tall graph then shows its roots first.
const LEAST_SCALE = 0.5;

class DagView {
  // `told` has hoverNode(node or null) and pickNode(node).
  constructor(svg, graph, told) {
    Object.assign(this, { svg, graph, told });
    this.dag = graph.data.dag;
    this.inner = svgElement("g");
    svg.append(this.inner);
    this.edges = this.dag.edges.map((edge) => this.drawEdge(edge));
    this.nodes = this.dag.nodes.map((node, at) => this.drawNode(node, at));
    this.zoom = d3.zoom().on("zoom", (event) => this.inner.setAttribute("transform", event.transform));
    this.selection = d3.select(svg);
    this.selection.call(this.zoom).on("dblclick.zoom", null);
    svg.addEventListener("pointerleave", () => told.hoverNode(null));
    svg.addEventListener("click", (event) => {
      if (!event.target.closest(".node")) told.pickNode(null);
    });
    new ResizeObserver(() => this.fit()).observe(svg);
  }

  drawEdge({ from, to, stands_for, curve }) {
    const path = svgElement("path", { class: "edge", d: curvePath(curve) });
    const [parent, child] = [this.dag.nodes[from].label, this.dag.nodes[to].label];
    const more = stands_for > 1 ? ` (${number(stands_for)} edges)` : "";
    path.append(svgElement("title", {}, `${child} sees ${parent}${more}`));
    this.inner.append(path);
    return path;
  }

  drawNode(node, at) {
    const [x, y, width, height] = node.box;
    const generates = node.generates || this.graph.chunksOfNode[at].some((chunk) => this.graph.outputOf.has(chunk));
    const isFolded = this.graph.chunksOfNode[at].length > 1;
    const made = svgElement("g", {
      class: `node ${isFolded ? "folded" : ""} ${generates ? "generates" : ""}`,
      transform: `translate(${x - width / 2},${y - height / 2})`,
      "data-node": at,
    });
    for (let behind = isFolded ? 2 : 0; behind >= 0; behind--)
      made.append(svgElement("rect", { x: behind * STACK, y: -behind * STACK, width, height, rx: 5 }));
    const room = Math.floor((width - 8) / (NODE_FONT * 0.56));
    const text = (content, dy, kind) =>
      svgElement("text", { x: width / 2, y: height / 2 + dy, class: kind }, shortened(content, Math.max(3, room)));
    const isTall = height >= 28;
    made.append(text(node.label, isTall ? -6 : 0, "label"));
    if (isTall) made.append(text(count(node.tokens, "token"), 8, "tokens"));
    if (generates) made.append(svgElement("path", { class: "mark", d: `M${width},${height / 2 - 5}l7,5l-7,5z` }));
    made.append(svgElement("title", {}, this.title(node)));
    made.addEventListener("pointerenter", () => this.told.hoverNode(at));
    made.addEventListener("pointerleave", () => this.told.hoverNode(null));
    made.addEventListener("click", () => this.told.pickNode(at));
    this.inner.append(made);
    return made;
  }

  title(node) {
    return `${node.label}: ${count(node.tokens, "token")}${node.generates ? ", generates" : ""}`;
  }

  fit() {
    const { clientWidth: width, clientHeight: height } = this.svg;
    if (!width || !height) return;
    const margin = 16;
    const fitting = Math.min((width - 2 * margin) / this.dag.width, (height - 2 * margin) / this.dag.height, 1.6);
    const scale = Math.max(fitting, LEAST_SCALE);
    const top = Math.max(margin, (height - this.dag.height * scale) / 2);
    this.home = d3.zoomIdentity.translate((width - this.dag.width * scale) / 2, top).scale(scale);
    this.zoom.scaleExtent([fitting * 0.8, 4]).extent([[0, 0], [width, height]]);
    this.zoom.transform(this.selection, this.home);
  }

  reset() {
    this.zoom.transform(this.selection, this.home);
  }

  // Brings a node's box to the middle, if it is not to be seen.
  reveal(node) {
    const [x, y] = this.dag.nodes[node].box;
    const [left, top] = d3.zoomTransform(this.svg).apply([x, y]);
    const { clientWidth: width, clientHeight: height } = this.svg;
    if (left < 0 || top < 0 || left > width || top > height) this.zoom.translateTo(this.selection, x, y);
  }

  // Flags of chunks, and the chunk whose key is pointed at, or null.
  show({ flags, keyChunk }) {
    const ofNode = new Uint8Array(this.nodes.length);
    if (flags) flags.forEach((flag, chunk) => (ofNode[this.graph.nodeOf[chunk]] |= flag));
    const keyNode = keyChunk === null ? -1 : this.graph.nodeOf[keyChunk];
    this.svg.classList.toggle("lit", Boolean(flags));
    this.nodes.forEach((made, node) => {
      made.classList.toggle("focus", Boolean(ofNode[node] & FOCUS));
      made.classList.toggle("parent", Boolean(ofNode[node] & PARENT));
      made.classList.toggle("child", Boolean(ofNode[node] & CHILD));
      made.classList.toggle("key", node === keyNode);
    });
    this.dag.edges.forEach(({ from, to }, edge) => {
      this.edges[edge].classList.toggle("parent", Boolean(ofNode[to] & FOCUS));
      this.edges[edge].classList.toggle("child", Boolean(ofNode[from] & FOCUS));
    });
  }

  // With attention, an edge is as wide as the child's mean chunk looks at the parent.
  showAttention(attention) {
    const mass = attention && this.massOfEdges(attention);
    this.dag.edges.forEach(({ from, to }, edge) => {
      const share = mass ? mass.get(from * this.nodes.length + to) || 0 : null;
      this.edges[edge].style.strokeWidth = share === null ? "" : `${(0.6 + 7 * share).toFixed(2)}px`;
      this.edges[edge].dataset.mass = share === null ? "" : share.toFixed(4);
    });
  }

  massOfEdges(attention) {
    const { graph } = this;
    const found = new Map();
    for (let child = 0; child < graph.numChunks; child++) {
      const node = graph.nodeOf[child];
      const share = 1 / graph.chunksOfNode[node].length;
      for (let run = graph.runOffsets[child]; run < graph.runOffsets[child + 1]; run++) {
        const pair = attention.ofRun(child, run) - graph.runStarts[run];
        for (let parent = graph.runStarts[run]; parent < graph.runEnds[run]; parent++) {
          const edge = graph.nodeOf[parent] * this.nodes.length + node;
          found.set(edge, (found.get(edge) || 0) + attention.mass[pair + parent] * share);
        }
      }
    }
    return found;
  }
}

// Control points of cubic Bezier curves, one behind the other: x, y, x, y, ...
function curvePath(points) {
  let path = `M${points[0]},${points[1]}`;
  for (let i = 2; i < points.length; i += 6) path += `C${points.slice(i, i + 6).join(",")}`;
  return path;
}
