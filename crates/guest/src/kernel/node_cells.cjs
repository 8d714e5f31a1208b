// Runs cells one after the other in one global scope, for the guest.
//
// The engine's own console mode evaluates them, through an inspector session within the process: it
// allows top-level await and declaring anew what an earlier cell declared. Before that, imports are
// replaced (imports.mjs). Code of a cell can forge an answer, and so end its own cell early: it
// deceives nobody else.

"use strict";

const fs = require("node:fs");
const { Session } = require("node:inspector");
const Module = require("node:module");
const { Socket } = require("node:net");
const process = require("node:process");
const { URL, pathToFileURL } = require("node:url");
const v8 = require("node:v8");
const vm = require("node:vm");
const { Traces } = require("./node_traces.cjs");

/** Looked up before cells put others in their places. */
const { Number, Object, Promise, Set } = globalThis;
const { nextTick } = process;

const SIGINT = 2;

/** What node reports where a top-level `await` can never be settled. */
const UNSETTLED = 13;

/** Thrown by exit calls, to stop the code that calls them. Never shown. */
class Exit {}

/** What answers of cells say. */
const code = (number) => `code ${number & 255}`;

function currentDirectory() {
  try {
    return process.cwd();
  } catch {
    return undefined; // removed
  }
}

/** The kernel's standard input: what the cell was given, then nothing. */
class Input {
  #isGiven = true;
  #stream;

  constructor() {
    this.use("");
    const get = () => (this.#stream ??= this.#open());
    Object.defineProperty(process, "stdin", { configurable: true, enumerable: true, get });
  }

  #open() {
    if (fs.fstatSync(0).isFIFO()) return new Socket({ fd: 0, readable: true, writable: false, manualStart: true });
    return fs.createReadStream(null, { fd: 0, autoClose: false });
  }

  use(path) {
    const isGiven = fs.existsSync(path);
    if (!isGiven && !this.#isGiven && !this.#stream) return;
    this.#stream?.destroy();
    this.#stream = undefined;
    this.#isGiven = isGiven;
    // An opened file gets the lowest descriptor that is free.
    fs.closeSync(0);
    fs.openSync(isGiven ? path : "/dev/null");
  }
}

/** What cells find as `require`, `import()` and the like: as in a module in the working directory. */
class Modules {
  #directory;
  #globals = {};
  #setImport;

  constructor(name) {
    // A variable of the script scope is a property of nothing, where it could be seen.
    this.#setImport = vm.runInThisContext(`let ${name}; (value) => { ${name} = value }`);
  }

  /** Follows the working directory. */
  refresh() {
    const dirname = currentDirectory();
    if (dirname === this.#directory || dirname === undefined) return;
    this.#directory = dirname;
    const filename = `${dirname}/cell.cjs`;
    const url = pathToFileURL(filename).href;
    const module = new Module(filename);
    module.filename = filename;
    module.paths = Module._nodeModulePaths(dirname);
    module._compile("exports.load = (name, options) => import(name, options); exports.require = require", filename);
    const { load, require } = module.exports;
    module.exports = {};
    const resolve = (name) => {
      if (/^[./]|^\w+:/.test(name)) return new URL(name, url).href;
      return Module.isBuiltin(name) ? `node:${name}` : pathToFileURL(require.resolve(name)).href;
    };
    const meta = { __proto__: null, dirname, filename, resolve, url };
    this.#setImport(Object.defineProperty(load, "meta", { value: meta }));
    this.#define({ require, module, exports: module.exports, __dirname: dirname, __filename: filename });
  }

  #define(values) {
    for (const [name, value] of Object.entries(values)) {
      if (globalThis[name] !== this.#globals[name]) continue; // the code has put its own there
      this.#globals[name] = value;
      Object.defineProperty(globalThis, name, { value, writable: true, configurable: true });
    }
  }
}

/** Sets what belongs to one cell only; what comes back restores it, unless the code changed it. */
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
      if (process.env[name] !== value) continue;
      if (before === undefined) delete process.env[name];
      else process.env[name] = before;
    }
  };
}

/** Output that the code has left to the event loop. */
function flushed(stream) {
  if (!stream?.writableLength || stream.destroyed) return;
  return new Promise((resolve) => {
    stream.once("close", resolve);
    stream.write("", resolve);
  });
}

/** Evaluates programs in the engine's console mode. */
class Evaluator {
  #session = new Session();
  #unsettled = new Set();

  constructor() {
    this.#session.connect();
  }

  /**
   * Evaluates as soon as the caller has returned: `started` gets the promise of the program, or the
   * inspector's account of why it is none. The inspector waits for the promise too, and brings node
   * down when it is collected as garbage: therefore it is kept, for ever if nothing settles it.
   */
  begin(expression, started) {
    let promise;
    let details;
    let stop;
    const { post } = this.#session;
    const parameters = { expression, replMode: true, awaitPromise: true, objectGroup: "cell" };
    const settled = (_, answer) => {
      this.#unsettled.delete(promise);
      details = answer?.exceptionDetails;
    };
    nextTick(() => (stop = v8.promiseHooks.onInit((created) => (promise ??= created))));
    // Bound functions show in no trace.
    nextTick(post.bind(this.#session, "Runtime.evaluate", parameters, settled));
    nextTick(() => {
      stop();
      if (promise) this.#unsettled.add(promise);
      started(promise, details);
    });
  }

  /** Lets go of what the last program gave. */
  release() {
    this.#session.post("Runtime.releaseObjectGroup", { objectGroup: "cell" });
  }
}

/** Goes through what the first cell goes through, so that it is in memory by then. */
exports.warm = (imports) => {
  const session = new Session();
  session.connect();
  session.post("Runtime.evaluate", { expression: imports.rewrite("import('node:os')"), replMode: true });
  session.disconnect();
};

exports.serve = ({ CONTROL, tell, words, fields, useProxy, imports, first }) => {
  const { listenerCount, listeners, on, stdout, stderr } = process;
  const { then } = Promise.prototype;
  const print = stderr.write.bind(stderr);
  const traces = new Traces();
  const evaluator = new Evaluator();
  const modules = new Modules(imports.NAME);
  const input = new Input();
  const control = new Socket({ fd: CONTROL });

  /** Ends the running cell with this answer. */
  let finish = () => {};
  let running;

  function exit(value) {
    if (value !== undefined) process.exitCode = value;
    finish(code(process.exitCode ?? 0));
    throw new Exit();
  }
  process.exit = exit;
  process.reallyExit = exit;
  process.argv.length = 1;

  const ours = {
    SIGINT: () => finish(`signal ${SIGINT}`),
    beforeExit() {
      // Nothing is left that could settle what the cell waits for.
      print(`Warning: Detected unsettled top-level await at ${Traces.tag(running)}\n`);
      finish(code(UNSETTLED));
    },
  };
  /** Again for each cell: code may have removed all listeners. */
  function listen() {
    for (const [event, listener] of Object.entries(ours)) {
      if (!listeners.call(process, event).includes(listener)) on.call(process, event, listener);
    }
  }

  /** From where an error comes that nobody caught; node tells it to this one only. */
  let origin;
  const { _fatalException: fatal } = process;
  process._fatalException = (error, isFromPromise) => {
    origin = isFromPromise ? "unhandledRejection" : "uncaughtException";
    return fatal.call(process, error, isFromPromise);
  };
  process.setUncaughtExceptionCaptureCallback((error) => {
    if (error instanceof Exit) return;
    const isHeard = listenerCount.call(process, "uncaughtException") > 0;
    try {
      if (isHeard) process.emit("uncaughtException", error, origin);
      else print(traces.describe(error));
    } catch (another) {
      // From here it would end node.
      if (!(another instanceof Exit)) print(traces.describe(another));
    }
  });

  function evaluate(number, source, resolve) {
    traces.add(number, source);
    const expression = `${imports.rewrite(source)}\n//# sourceURL=${Traces.tag(number)}`;
    evaluator.begin(expression, (promise, details) => {
      if (!promise) {
        print(traces.refusal(details, number));
        return resolve(code(1));
      }
      const fulfilled = () => resolve(code(process.exitCode ?? 0));
      const rejected = (error) => {
        if (error instanceof Exit) return;
        print(traces.describe(error));
        resolve(code(1));
      };
      then.call(promise, fulfilled, rejected);
    });
  }

  async function run(number, [directory, stdin, source, ...pairs]) {
    const before = currentDirectory();
    if (directory) {
      try {
        process.chdir(directory);
      } catch {
        return "directory";
      }
    }
    const there = currentDirectory();
    modules.refresh();
    input.use(stdin);
    listen();
    const restore = overlay(pairs);
    const withoutProxy = useProxy();
    process.exitCode = undefined;
    tell(`begun ${number}`);
    running = number;
    control.unref();
    const answer = await new Promise((resolve) => {
      finish = resolve;
      evaluate(number, source, resolve);
    });
    control.ref();
    finish = () => {};
    process.exitCode = undefined;
    withoutProxy?.();
    restore();
    if (directory && before !== undefined && currentDirectory() === there) {
      try {
        process.chdir(before);
      } catch {
        // The cell removed it.
      }
    }
    if (stdin) input.use("");
    await flushed(stdout);
    await flushed(stderr);
    return answer;
  }

  async function answer([number, size]) {
    tell(`cell ${number} ${await run(number, fields(Number(size)))}`);
    evaluator.release();
  }

  control.setEncoding("latin1");
  control.on("data", (line) => answer(words(line).slice(1)));
  control.on("close", () => process.kill(process.pid, "SIGKILL"));
  control.on("error", () => {});
  answer(first);
};
