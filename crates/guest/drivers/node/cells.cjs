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
const timers = require("node:timers");
const v8 = require("node:v8");
const { CONTROL, readMailbox, send, splitWords } = require("./control.cjs");
const { observeWorkers, scan } = require("./handles.cjs");
const { Modules } = require("./modules.cjs");
const { useProxy } = require("./proxy.cjs");
const { Background, CellRunner, Exit, exitAnswer, flush, keepListeners, rewrite } = require("./shared.cjs");
const { Input, Outputs } = require("./stdio.cjs");
const { Traces } = require("./traces.cjs");

/** Looked up before cells put others in their places. */
const { Number, Object, Promise, Reflect, Set } = globalThis;
const { nextTick, stderr, stdout } = process;
const { then } = Promise.prototype;

const SIGINT = 2;

const major = Number.parseInt(process.versions.node);

/** The code with which node ends if a top-level `await` can never be settled. */
const UNSETTLED = 13;

const print = stderr.write.bind(stderr);

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

/** Runs cells in node. */
class Cells extends CellRunner {
  #traces = new Traces();
  #evaluator = new Evaluator();
  #modules = new Modules();
  #background;
  /** The socket to the guest. */
  #control;
  /** The number of the running cell. */
  #running;
  /** Whether node is about to end because of an uncaught error. */
  #isFatal = false;
  /** Listeners of the process. */
  #listeners = {
    SIGINT: () => this.finish(`signal ${SIGINT}`),
    // Without a listener, node opens its debugger.
    SIGUSR1() {},
    beforeExit: () => this.#noticeDrain(),
  };

  constructor() {
    const control = new Socket({ fd: CONTROL });
    // Before, the engine had to look at every promise for that.
    const context = major >= 24 ? AsyncLocalStorage : undefined;
    const background = new Background(scan([stdout, stderr, control]), context);
    super({ send, readMailbox, input: new Input(), outputs: new Outputs([stdout, stderr]), background, Exit });
    this.#control = control;
    this.#background = background;
    background.observe(globalThis, timers);
    observeWorkers();
    Module.syncBuiltinESMExports();
    this.#replaceExits();
    this.#replaceEmit();
  }

  #replaceExits() {
    process.exit = this.exit;
    process.reallyExit = this.exit;
    process.argv.length = 1;
    // If code uses domains, node takes its own call of `beforeExit` for deprecated.
    const { emitWarning } = process;
    process.emitWarning = function (...given) {
      if (!given.includes("DEP0097")) Reflect.apply(emitWarning, this, given);
    };
  }

  #replaceEmit() {
    const { _fatalException: fatal } = process;
    process._fatalException = (...given) => {
      this.#isFatal = true;
      try {
        return fatal.apply(process, given);
      } finally {
        this.#isFatal = false;
      }
    };
    const emit = (...given) => this.#emit(...given);
    Object.defineProperty(process, "emit", { value: emit, writable: true, configurable: true });
  }

  /** Has node take every error of a cell for one that is listened for; exits are no errors. */
  #emit(event, ...values) {
    const [error] = values;
    if (error instanceof Exit) return true;
    if (event === "beforeExit" && this.#background.isWaiting) return this.#noticeDrain();
    const given = [event, ...values];
    if (!this.#isFatal || event !== "uncaughtException") {
      return Reflect.apply(EventEmitter.prototype.emit, process, given);
    }
    this.#isFatal = false;
    try {
      if (!Reflect.apply(EventEmitter.prototype.emit, process, given)) print(this.#traces.describe(error));
    } catch (another) {
      if (!(another instanceof Exit)) print(this.#traces.describe(another));
    }
    return true;
  }

  /** Ends the running cell when node has nothing left to do. */
  #noticeDrain() {
    if (this.#background.isWaiting) return this.#background.drained();
    // Nothing is left that could settle what the cell waits for.
    print(`Warning: Detected unsettled top-level await at ${Traces.tag(this.#running)}\n`);
    this.finish(exitAnswer(UNSETTLED));
  }

  prepare(number) {
    this.#running = number;
    this.#modules.refresh();
    keepListeners(this.#listeners);
  }

  useNetwork() {
    return useProxy();
  }

  releaseLoop() {
    this.#control.unref();
  }

  holdLoop() {
    this.#control.ref();
  }

  evaluate(number, source, resolve) {
    this.#traces.add(number, source);
    const expression = `${rewrite(source, true)}\n//# sourceURL=${Traces.tag(number)}`;
    this.#evaluator.begin(expression, (promise, details) => {
      if (!promise) {
        print(this.#traces.refusal(details, number));
        return resolve(exitAnswer(1));
      }
      // Callbacks of promises that run at this moment may exit.
      const fulfilled = () => nextTick(() => this.#background.wait(ended));
      const ended = (note) => {
        if (note) print(`${note}\n`);
        resolve(exitAnswer(process.exitCode));
      };
      const rejected = (error) => {
        if (error instanceof Exit) return;
        print(this.#traces.describe(error));
        resolve(exitAnswer(1));
      };
      then.call(promise, fulfilled, rejected);
    });
  }

  async flush() {
    await flush(stdout);
    await flush(stderr);
  }

  async answer(request) {
    await super.answer(request);
    this.#evaluator.release();
  }

  /** Runs the cell of the first request, given as its numbers, and then those that follow. */
  serve(first) {
    this.#control.setEncoding("latin1");
    this.#control.on("data", (line) => this.answer(splitWords(line).slice(1)));
    this.#control.on("close", () => process.kill(process.pid, "SIGKILL"));
    this.#control.on("error", () => {});
    void this.answer(first);
  }
}

/** Goes through what the first cell goes through, so that it is in memory by then. */
exports.warmUp = () => {
  const session = new Session();
  session.connect();
  session.post("Runtime.evaluate", { expression: rewrite("import('node:os')"), replMode: true });
  session.disconnect();
};

/** Runs the cells that the guest asks for. `first` holds the numbers of the first request. */
exports.serve = (first) => new Cells().serve(first);

// In traces of what it calls.
//# sourceURL=node:internal/cells
