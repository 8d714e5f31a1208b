// How the errors of cells show: with their lines in the source, and without the frames of the driver.

"use strict";

/** Looked up before cells put others in their places. */
const { Bun, Error, Number, Object } = globalThis;

/** The file that the driver's frames are in. */
const OWN = /([^\s(]+\/preload\.js):\d+/.exec(new Error().stack)?.[1] ?? "preload.js";

/** The frames of an error down to those of the cell, without the function that it was put into. */
function framesOf(error) {
  const frames = (`${error.stack}`.match(/^ +at .*$/gm) ?? []).map((frame) => frame.trim());
  const last = frames.findLastIndex((frame) => frame.includes("<cell "));
  if (last < 0) return frames.filter((frame) => /:\d+\)?$/.test(frame) && !frame.includes(OWN));
  const shown = frames.slice(0, last + 1);
  if (/^at <cell /.test(shown.at(-1)) && shown.at(-2)?.startsWith("at <anonymous> (<cell ")) shown.pop();
  shown.push(shown.pop().replace(/^at (?:async )?<anonymous> \((<cell .*)\)$/, "at $1"));
  return shown;
}

const previewOf = (source, line) => {
  const content = source?.split(/\r?\n/)[line - 1];
  return content === undefined ? "" : `${line} | ${content}\n`;
};

/** The text that bun prints for an uncaught error, with the frames and lines of cells only. */
function describe(error, sources) {
  try {
    // Previews would show what the cell was rewritten to.
    const text = Bun.inspect(error, { colors: false }).replace(/^(?: *\d+ \| .*\n)+ *\^\n/gm, "");
    if (!Error.isError(error)) {
      if (/^(?:error|\w*Error): /.test(text)) return text.trimEnd(); // what bun tells of modules
      return `error: ${typeof error === "string" ? error : text}`;
    }
    const frames = framesOf(error);
    const shown = frames.map((frame) => `\n      ${frame}`).join("");
    const [, number, line] = /<cell (\d+)>:(\d+)/.exec(frames[0]) ?? [];
    const preview = previewOf(sources.get(Number(number)), line);
    // For several errors in one, bun shows each of these.
    if (Object.prototype.toString.call(error.errors) === "[object Array]") {
      const all = error.errors.map((each) => `${describe(each, sources)}\n`).join("");
      return `${preview}${error.name}: ${error.message}${shown}\n${all.trimEnd()}`;
    }
    const [head] = text.split(/\n {6}at /, 1);
    const rest = text.slice(head.length).replace(/^(?:\n {6}at .*)+/, "");
    return preview + head + shown + rest.trimEnd();
  } catch {
    return "error: an error that cannot be shown";
  }
}

/** The text that bun prints for a cell that is no program. */
function refusal(error, number, source) {
  const tag = `<cell ${number}>`;
  if (error.name !== "SyntaxError") return Bun.inspect(error, { colors: false }).replaceAll("input.ts", tag).trimEnd();
  // The trace is the engine's, which names the line first.
  const [, line] = /^<cell \d+>:(\d+)/.exec(error.stack) ?? [];
  return `${previewOf(source, line)}SyntaxError: ${error.message}\n      at ${tag}:${line ?? 1}`;
}

module.exports = { describe, refusal };
