// Runs cells one after the other in bun's global scope, for the guest.
//
// Bun's transpiler rewrites a cell, which may be TypeScript, into a script: names that it declares
// become variables of the global scope, which later cells may declare again, the rest a function that
// may await. The event loop goes on between cells.

"use strict";

const fs = require("node:fs");
const { createRequire } = require("node:module");
const vm = require("node:vm");

const HOME = "/sandbox";
const SIGINT = 2;
/** What `import.meta` is called in the rewritten cell. */
const META = "$importMeta";

/** Thrown by exit calls, to leave the code that calls. */
class Exit {}

const code = (value) => `code ${Number(value ?? 0) & 255}`;

function currentDirectory() {
  try {
    return process.cwd();
  } catch {
    return undefined; // removed
  }
}

/** Enters the directory, if one is given; what comes back returns, unless the code went elsewhere. */
function enter(directory) {
  if (!directory) return () => {};
  const before = currentDirectory();
  process.chdir(directory);
  const there = currentDirectory();
  return () => {
    if (before === undefined || currentDirectory() !== there) return;
    try {
      process.chdir(before);
    } catch {
      // The cell removed it.
    }
  };
}

/** Sets variables of one cell; what comes back restores them, unless the code changed them. */
function overlay(pairs) {
  const { env } = process;
  const saved = [];
  for (let at = 0; at + 1 < pairs.length; at += 2) {
    const [name, value] = pairs.slice(at, at + 2);
    saved.push([name, value, env[name]]);
    env[name] = value;
  }
  return () => {
    for (const [name, value, before] of saved.reverse()) {
      if (env[name] !== value) continue;
      if (before === undefined) delete env[name];
      else env[name] = before;
    }
  };
}

/** Standard input of the cells: the streams on it remember its end, so each cell gets its own. */
function useInput(path) {
  fs.closeSync(0);
  fs.openSync(path || "/dev/null", fs.constants.O_RDONLY); // the lowest free descriptor
  let stream;
  process.stdin = undefined; // bun would make its own only to replace it
  Object.defineProperty(process, "stdin", {
    configurable: true,
    enumerable: true,
    get: () => (stream ??= Object.assign(fs.createReadStream("", { fd: 0, autoClose: false }), { isTTY: false })),
    set: (value) => (stream = value),
  });
  Bun.stdin = Bun.file(0);
  console[Symbol.asyncIterator] = async function* () {
    const { createInterface } = await import("node:readline");
    yield* createInterface({ input: process.stdin, crlfDelay: Infinity });
  };
}

/** Waits for output that the code has left to the event loop. */
function flushed(stream) {
  if (!stream?.writableLength || stream.destroyed) return;
  return new Promise((resolve) => {
    stream.once("close", resolve);
    stream.write("", resolve);
  });
}

const write = console.error.bind(console); // the code may put another in its place
const print = (text) => write("%s", text);

/** The frames of an error that are in cells, without the function that a cell was put into. */
function framesOf(error) {
  const frames = String(error.stack).match(/^ +at .*$/gm) ?? [];
  const last = frames.findLastIndex((frame) => frame.includes("<cell "));
  const shown = frames.slice(0, last + 1).map((frame) => frame.trim());
  if (/^at <cell /.test(shown.at(-1)) && shown.at(-2)?.startsWith("at <anonymous> (<cell ")) shown.pop();
  if (shown.length) shown.push(shown.pop().replace(/^at (?:async )?<anonymous> \((<cell .*)\)$/, "at $1"));
  return shown;
}

/** What bun prints of an uncaught error, with the frames and lines of cells only. */
function describe(error, sources) {
  // Previews would show what the cell was rewritten to.
  const text = Bun.inspect(error, { colors: false }).replace(/^(?: *\d+ \| .*\n)+ *\^\n/gm, "");
  if (!Error.isError(error)) return `error: ${typeof error === "string" ? error : text}`;
  const frames = framesOf(error);
  const shown = frames.map((frame) => `\n      ${frame}`);
  const [, number, line] = /<cell (\d+)>:(\d+)/.exec(frames[0]) ?? [];
  const content = sources.get(Number(number))?.split("\n")[line - 1];
  const preview = content === undefined ? "" : `${line} | ${content}\n`;
  const [head] = text.split(/\n {6}at /, 1);
  const rest = text.slice(head.length).replace(/^(?:\n {6}at .*)+/, "");
  return preview + head + shown.join("") + rest.trimEnd();
}

/** What bun prints of a cell that is no program. */
function refusal(error, number) {
  return Bun.inspect(error, { colors: false }).replaceAll("input.ts", `<cell ${number}>`).trimEnd();
}

async function serve({ control, end, tell, words, fields, restoreLines, passEnvironment, first }) {
  const transpiler = new Bun.Transpiler({ loader: "ts", replMode: true, define: { "import.meta": META } });
  const sources = new Map();

  /** Ends the running cell with this answer. */
  let finish = () => {};
  const exit = (value) => {
    if (value !== undefined) process.exitCode = value;
    finish(code(process.exitCode));
    throw new Exit();
  };
  process.exit = exit;
  process.reallyExit = exit;
  const uncaught = (error) => {
    if (!(error instanceof Exit)) print(describe(error, sources));
  };
  process.on("uncaughtException", uncaught);
  process.on("unhandledRejection", uncaught);
  process.on("SIGINT", () => finish(`signal ${SIGINT}`));
  passEnvironment(() => process.env);

  const path = `${HOME}/cell.ts`;
  const require = createRequire(path);
  const hidden = { configurable: true, writable: true };
  Object.defineProperty(globalThis, "require", { ...hidden, value: require });
  Object.defineProperty(globalThis, META, {
    ...hidden,
    value: {
      dir: HOME,
      dirname: HOME,
      env: process.env,
      file: "cell.ts",
      filename: path,
      main: true,
      path,
      require,
      resolve: (specifier) => Bun.pathToFileURL(Bun.resolveSync(specifier, HOME)).href,
      url: `file://${path}`,
    },
  });
  const importModuleDynamically = (specifier, _script, attributes) =>
    import(Bun.resolveSync(specifier, HOME), { with: attributes });

  async function evaluate(number, source) {
    let script;
    try {
      // Without the semicolon, a block at the begin would be taken for an object.
      const text = restoreLines(source, transpiler.transformSync(`${source}\n;`));
      script = new vm.Script(text, { filename: `<cell ${number}>`, importModuleDynamically });
    } catch (error) {
      print(refusal(error, number));
      return code(1);
    }
    sources.set(number, source);
    try {
      const result = script.runInThisContext();
      if (result instanceof Promise) await result;
      return code(process.exitCode);
    } catch (error) {
      if (error instanceof Exit) return code(process.exitCode);
      print(describe(error, sources));
      return code(1);
    }
  }

  async function run(number, [directory, stdin, source, ...pairs]) {
    let leave;
    try {
      leave = enter(directory);
    } catch {
      return "directory";
    }
    useInput(stdin);
    const restore = overlay(pairs);
    process.exitCode = 0;
    tell(`begun ${number}`);
    const ended = new Promise((resolve) => (finish = resolve));
    const answer = await Promise.race([evaluate(number, source), ended]);
    finish = () => {};
    process.exitCode = 0;
    restore();
    leave();
    if (stdin) useInput("");
    await flushed(process.stdout);
    await flushed(process.stderr);
    return answer;
  }

  const answer = async ([, number, size]) => tell(`cell ${number} ${await run(Number(number), fields(Number(size)))}`);
  await Bun.connect({
    fd: control,
    socket: {
      data: (_socket, line) => void answer(words(line.latin1Slice())),
      close: end,
    },
  });
  await answer(["C", ...first]);
  return new Promise(() => {});
}

module.exports = { serve };
