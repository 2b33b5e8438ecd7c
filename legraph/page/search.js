"use strict";
// Search: chunks by name, then by text.

class Search {
  // `found(chunk)` is called for each hit that is stepped to.
  constructor(input, said, graph, found) {
    Object.assign(this, { input, said, graph, found, hits: [], at: -1 });
    input.addEventListener("input", () => this.look());
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") this.step(event.shiftKey ? -1 : 1);
      else if (event.key === "Escape") input.blur();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
  }

  look() {
    const wanted = this.input.value.trim().toLowerCase();
    this.hits = wanted ? this.chunksWith(wanted) : [];
    this.at = -1;
    this.say();
  }

  chunksWith(wanted) {
    const { names, texts } = this.graph;
    const named = [];
    const written = [];
    names.forEach((name, chunk) => {
      if (name.toLowerCase().includes(wanted)) named.push(chunk);
      else if (texts && texts[chunk].toLowerCase().includes(wanted)) written.push(chunk);
    });
    // Whoever types a whole name means that chunk.
    named.sort((a, b) => names[a].length - names[b].length || a - b);
    return [...named, ...written];
  }

  step(by) {
    if (!this.hits.length) return;
    const { length } = this.hits;
    this.at = this.at < 0 && by < 0 ? length - 1 : (this.at + by + length) % length;
    this.say();
    this.found(this.hits[this.at]);
  }

  say() {
    const { length } = this.hits;
    if (!this.input.value.trim()) this.said.textContent = "";
    else if (!length) this.said.textContent = "no hit";
    else this.said.textContent = this.at < 0 ? count(length, "hit") : `${number(this.at + 1)} of ${number(length)}`;
  }
}
