"use strict";
// Elements and texts. Whatever comes from a graph goes in here, and becomes text, never markup.

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") made.addEventListener("click", value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function svgElement(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// Characters that are not seen, or that make what stands around them be read in another order.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\u{e0000}-\u{e0fff}]/gu;

function withHiddenShown(text) {
  return text.replace(HIDDEN, (char) => {
    const code = char.codePointAt(0);
    if (code < 0x20) return String.fromCharCode(0x2400 + code);
    return `⟨${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });
}

// For one line: blanks at the borders, tabs and ends of lines are written out too.
function onOneLine(text) {
  return withHiddenShown(text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/^ +| +$/g, (blanks) => "·".repeat(blanks.length)));
}

function shortened(text, most) {
  const characters = Array.from(text);
  return characters.length <= most ? text : characters.slice(0, most - 1).join("") + "…";
}

// A token on one line: its piece, what the vocabulary writes, or its id.
function tokenLabel(graph, token) {
  const piece = graph.piece(token);
  if (piece === null) return String(graph.ids[token]);
  if (piece === "") return `⟨${withHiddenShown(graph.writings.get(graph.ids[token]) ?? "")}⟩`;
  return onOneLine(piece);
}

const NUMBERS = new Intl.NumberFormat("en-US");

function number(value) {
  return NUMBERS.format(value);
}

function count(value, noun) {
  return `${number(value)} ${noun}${value === 1 ? "" : "s"}`;
}

function percent(share) {
  if (share === 1) return "100%";
  return `${Number(Math.min(100 * share, 99.9).toPrecision(3))}%`;
}

function milliseconds(ms) {
  return ms >= 1000 ? `${number(Math.round(ms))} ms` : `${Number(ms.toPrecision(3))} ms`;
}
