// How the errors of cells show: with their line in the source, and without the frames below it.

"use strict";

const { inspect, types } = require("node:util");

/** Looked up before cells put others in their places. */
const { Map, Number } = globalThis;

/** Cells are called from here; properties of the error may follow. */
const CALLERS = /(?:\n +at (?:Session\.post|process\.processTicksAndRejections) \(node:.*?\))+((?: \{)?$)/gm;

/** Frames of the functions that help cells to call. */
const HELPERS = /\n +at (?:.* \()?node:internal\/cells:\d+:\d+\)?$/gm;

exports.Traces = class Traces {
  #cells = new Map();

  /** A script's name cannot hold a blank. */
  static tag(number) {
    return `<cell-${number}>`;
  }

  add(number, source) {
    this.#cells.set(Traces.tag(number), source);
  }

  /** The text for an uncaught error. */
  describe(error) {
    let text;
    try {
      text = inspect(error);
    } catch {
      text = "an error that cannot be shown";
    }
    if (!types.isNativeError(error)) return `Uncaught ${text}\n`;
    const [, tag, line, column] = text.match(/^\s+at .*?(<cell-\d+>):(\d+):(\d+)/m) ?? [];
    return `${this.#excerpt(tag, Number(line), Number(column))}${text.replace(HELPERS, "").replace(CALLERS, "$1")}\n`;
  }

  /** The text for a cell that the engine does not take. */
  refusal(details, number) {
    const [message] = details?.exception?.description?.split("\n    at ") ?? ["The cell was not evaluated."];
    return `${this.#excerpt(Traces.tag(number), details?.lineNumber + 1, details?.columnNumber + 1)}${message}\n`;
  }

  /** The line at fault, as node shows it. */
  #excerpt(tag, line, column) {
    const text = this.#cells.get(tag)?.split(/\r\n|[\n\r\u2028\u2029]/)[line - 1];
    if (text === undefined) return "";
    return `${tag}:${line}\n${text}\n${" ".repeat(column - 1)}^\n\n`;
  }
};
