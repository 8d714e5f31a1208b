// Puts each word of a cell that was rewritten for evaluation back on the line that it has in the
// cell, so that errors name the right lines: bun's transpiler keeps no lines, and gives no map.
//
// The words of both texts are aligned as a whole (their longest common subsequence); line ends are
// then moved. The text has a semicolon behind every statement, so only few places need one line.

"use strict";

/** Looked up before cells put others in their places. */
const { Bun, Int32Array, Math, Set, Uint16Array } = globalThis;

/** Sizes above which the alignment would cost more than it is worth. */
const MOST = 4_000_000;

const TOKEN =
  /[\p{L}\p{N}_$]+|"(?:\\[^]|[^"\\])*"|'(?:\\[^]|[^'\\])*'|`|(?<=[(,=:[!&|?{};+]\s*|\breturn )\/(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^\/\\\[\n*])+\/[a-z]*|[^]/gu;
const WORD = /[\p{L}\p{N}_$]+/gu;
const IS_WORD = /^[\p{L}\p{N}_$]/u;

/** A line end behind these would end the statement. */
const HOLDS = new Set(["return", "throw", "break", "continue", "yield", "async"]);

/** The end of the template literal that begins at `at`. */
function endOfTemplate(text, at) {
  for (let depth = 0, end = at + 1; end < text.length; end++) {
    const char = text[end];
    if (char === "\\") end++;
    else if (char === "`" && depth === 0) return end + 1;
    else if (char === "`") end = endOfTemplate(text, end) - 1;
    else if ((char === '"' || char === "'") && depth > 0) {
      while (++end < text.length && text[end] !== char) if (text[end] === "\\") end++;
    } else if (char === "$" && depth === 0 && text[end + 1] === "{") depth = 1;
    else if (char === "{" && depth > 0 && text[end - 1] !== "$") depth++;
    else if (char === "}" && depth > 0) depth--;
  }
  return text.length;
}

function tokens(text) {
  const found = [];
  TOKEN.lastIndex = 0;
  for (let match; (match = TOKEN.exec(text)); ) {
    let token = match[0];
    if (token === "`") {
      token = text.slice(match.index, endOfTemplate(text, match.index));
      TOKEN.lastIndex = match.index + token.length;
    }
    found.push(token);
  }
  return found;
}

/** For each of the words, the index of its partner among the others, or -1. */
function align(words, others) {
  const partners = new Int32Array(words.length).fill(-1);
  const width = others.length + 1;
  const lengths = new Uint16Array((words.length + 1) * width);
  for (let a = words.length - 1; a >= 0; a--) {
    for (let b = others.length - 1; b >= 0; b--) {
      const at = a * width + b;
      lengths[at] =
        words[a] === others[b] ? lengths[at + width + 1] + 1 : Math.max(lengths[at + width], lengths[at + 1]);
    }
  }
  for (let a = 0, b = 0; a < words.length && b < others.length; ) {
    const at = a * width + b;
    if (words[a] === others[b]) partners[a++] = b++;
    else if (lengths[at + width] >= lengths[at + 1]) a++;
    else b++;
  }
  return partners;
}

/** The common form of texts that differ only in line ends without meaning. */
const plain = new Bun.Transpiler({ loader: "js", minifyWhitespace: true });

/** The rewritten text with the lines of the source. */
function restoreLines(source, text) {
  const moved = moveLines(source, text);
  try {
    return plain.transformSync(moved) === plain.transformSync(text) ? moved : text;
  } catch {
    return text;
  }
}

/** The same, as far as the tokens were understood. */
function moveLines(source, text) {
  const words = [];
  const lines = [];
  source.split("\n").forEach((content, line) => {
    for (const [word] of content.matchAll(WORD)) {
      words.push(word);
      lines.push(line);
    }
  });
  // The declarations of names stand before the function that holds the code.
  const body = Math.max(text.search(/^\((?:async )?\(\) => \{$/m), 0);
  const parts = tokens(text.slice(body));
  const own = parts.filter((part) => IS_WORD.test(part));
  if (own.length * words.length > MOST) return text;
  const partners = align(own, words);
  let line = 0;
  let at = 0;
  let before = "";
  /** Start of the statement that has had no word yet, if its start is known. */
  let statement = -1;
  let out = text.slice(0, body).replaceAll("\n", " ");
  for (const given of parts) {
    // Bun makes templates of texts with line ends in them. A longer one is as it was written.
    const isMade = given[0] === "`" && !given.includes("${") && !source.includes(given);
    const part = isMade ? given.replaceAll("\n", "\\n") : given;
    if (part === "\n") {
      out += " ";
      continue;
    }
    if (IS_WORD.test(part)) {
      const wanted = lines[partners[at++]];
      if (wanted > line && !HOLDS.has(before)) {
        // Text between a semicolon and the first word of a statement belongs to the statement.
        const cut = statement < 0 ? out.length : statement;
        out = out.slice(0, cut) + "\n".repeat(wanted - line) + out.slice(cut);
        line = wanted;
      }
      if (wanted !== undefined) statement = -1;
    } else {
      line += part.split("\n").length - 1;
    }
    out += part;
    if (part === ";") statement = out.length;
    if (part.trim()) before = part;
  }
  return out;
}

module.exports = { restoreLines };
