// Runs cells one after the other in one global scope, for the guest.
//
// The engine's own console mode evaluates them, through an inspector session within the process: it allows top-level await and declaring anew what an
// earlier cell declared. Before that, imports are replaced (imports.mjs) and types are erased, which leaves every
// position as it is. Only what cannot be erased, as enums, is translated, and traces are mapped back.
//
// Code of a cell can forge an answer, and so end its own cell early: only that code is deceived.

import { AsyncLocalStorage } from "node:async_hooks";
import { ChildProcess } from "node:child_process";
import EventEmitter from "node:events";
import { Session } from "node:inspector";
import { syncBuiltinESMExports } from "node:module";
import net from "node:net";
import timers from "node:timers";
import v8 from "node:v8";
import { CellRunner, currentDirectory, exitAnswer, flush } from "../javascript/cells.mjs";
import { Exit, NAME, rewrite } from "../javascript/imports.mjs";
import { Background, Handles } from "../javascript/work.mjs";
import { libc, readMailbox, receiveLater, send } from "./control.mjs";
import { HOME, makeImporter } from "./importer.mjs";
import { Network } from "./network.mjs";
import { Input, Outputs } from "./stdio.mjs";
import { Traces } from "./traces.mjs";
import { translate, translateAll } from "./translate.mjs";

/** Looked up before cells put others in their places. */
const { addEventListener, clearTimeout, console, Deno, Number, Object, process, Promise } = globalThis;
const { queueMicrotask, Reflect, Set, setTimeout, String } = globalThis;
const { nextTick } = process;

const SIGINT = 2;

/** The longest time of a timer, in milliseconds. */
const FOREVER = 2 ** 31 - 1;

const write = console.error.bind(console);

function print(text) {
  try {
    write(text);
  } catch {
    // The code has closed it.
  }
}

/** Returns whether a child process was given a pipe to read from. */
function hasInput(child) {
  try {
    return Boolean(child.stdin);
  } catch {
    return false;
  }
}

function observeHandles(handles) {
  const { Worker } = globalThis;
  // The method that node's workers use.
  const method = Object.getOwnPropertySymbols(Worker.prototype).find((symbol) => !symbol.description);
  handles.observe({
    engine: Deno,
    listeners: ["listen", "listenDatagram", "listenTls", "serve"],
    connectors: ["connect", "connectTls"],
    servers: [net.Server],
    net,
    spawn: Deno.Command.prototype,
    hasInput,
    ChildProcess,
    workers: method ? [globalThis] : [],
    workerHandle: (worker) => ({ ref: () => worker[method](true), unref: () => worker[method](false) }),
  });
}

/** Evaluates programs in the engine's console mode. */
export class Evaluator {
  #session = new Session();
  /**
   * Promises of programs that have not ended. The inspector waits for the promise of a program, too, and brings deno
   * down when it is collected as garbage: therefore it is kept, for ever if nothing settles it.
   */
  #unsettled = new Set();

  constructor() {
    this.#session.connect();
  }

  /** Begins a program. Gives its promise, or the inspector's `details` of why it is no program. */
  begin(expression) {
    return new Promise((resolve) => {
      let promise;
      const stop = v8.promiseHooks.onInit((created) => (promise ??= created));
      this.#session.post(
        "Runtime.evaluate",
        { expression, objectGroup: "cell", replMode: true, awaitPromise: true },
        (_error, answer) => resolve({ details: answer?.exceptionDetails }),
      );
      stop();
      if (!promise) return;
      this.#unsettled.add(promise);
      const settled = () => this.#unsettled.delete(promise);
      promise.then(settled, settled);
      resolve({ promise });
    });
  }

  /** Lets go of what the last program gave. */
  release() {
    this.#session.post("Runtime.releaseObjectGroup", { objectGroup: "cell" });
  }
}

/** Runs cells in deno. */
class Cells extends CellRunner {
  #traces = new Traces();
  #evaluator = new Evaluator();
  #network = new Network();
  #outputs;
  #background;
  /** Whether deno says when nothing is left to do. */
  #canDrain;
  /** Keeps deno from ending while nothing but a signal or a timeout can end the cell. */
  #alive;

  constructor(canDrain) {
    const handles = new Handles();
    const background = new Background(() => handles.scan(), AsyncLocalStorage);
    const outputs = new Outputs();
    super({ send, readMailbox, input: new Input(), outputs, background, Exit });
    this.#outputs = outputs;
    this.#background = background;
    this.#canDrain = canDrain;
    this.#replaceExits();
    this.#handleErrors();
    Object.defineProperty(globalThis, NAME, { value: makeImporter(), configurable: true });
    if (canDrain) {
      observeHandles(handles);
      background.observe(globalThis, timers);
      syncBuiltinESMExports();
      this.#noticeDrain();
    }
    this.#traces.install();
  }

  #replaceExits() {
    Deno.exit = this.exit;
    process.exit = this.exit;
    process.reallyExit = this.exit;
    // Exits are no errors, whatever listens.
    const emit = (event, ...values) =>
      values[0] instanceof Exit || Reflect.apply(EventEmitter.prototype.emit, process, [event, ...values]);
    Object.defineProperty(process, "emit", { value: emit, writable: true, configurable: true });
    Deno.addSignalListener("SIGINT", () => this.finish(`signal ${SIGINT}`));
  }

  #handleErrors() {
    const handle = (event) => this.#handleUncaught(event);
    addEventListener("error", handle);
    addEventListener("unhandledrejection", handle);
  }

  /** Prints an uncaught error, unless code listens for it; deno would end. */
  #handleUncaught(event) {
    // Listeners of the code's come behind this one, and those of node not at all for a rejection.
    let isHandled = event.defaultPrevented;
    event.preventDefault();
    Object.defineProperty(event, "preventDefault", { value: () => (isHandled = true) });
    const isRejection = event.type === "unhandledrejection";
    const error = isRejection ? event.reason : event.error;
    if (error instanceof Exit) return event.stopImmediatePropagation();
    queueMicrotask(() => {
      if (isHandled) return;
      if (isRejection && process.listenerCount("unhandledRejection") > 0) {
        process.emit("unhandledRejection", error, event.promise);
      } else if (isRejection && process.listenerCount("uncaughtException") > 0) {
        process.emit("uncaughtException", error, "unhandledRejection");
      } else print(this.#traces.describe(error));
    });
  }

  /** Ends the wait of a cell when deno has nothing left to do, and keeps deno from ending. */
  #noticeDrain() {
    addEventListener("beforeunload", (event) => {
      event.preventDefault();
      event.stopImmediatePropagation();
      if (this.#background.isWaiting) this.#background.drained();
      else this.#alive = setTimeout(() => {}, FOREVER);
    });
  }

  get exitCode() {
    return Deno.exitCode;
  }

  set exitCode(code) {
    Deno.exitCode = Number(code);
  }

  resetExitCode() {
    process.exitCode = undefined;
    Deno.exitCode = 0;
  }

  prepare(_number, source) {
    // Deno imports nothing where its working directory is gone, whatever it is to import.
    if (!/\bimport\b/.test(source) || currentDirectory() !== undefined) return;
    Deno.chdir(HOME);
    print(`The working directory was removed: this cell runs in ${HOME}.`);
  }

  useNetwork() {
    return this.#network.use();
  }

  holdLoop() {
    clearTimeout(this.#alive);
  }

  evaluate(number, source, resolve) {
    void this.#evaluate(number, source).then(resolve);
  }

  async #evaluate(number, source) {
    let translated;
    try {
      translated = translate(rewrite(source, true));
    } catch (error) {
      const message = String(error?.message ?? error).replaceAll("file:///stripTypeScriptTypes.ts", `<cell ${number}>`);
      print(`error: The cell's source code could not be parsed: ${message}`);
      return exitAnswer(1);
    }
    const { promise, details } = await this.#start(number, source, translated);
    if (!promise) {
      print(this.#traces.refusal(details, number));
      return exitAnswer(1);
    }
    try {
      await promise;
      // Callbacks of promises that run at this moment may exit.
      await new Promise((resolve) => nextTick(resolve));
      const note = this.#canDrain && (await new Promise((resolve) => this.#background.wait(resolve, hasMoreWork)));
      if (note) print(note);
      return exitAnswer(Deno.exitCode);
    } catch (error) {
      if (error instanceof Exit) return exitAnswer(Deno.exitCode);
      print(this.#traces.describe(error));
      return exitAnswer(1);
    }
  }

  /** Begins a cell, of which the first translation that is a program is taken. */
  async #start(number, source, { text, map, isLast }) {
    this.#traces.add(number, source, map);
    const begun = await this.#evaluator.begin(`${text}\n//# sourceURL=${Traces.tag(number)}`);
    if (begun.promise || isLast || !source.includes("@")) return begun;
    const other = await translateAll(rewrite(source, true)).catch(() => undefined);
    return other ? this.#start(number, source, { ...other, isLast: true }) : begun;
  }

  async flush(source) {
    this.#evaluator.release();
    await flush(process.stdout);
    await flush(process.stderr);
    if (!this.#outputs.areOpen(source)) libc._exit(1); // no cell would be heard again
  }
}

/** Asks the engine whether it has more to do, if it can tell. */
const hasMoreWork = Deno[Deno.internal]?.core?.eventLoopHasMoreWork;

/** Runs the cell of the first request, given as its numbers, and then those that follow; does not return. */
export async function serve(first, canDrain) {
  const cells = new Cells(canDrain);
  for (let request = first; ; [, ...request] = await receiveLater()) {
    // The event loop turns meanwhile: what earlier cells have begun goes on.
    await cells.answer(request);
  }
}
