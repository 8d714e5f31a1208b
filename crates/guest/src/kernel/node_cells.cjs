// Runs cells one after the other in one global scope, for the guest.
//
// The engine's own console mode evaluates cells, through an inspector session within the process: it allows top-level
// await and declaring anew what an earlier cell declared. Before that, imports are replaced (imports.mjs). Code of a
// cell can forge an answer, and so end its own cell early: only that code is deceived.

"use strict";

const { AsyncLocalStorage } = require("node:async_hooks");
const EventEmitter = require("node:events");
const { Session } = require("node:inspector");
const Module = require("node:module");
const { Socket } = require("node:net");
const process = require("node:process");
const { URL, pathToFileURL } = require("node:url");
const v8 = require("node:v8");
const vm = require("node:vm");
const { Input, Outputs } = require("./node_stdio.cjs");
const { Traces } = require("./node_traces.cjs");
const { observeWorkers, scan } = require("./node_work.cjs");

/** Looked up before cells put others in their places. */
const { Number, Object, Promise, Proxy, Reflect, Set, eval: evaluateText } = globalThis;
const { nextTick } = process;

const SIGINT = 2;

const major = Number.parseInt(process.versions.node);

/** The code with which node ends if a top-level `await` can never be settled. */
const UNSETTLED = 13;

/** Functions that only code of a module can provide. */
const FROM_MODULE = `
  exports.call = (call, ...words) => call(...words);
  exports.load = (name, options) => import(name, options);
  exports.require = require;
  //# sourceURL=node:internal/cells
`;

/** The `require`, `import()` and the like of cells, which behave as in a module in the working directory. */
class Modules {
  #directory;
  #globals = {};
  #setImport;
  /** Calls a function from a module's code, because functions made there know from where they import. */
  #call;
  #helpers;
  #currentDirectory;

  constructor({ NAME: name, helpers, currentDirectory }) {
    this.#helpers = helpers;
    this.#currentDirectory = currentDirectory;
    this.#replaceConstructors();
    // A variable of the script scope is no property of any object, where code could see it.
    this.#setImport = vm.runInThisContext(`let ${name}; (value) => { ${name} = value }`);
  }

  /** Follows the working directory. */
  refresh() {
    const dirname = this.#currentDirectory();
    if (dirname === this.#directory || dirname === undefined) return;
    this.#directory = dirname;
    const filename = `${dirname}/cell.cjs`;
    const url = pathToFileURL(filename).href;
    const module = new Module(filename);
    module.filename = filename;
    module.paths = Module._nodeModulePaths(dirname);
    module._compile(FROM_MODULE, filename);
    const { call, load, require } = module.exports;
    this.#call = call;
    module.exports = {};
    const resolve = (name) => {
      if (/^[./]|^\w+:/.test(name)) return new URL(name, url).href;
      return Module.isBuiltin(name) ? `node:${name}` : pathToFileURL(require.resolve(name)).href;
    };
    const meta = { __proto__: null, dirname, filename, resolve, url };
    const evaluate = (source) => call(evaluateText, source);
    this.#setImport(Object.assign(load, { ...this.#helpers, evaluate, meta }));
    this.#define({ require, module, exports: module.exports, __dirname: dirname, __filename: filename });
  }

  /** Replaces the constructors of functions, and `eval` in calls that do not know the names around them. */
  #replaceConstructors() {
    const apply = (target, _self, words) => this.#call(target, ...words);
    const construct = (target, words, newTarget) => this.#call(Reflect.construct, target, words, newTarget);
    for (const sample of [function () {}, async function () {}, function* () {}, async function* () {}]) {
      const prototype = Object.getPrototypeOf(sample);
      const value = new Proxy(prototype.constructor, { apply, construct });
      Object.defineProperty(prototype, "constructor", { value });
      if (prototype === Object.getPrototypeOf(Object)) globalThis.Function = value;
    }
  }

  #define(values) {
    for (const [name, value] of Object.entries(values)) {
      if (globalThis[name] !== this.#globals[name]) continue; // the code has put its own there
      this.#globals[name] = value;
      Object.defineProperty(globalThis, name, { value, writable: true, configurable: true });
    }
  }
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
  const { listeners, on, stdout, stderr } = process;
  const { then } = Promise.prototype;
  const { Exit, code, enter, overlay, flushed } = imports;
  const print = stderr.write.bind(stderr);
  const traces = new Traces();
  const evaluator = new Evaluator();
  const modules = new Modules(imports);
  const input = new Input();
  const outputs = new Outputs([stdout, stderr]);
  const control = new Socket({ fd: CONTROL });
  // Before, the engine had to look at every promise for that.
  const context = major >= 24 ? AsyncLocalStorage : undefined;
  const background = new imports.Background(scan([stdout, stderr, control]), context);
  background.observe(globalThis, require("node:timers"));
  observeWorkers();
  Module.syncBuiltinESMExports();

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
  // If code uses domains, node takes its own call of `beforeExit` for deprecated.
  const { emitWarning } = process;
  process.emitWarning = function (...given) {
    if (!given.includes("DEP0097")) Reflect.apply(emitWarning, this, given);
  };

  const ours = {
    SIGINT: () => finish(`signal ${SIGINT}`),
    // Without a listener, node opens its debugger.
    SIGUSR1() {},
    beforeExit() {
      if (background.isWaiting) return background.drained();
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

  /** Whether node is about to end because of an uncaught error. */
  let isFatal = false;
  const { _fatalException: fatal } = process;
  process._fatalException = (...given) => {
    isFatal = true;
    try {
      return fatal.apply(process, given);
    } finally {
      isFatal = false;
    }
  };
  /** Has node take every error of a cell for one that is listened for; exits are no errors. */
  function emit(event, ...values) {
    const [error] = values;
    if (error instanceof Exit) return true;
    if (event === "beforeExit" && background.isWaiting) return ours.beforeExit();
    const given = [event, ...values];
    if (!isFatal || event !== "uncaughtException") return Reflect.apply(EventEmitter.prototype.emit, process, given);
    isFatal = false;
    try {
      if (!Reflect.apply(EventEmitter.prototype.emit, process, given)) print(traces.describe(error));
    } catch (another) {
      if (!(another instanceof Exit)) print(traces.describe(another));
    }
    return true;
  }
  Object.defineProperty(process, "emit", { value: emit, writable: true, configurable: true });

  function evaluate(number, source, resolve) {
    traces.add(number, source);
    const expression = `${imports.rewrite(source, true)}\n//# sourceURL=${Traces.tag(number)}`;
    evaluator.begin(expression, (promise, details) => {
      if (!promise) {
        print(traces.refusal(details, number));
        return resolve(code(1));
      }
      // Callbacks of promises that run at this moment may exit.
      const fulfilled = () => nextTick(() => background.wait(ended));
      const ended = (note) => {
        if (note) print(`${note}\n`);
        resolve(code(process.exitCode ?? 0));
      };
      const rejected = (error) => {
        if (error instanceof Exit) return;
        print(traces.describe(error));
        resolve(code(1));
      };
      then.call(promise, fulfilled, rejected);
    });
  }

  async function run(number, limit, [directory, stdin, source, ...pairs]) {
    let leave;
    try {
      leave = enter(directory);
    } catch {
      return "directory";
    }
    modules.refresh();
    outputs.mend();
    input.use(stdin);
    listen();
    const restore = overlay(pairs);
    const withoutProxy = useProxy();
    process.exitCode = undefined;
    tell(`begun ${number}`);
    running = number;
    control.unref();
    background.begin(limit);
    const answer = await new Promise((resolve) => {
      finish = resolve;
      background.run(() => evaluate(number, source, resolve));
    });
    control.ref();
    finish = () => {};
    background.end();
    process.exitCode = undefined;
    withoutProxy?.();
    restore();
    leave();
    if (stdin) input.use("");
    await flushed(stdout);
    await flushed(stderr);
    return answer;
  }

  async function answer([number, size, limit]) {
    tell(`cell ${number} ${await run(number, Number(limit), fields(Number(size)))}`);
    evaluator.release();
  }

  control.setEncoding("latin1");
  control.on("data", (line) => answer(words(line).slice(1)));
  control.on("close", () => process.kill(process.pid, "SIGKILL"));
  control.on("error", () => {});
  answer(first);
};

// In traces of what it calls.
//# sourceURL=node:internal/cells
