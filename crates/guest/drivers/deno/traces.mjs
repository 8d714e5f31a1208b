// How the errors of cells show: without the driver's frames, and with their places in the source as
// it was written, whatever it was translated to.

/** Looked up before cells put others in their places. */
const { Deno, Error, Map, Math, Object, String, URL, WeakMap } = globalThis;

/** The directory of all files of the driver. */
const DRIVER = new URL("..", import.meta.url);

/** How errors show: without our frames, and with the place in the cell as it was written. */
export class Traces {
  #cells = new Map();
  #places = new WeakMap();

  /** A script's name cannot hold a blank, therefore the dash, which traces do not show. */
  static tag(number) {
    return `<cell-${number}>`;
  }

  install() {
    const prepareStackTrace = (error, sites) => this.#format(error, sites);
    Object.defineProperty(Error, "prepareStackTrace", {
      value: prepareStackTrace,
      writable: true,
      configurable: true,
    });
  }

  add(number, source, map) {
    const lines = source.split(/\r\n|[\n\r\u2028\u2029]/);
    this.#cells.set(Traces.tag(number), { number, lines, map });
  }

  #format(error, sites) {
    let head;
    try {
      head = Error.prototype.toString.call(error);
    } catch {
      head = "Error";
    }
    let text = head;
    for (const site of sites) {
      const file = site.getFileName() ?? "";
      if (file === "ext:deno_node/inspector.js") break; // cells are called by it
      if (isOurs(file)) continue;
      const cell = this.#cells.get(site.getScriptNameOrSourceURL());
      let shown = String(site);
      if (cell) {
        const place = original(cell, site.getLineNumber(), site.getColumnNumber());
        const tag = Traces.tag(cell.number);
        const [before, behind] = shown.split(/<cell-\d+>:\d+:\d+/);
        shown = `${before}${where(cell, place)}${behind ?? ""}`.replaceAll(tag, `<cell ${cell.number}>`);
        if (!this.#places.has(error)) this.#places.set(error, { cell, ...place });
      } else if (/\(ext:core\//.test(shown)) continue;
      text += `\n    at ${shown}`;
    }
    return text;
  }

  /** The text for an uncaught error. */
  describe(error) {
    const isError = Error.isError(error);
    let text;
    try {
      if (isError) void error.stack; // finds the place
      text = Deno.inspect(error);
    } catch {
      text = "an error that cannot be shown";
    }
    return `error: Uncaught ${withExcerpt(text, isError ? this.#places.get(error) : undefined)}`;
  }

  /** The text for a cell that the engine does not take. */
  refusal(details, number) {
    const cell = this.#cells.get(Traces.tag(number));
    const place = { cell, ...original(cell, details.lineNumber + 1, details.columnNumber + 1) };
    const [message] = details.exception.description.split("\n    at ");
    return `error: Uncaught ${withExcerpt(`${message}\n    at ${where(cell, place)}`, place)}`;
  }
}

/** Between the message and the trace, the line at fault. */
function withExcerpt(text, place) {
  const line = place?.cell.lines[place.line - 1];
  if (line === undefined || line.length > 256) return text;
  const trace = text.indexOf("\n    at ");
  const excerpt = `\n${line}\n${" ".repeat(Math.max(0, place.column - 1))}^`;
  return trace < 0 ? text + excerpt : text.slice(0, trace) + excerpt + text.slice(trace);
}

const isOurs = (file) => file.startsWith(DRIVER.href) || file.startsWith(DRIVER.pathname);

const where = (cell, place) => `<cell ${cell.number}>:${place.line}:${place.column}`;

function original(cell, line, column) {
  const entry = cell.map?.findEntry(line - 1, column - 1);
  if (entry?.originalLine === undefined) return { line, column };
  return { line: entry.originalLine + 1, column: entry.originalColumn + 1 };
}
