// Runs cells one after the other in bun's global scope, for the guest.
//
// After imports are replaced (imports.mjs), bun's transpiler rewrites a cell, which may be TypeScript,
// into a script: names that it declares become variables of the global scope, which later cells may
// declare again, the rest a function that may await. The event loop goes on between cells.

"use strict";

const { AsyncLocalStorage } = require("node:async_hooks");
const { ChildProcess } = require("node:child_process");
const http = require("node:http");
const net = require("node:net");
const timers = require("node:timers");
const vm = require("node:vm");
const threads = require("node:worker_threads");
const { CellRunner, exitAnswer, flush, keepListeners } = require("../javascript/cells.mjs");
const { Exit, NAME, rewrite } = require("../javascript/imports.mjs");
const { Background, Handles } = require("../javascript/work.mjs");
const { passEnvironment } = require("./environment.js");
const { describe, refusal } = require("./errors.js");
const { restoreLines } = require("./lines.js");
const { UNHANDLED, separateListeners } = require("./listeners.js");
const { Modules } = require("./modules.js");
const { Input, Outputs } = require("./stdio.js");

/** Looked up before cells put others in their places: what they declare is global. */
const { Bun, Map, Object, Promise, console, process, setImmediate } = globalThis;
const { nextTick, rawListeners, stderr, stdout } = process;

const SIGINT = 2;

const write = console.error.bind(console); // the code may put another in its place
const print = (text) => write("%s", text);

/** Hands on what bun itself holds back of a stream. */
async function release(stream) {
  if (!stream || stream.destroyed) return;
  // Bun writes past the stream, and does not count in it what waits.
  const [sink] = Object.getOwnPropertySymbols(stream).flatMap((symbol) => (stream[symbol]?.sinkId ? [stream[symbol]] : []));
  try {
    await sink?.flush();
  } catch {
    // The code has closed it.
  }
}

/** Names of CommonJS that are the importer's, as no function is around a cell. */
const DEFINED = { __dirname: `${NAME}.meta.dirname`, __filename: `${NAME}.meta.filename` };

const transpiler = new Bun.Transpiler({ loader: "ts", replMode: true, define: DEFINED });

function transpile(source) {
  try {
    // Without the semicolon, a block at the begin would be taken for an object.
    return transpiler.transformSync(`${source}\n;`);
  } catch (error) {
    transpiler.transformSync(source); // fails with lines of the source only
    throw error;
  }
}

function observeHandles(handles) {
  handles.observe({
    engine: Bun,
    listeners: ["listen", "serve"],
    connectors: ["connect"],
    servers: [net.Server, http.Server],
    net,
    spawn: Bun,
    hasInput: (child) => child.stdin,
    ChildProcess,
    workers: [globalThis, threads],
    workerHandle: (worker) => worker,
  });
}

/** Runs cells in bun. */
class Cells extends CellRunner {
  #modules = new Modules();
  #background;
  /** The sources of cells, by number. */
  #sources = new Map();
  /** The socket to the guest. */
  #socket;
  /** Listeners that the code has added for events of which bun tells too much. */
  #separate;
  /** Listeners of the process. */
  #listeners = {
    SIGINT: () => this.finish(`signal ${SIGINT}`),
    beforeExit: () => this.#noticeDrain(),
    [UNHANDLED]: (error, promise) => {
      if (!(error instanceof Exit) && !this.#separate.emit(UNHANDLED, error, promise)) this.#show(error);
    },
  };

  constructor({ libc, send, readMailbox }) {
    const handles = new Handles();
    const background = new Background(() => handles.scan(), AsyncLocalStorage);
    background.observe(globalThis, timers);
    const outputs = new Outputs(libc, [stdout, stderr]);
    super({ send, readMailbox, input: new Input(libc), outputs, background, Exit });
    this.#background = background;
    this.#separate = separateListeners(() => keepListeners(this.#listeners));
    process.exit = this.exit;
    process.reallyExit = this.exit;
    process.setUncaughtExceptionCaptureCallback((error) => this.#handleUncaught(error));
    passEnvironment(() => process.env);
    observeHandles(handles);
  }

  #show(error) {
    if (!(error instanceof Exit)) print(describe(error, this.#sources));
  }

  #handleUncaught(error) {
    if (error instanceof Exit) return;
    try {
      const heard = rawListeners.call(process, "uncaughtException");
      if (heard.length === 0) this.#show(error);
      // Emitted, what they throw would end bun.
      for (const listener of heard) listener.call(process, error, "uncaughtException");
    } catch (another) {
      this.#show(another);
    }
  }

  /** Ends the wait of a cell when bun has nothing left to do, and keeps bun from ending. */
  #noticeDrain() {
    // Bun tells of the last rejections in the next turn.
    if (this.#background.isWaiting) setImmediate(() => this.#background.drained());
    // Only a signal, or a timeout, can end the cell.
    this.#socket.ref();
  }

  prepare() {
    keepListeners(this.#listeners);
    this.#modules.refresh();
  }

  releaseLoop() {
    this.#socket.unref();
  }

  holdLoop() {
    this.#socket.ref();
  }

  resetExitCode() {
    process.exitCode = 0;
  }

  evaluate(number, source, resolve) {
    void this.#evaluate(number, source, resolve);
  }

  #compile(number, source) {
    const plain = rewrite(source);
    const importModuleDynamically = (specifier, _script, attributes) =>
      this.#modules.load(specifier, { with: attributes });
    return new vm.Script(restoreLines(plain, transpile(plain)), { filename: `<cell ${number}>`, importModuleDynamically });
  }

  async #evaluate(number, source, resolve) {
    let script;
    try {
      script = this.#compile(number, source);
    } catch (error) {
      print(refusal(error, number, source));
      return resolve(exitAnswer(1));
    }
    this.#sources.set(number, source);
    const ended = (note) => {
      if (note) print(note);
      resolve(exitAnswer(process.exitCode));
    };
    try {
      const result = script.runInThisContext();
      await (result instanceof Promise ? result : undefined);
      // Callbacks of promises that run at this moment may exit.
      nextTick(() => this.#background.wait(ended));
    } catch (error) {
      this.#show(error);
      resolve(exitAnswer(error instanceof Exit ? process.exitCode : 1));
    }
  }

  async flush() {
    for (const stream of [stdout, stderr]) {
      await release(stream);
      await flush(stream);
    }
  }

  /** Runs the cell of the first request, given as its numbers, and then those that come by the socket to the guest. */
  async serve(first, { control, splitWords, end }) {
    const data = (_socket, line) => void this.answer(splitWords(line.latin1Slice()).slice(1));
    this.#socket = await Bun.connect({ fd: control, socket: { data, close: end } });
    void this.answer(first);
  }
}

/** Runs the cells that the guest asks for. `first` holds the numbers of the first request. */
const serve = (first, connection) => new Cells(connection).serve(first, connection);

module.exports = { serve };
