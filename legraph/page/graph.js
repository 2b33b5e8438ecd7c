"use strict";
// The graph: spans, parents as runs of neighbouring chunks, texts, and who may see whom and why.

const FOCUS = 1;
const PARENT = 2;
const CHILD = 4;

class Graph {
  constructor(data) {
    this.data = data;
    this.names = data.names;
    this.numChunks = this.names.length;
    this.offsets = offsetsOf(unpacked(data.lengths));
    this.numTokens = this.offsets[this.numChunks];
    this.ids = unpacked(data.ids);
    this.positionStarts = unpacked(data.positions.starts);
    this.positionsOfAll = data.positions.all && unpacked(data.positions.all);
    this.readParents(data.parents);
    this.readTexts(data.texts);
    this.readOutputs(data.outputs || []);
    this.generate = new Map(data.generate.map((how) => [how.chunk, how]));
    this.nodeOf = unpacked(data.dag.node_of);
    this.chunksOfNode = data.dag.nodes.map(() => []);
    this.nodeOf.forEach((node, chunk) => this.chunksOfNode[node].push(chunk));
  }

  readParents(parents) {
    this.runOffsets = offsetsOf(unpacked(parents.counts));
    this.runStarts = unpacked(parents.starts);
    const lengths = unpacked(parents.lengths);
    this.runEnds = Uint32Array.from(this.runStarts, (start, run) => start + lengths[run]);
    // Edges before each run: where a run's pairs stand among all pairs of attention.
    this.edgesBefore = offsetsOf(lengths);
  }

  readTexts(texts) {
    this.texts = texts && texts.chunks;
    this.pieceOffsets = texts && offsetsOf(unpacked(texts.pieces));
    this.writings = new Map(texts ? texts.writings : []);
  }

  readOutputs(outputs) {
    this.outputs = outputs.map((output) => ({
      ...output,
      logProbs: output.log_probs && unpacked(output.log_probs),
    }));
    this.outputOf = new Map(this.outputs.map((output) => [output.chunk, output]));
  }

  start(chunk) {
    return this.offsets[chunk];
  }

  end(chunk) {
    return this.offsets[chunk + 1];
  }

  length(chunk) {
    return this.offsets[chunk + 1] - this.offsets[chunk];
  }

  chunkOf(token) {
    return lastNotAbove(this.offsets, token, 0, this.numChunks);
  }

  position(token) {
    if (this.positionsOfAll) return this.positionsOfAll[token];
    const chunk = this.chunkOf(token);
    return this.positionStarts[chunk] + token - this.start(chunk);
  }

  // What the token adds to its chunk's text; null if only ids are known.
  piece(token) {
    if (!this.texts) return null;
    const chunk = this.chunkOf(token);
    const base = this.pieceOffsets[this.start(chunk)];
    return this.texts[chunk].slice(this.pieceOffsets[token] - base, this.pieceOffsets[token + 1] - base);
  }

  // The number of the generated token, counted in its chunk from 0; -1 for tokens of the prompt.
  generatedAt(token) {
    const chunk = this.chunkOf(token);
    const output = this.outputOf.get(chunk);
    return output ? Math.max(-1, token - (this.end(chunk) - output.tokens)) : -1;
  }

  numParents(chunk) {
    return this.edgesBefore[this.runOffsets[chunk + 1]] - this.edgesBefore[this.runOffsets[chunk]];
  }

  // The run in which the parent stands, or -1.
  runOf(child, parent) {
    const first = this.runOffsets[child];
    const run = lastNotAbove(this.runStarts, parent, first, this.runOffsets[child + 1]);
    return run >= first && parent < this.runEnds[run] ? run : -1;
  }

  *parents(chunk) {
    for (let run = this.runOffsets[chunk]; run < this.runOffsets[chunk + 1]; run++)
      for (let parent = this.runStarts[run]; parent < this.runEnds[run]; parent++) yield parent;
  }

  *children(chunk) {
    for (let child = chunk + 1; child < this.numChunks; child++)
      if (this.runOf(child, chunk) >= 0) yield child;
  }

  isVisible(query, key) {
    const child = this.chunkOf(query);
    const parent = this.chunkOf(key);
    return child === parent ? key <= query : this.runOf(child, parent) >= 0;
  }

  // Which chunks are in focus, and which are parents or children of one that is: a byte of flags a chunk.
  light(chunks) {
    const flags = new Uint8Array(this.numChunks);
    for (const chunk of chunks) flags[chunk] = FOCUS;
    const before = offsetsOf(flags);
    const opened = new Int32Array(this.numChunks + 1);
    for (let child = 0; child < this.numChunks; child++) {
      let isChild = false;
      for (let run = this.runOffsets[child]; run < this.runOffsets[child + 1]; run++) {
        isChild ||= before[this.runEnds[run]] > before[this.runStarts[run]];
        if (flags[child] & FOCUS) {
          opened[this.runStarts[run]]++;
          opened[this.runEnds[run]]--;
        }
      }
      if (isChild) flags[child] |= CHILD;
    }
    for (let chunk = 0, open = 0; chunk < this.numChunks; chunk++) {
      open += opened[chunk];
      if (open > 0) flags[chunk] |= PARENT;
    }
    return flags;
  }

  // A byte a chunk, 1 for those that the chunk descends from. Parents come before their children in token
  // order, so one walk downwards meets every chunk after all of its children.
  ancestors(chunk) {
    const found = new Uint8Array(this.numChunks);
    const opened = new Int32Array(this.numChunks + 1);
    for (let at = chunk, open = 0; at >= 0; at--) {
      open += opened[at + 1];
      found[at] = at !== chunk && open > 0 ? 1 : 0;
      if (at !== chunk && !found[at]) continue;
      for (let run = this.runOffsets[at]; run < this.runOffsets[at + 1]; run++) {
        opened[this.runEnds[run]]++;
        opened[this.runStarts[run]]--;
      }
    }
    return found;
  }

  isAncestor(ancestor, chunk) {
    if (ancestor > chunk) return false;
    if (!this.lastAncestors || this.lastAncestors.chunk !== chunk)
      this.lastAncestors = { chunk, found: this.ancestors(chunk) };
    return this.lastAncestors.found[ancestor] === 1;
  }

  // Why the query may attend to the key, or why not; a clause that stands behind a colon.
  reason(query, key) {
    const child = this.chunkOf(query);
    const parent = this.chunkOf(key);
    const [childName, parentName] = [this.names[child], this.names[parent]];
    if (child === parent) {
      if (query === key) return "the token itself";
      return key < query ? "an earlier token of the same chunk" : "a later token of the same chunk";
    }
    if (this.runOf(child, parent) >= 0) return `${parentName} is a direct parent of ${childName}`;
    if (this.runOf(parent, child) >= 0)
      return `${parentName} is a child of ${childName}, and parents do not see their children`;
    if (this.isAncestor(parent, child)) return this.reasonOfAncestor(child, parent);
    if (this.isAncestor(child, parent)) return `${parentName} is a descendant of ${childName}`;
    return `${parentName} and ${childName} are unrelated`;
  }

  reasonOfAncestor(child, ancestor) {
    for (const parent of this.parents(child))
      if (this.runOf(parent, ancestor) >= 0)
        return `${this.names[ancestor]} is a grandparent through ${this.names[parent]}, not listed as a parent`;
    return `${this.names[ancestor]} is an ancestor, not listed as a parent`;
  }
}

// Attention between chunks: the pairs of a chunk are its parents, ascending, then the chunk itself.
class Attention {
  constructor(data, graph) {
    this.graph = graph;
    this.numLayers = data.layers;
    this.numHeads = data.heads;
    this.detail = data.detail;
    this.hasTokens = data.has_tokens;
    this.planes = new Map(data.planes.map((plane) => [`${plane.layer},${plane.head}`, plane]));
    this.ofTokens = false;
    this.choose(null, null);
  }

  // Layer and head are numbers, or null for the mean over all.
  choose(layer, head) {
    this.layer = layer;
    this.head = head;
    const plane = this.planes.get(`${layer},${head}`);
    this.mass = shares(plane.mass);
    this.sinks = plane.sinks && shares(plane.sinks);
    this.tokens = plane.tokens && shares(plane.tokens);
    this.chooseTokens(this.ofTokens);
  }

  // Whether colours tell what tokens pay to tokens, or what chunks pay to chunks.
  chooseTokens(ofTokens) {
    this.ofTokens = ofTokens && this.hasTokens;
    this.most = (this.ofTokens ? this.tokens : this.mass).reduce((most, share) => Math.max(most, share), 0);
  }

  has(layer, head) {
    return this.planes.has(`${layer},${head}`);
  }

  ofRun(child, run) {
    return this.graph.edgesBefore[run] + child;
  }

  own(chunk) {
    return this.mass[this.graph.edgesBefore[this.graph.runOffsets[chunk + 1]] + chunk];
  }

  // What the chunk pays to itself or to a parent; 0 to anything else.
  between(child, parent) {
    if (child === parent) return this.own(child);
    const run = this.graph.runOf(child, parent);
    return run < 0 ? 0 : this.mass[this.ofRun(child, run) + parent - this.graph.runStarts[run]];
  }

  ofToken(query, key) {
    return this.tokens[query * this.graph.numTokens + key];
  }

  // From 0 to 1; the root lets small numbers be told apart.
  shade(mass) {
    return this.most > 0 ? Math.sqrt(mass / this.most) : 0;
  }
}

function shares(packed) {
  return Float32Array.from(unpacked(packed), (number) => number / 65535);
}
