// Runs cells one after the other in one global scope, for the guest.
//
// The engine's own console mode evaluates them, through an inspector session within the process:
// it allows top-level await and declaring anew what an earlier cell declared. Before that, imports
// are replaced (imports.mjs) and types are erased, which leaves every position as it is. Only what
// cannot be erased, as enums, is translated, and traces are mapped back.
//
// Code of a cell can forge an answer, and so end its own cell early: only that code is deceived.

import { AsyncLocalStorage } from "node:async_hooks";
import { ChildProcess } from "node:child_process";
import EventEmitter from "node:events";
import { existsSync, readFileSync } from "node:fs";
import { Session } from "node:inspector";
import { createRequire, SourceMap, stripTypeScriptTypes, syncBuiltinESMExports } from "node:module";
import net from "node:net";
import timers from "node:timers";
import { pathToFileURL } from "node:url";
import v8 from "node:v8";
import vm from "node:vm";
import { code, currentDirectory, enter, flushed, overlay } from "./cells.mjs";
import { Input, Outputs } from "./deno_stdio.mjs";
import { Traces } from "./deno_traces.mjs";
import * as imports from "./imports.mjs";
import { Background } from "./work.mjs";

// Cells can declare names of their own over these.
const { addEventListener, atob, BigInt, console, Deno, JSON, Map, Number, Object, Promise } = globalThis;
const { queueMicrotask, Reflect, RegExp, Set, String, TextDecoder, Uint8Array, URL } = globalThis;
const { nextTick } = globalThis.process;
const { Exit } = imports;

const SIGINT = 2;

/** Working directory of cells for which the host names none. */
const HOME = "/sandbox";

/** The longest time of a timer, in milliseconds. */
const FOREVER = 2 ** 31 - 1;

/** A text, and the map that it ends with. */
function withMap(text) {
  const at = text.lastIndexOf("\n//# sourceMappingURL=");
  const [, data] = text.slice(at).split("base64,");
  return { text: text.slice(0, at), map: new SourceMap(JSON.parse(atob(data))) };
}

/** JavaScript of TypeScript; with a map where places could not be kept. */
function translate(source) {
  try {
    return { text: stripTypeScriptTypes(source, { mode: "strip" }) };
  } catch {
    // There are types that have a meaning, or it is wrong: then this has the better message.
    return withMap(stripTypeScriptTypes(source, { mode: "transform", sourceMap: true }));
  }
}

/** Gives the classes that have another name in the translation the name that they have in the source. */
function outerNames(source, text) {
  const inner = [...text.matchAll(/^let (_(\w+?)\d*);$/gm)];
  const classes = inner.filter(([, , name]) => new RegExp(`\\bclass\\s+${name}\\b`).test(source));
  const isDeclared = (name) => new RegExp(`^class ${name}\\b`, "m").test(text);
  return classes.map(([, own, name]) => `\n${isDeclared(name) ? "" : "let "}${name} = ${own};`).join("");
}

/** The same of what has decorators, which only a deno of its own translates; nothing if it does not. */
async function translateAll(source) {
  const file = await Deno.makeTempFile({ suffix: ".mts" });
  try {
    await Deno.writeTextFile(file, source);
    const args = ["transpile", "--quiet", "--no-config", "--no-lock", "--source-map=inline", file];
    const command = new Deno.Command(Deno.execPath(), { args, stdin: "null", stderr: "null" });
    const { success, stdout } = await command.output();
    if (!success) return;
    const { text, map } = withMap(new TextDecoder().decode(stdout).trimEnd());
    return { text: text + outerNames(source, text), map };
  } finally {
    await Deno.remove(file);
  }
}

/** The place that `deno add` and `deno install` have mapped a name to since the start. */
function mappedLater(specifier) {
  for (const file of [Deno.cwd(), "/sandbox"].flatMap((place) => [`${place}/deno.json`, `${place}/deno.jsonc`])) {
    let imports;
    try {
      imports = JSON.parse(readFileSync(file, "utf8")).imports;
    } catch {
      continue; // it is not there, or has comments
    }
    for (const [name, target] of Object.entries(imports ?? {})) {
      if (!/^(?:npm|jsr):/.test(target)) continue;
      if (specifier === name) return target;
      if (specifier.startsWith(`${name}/`)) return target + specifier.slice(name.length);
    }
  }
}

/** `import()` and `import.meta` for cells: as in a module in the working directory. */
function makeImporter() {
  const importers = new Map();
  let again = 0;
  let last = HOME;

  /** The directory in which modules are looked for: the last one that existed, if the code has removed it. */
  function directory() {
    last = currentDirectory() ?? last;
    return last;
  }

  function importer(specifier, options) {
    const place = directory() + "/cell.mts";
    let load = importers.get(place);
    if (!load) {
      load = vm.runInThisContext("(name, options) => import(name, options)", {
        filename: place,
        importModuleDynamically: vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER,
      });
      importers.set(place, load);
    }
    // Deno was started on this file, and takes it for empty.
    if (/^\.{0,2}\/(?:.*\/)?main\.mts$|^file:.*\/main\.mts$/.test(specifier)) {
      const url = new URL(specifier, pathToFileURL(place));
      url.search = `again=${++again}`;
      return load(url.href, options);
    }
    return load(specifier, options).catch((error) => {
      if (/^\w+:/.test(specifier)) throw error;
      if (/^[@\w]/.test(specifier)) return installed(place, specifier, load, error);
      // Deno remembers that there was no such file; under another name it looks again.
      const url = new URL(specifier, pathToFileURL(place));
      if (error?.code !== "ERR_MODULE_NOT_FOUND" || !existsSync(url)) throw error;
      url.search = `again=${++again}`;
      return load(url.href, options);
    });
  }

  /** From what was installed after deno had started: it looks neither at a new `deno.json` nor at `node_modules`. */
  async function installed(place, specifier, load, error) {
    const mapped = mappedLater(specifier);
    if (mapped !== undefined) return await load(mapped);
    const require = createRequire(place);
    let path;
    try {
      path = require.resolve(specifier);
    } catch {
      throw error;
    }
    try {
      const found = require(specifier);
      return found?.__esModule || found?.[Symbol.toStringTag] === "Module" ? found : { default: found, ...found };
    } catch (problem) {
      if (!(problem instanceof SyntaxError) && problem?.code !== "ERR_REQUIRE_ESM") throw problem;
      return await load(pathToFileURL(path).href);
    }
  }

  const meta = {
    get dirname() {
      return directory();
    },
    get filename() {
      return directory() + "/cell.mts";
    },
    main: true,
    resolve: (specifier) => new URL(specifier, meta.url).href,
    get url() {
      return pathToFileURL(meta.filename).href;
    },
  };
  return Object.assign(importer, imports.helpers, { meta });
}

/**
 * The network of cells: deno remembers from its first `fetch` whether there is a proxy, and each cell
 * may have another answer.
 */
class Network {
  #url;
  #client;

  /** Has `fetch` ask the proxy of a cell that has one; what comes back undoes it. */
  use() {
    const url = Deno.env.get("HTTP_PROXY");
    if (Deno.env.get("NODE_USE_ENV_PROXY") !== "1" || !url?.startsWith("http://127.0.0.1:")) return;
    if (url !== this.#url) this.#client = Deno.createHttpClient({ proxy: { url } });
    this.#url = url;
    const client = this.#client;
    const { fetch: original } = globalThis;
    const { fetch } = {
      fetch(...given) {
        const [input, options] = given;
        if (isLocal(input) || options?.client) return original(...given);
        return original(input, { ...options, client });
      },
    };
    Object.defineProperty(fetch, "toString", { value: () => original.toString() });
    globalThis.fetch = fetch;
    return () => {
      if (globalThis.fetch === fetch) globalThis.fetch = original;
    };
  }
}

/** Whether it is in the sandbox itself, or nowhere. */
function isLocal(input) {
  try {
    const { hostname } = new URL(input?.url ?? input);
    return ["localhost", "127.0.0.1", "[::1]"].includes(hostname);
  } catch {
    return true;
  }
}

/** Whether it was given a pipe to read from. */
function hasInput(child) {
  try {
    return Boolean(child.stdin);
  } catch {
    return false;
  }
}

/** Above so many, handles that are closed are forgotten. */
const MANY_HANDLES = 64;

const isOver = (handle) => handle.destroyed === true || handle.listening === false || handle.exitCode != null;

/** Whether there is code that waits for the end of this child. */
const isAwaited = (child) => child.listenerCount("exit") + child.listenerCount("close") > 0;

const define = (owner, name, value) => Object.defineProperty(owner, name, { value, writable: true, configurable: true });

/** The handles that deno's event loop waits for, told apart for cells (see work.mjs). */
class Handles {
  #waiting = new Set();
  #open = new Set();
  #children = new Set();

  #add(list, one) {
    if (!one?.unref) return;
    if (list.size > MANY_HANDLES) for (const known of list) if (isOver(known)) list.delete(known);
    list.add(one);
  }

  /** Has those be known that a function of the runtime's own gives. */
  #noteResults(name, list) {
    const original = Deno[name];
    if (!original) return;
    const apply = (target, self, given) => {
      const found = Reflect.apply(target, self, given);
      if (typeof found?.then === "function") found.then((one) => this.#add(list, one), () => {});
      else this.#add(list, found);
      return found;
    };
    define(Deno, name, new Proxy(original, { apply }));
  }

  /** Has those be known that a method is called on. */
  #noteCalls(prototype, name, note) {
    const apply = (target, self, given) => {
      note(self);
      return Reflect.apply(target, self, given);
    };
    define(prototype, name, new Proxy(prototype[name], { apply }));
  }

  /** A child that no code waits for may wait for input. */
  #noteChildren() {
    const apply = (target, self, given) => {
      const child = Reflect.apply(target, self, given);
      if (hasInput(child)) this.#add(this.#open, child);
      return child;
    };
    const { prototype } = Deno.Command;
    define(prototype, "spawn", new Proxy(prototype.spawn, { apply }));
    this.#noteCalls(ChildProcess.prototype, "spawn", (child) => this.#add(this.#children, child));
  }

  /** A server, and the connections that it accepts, wait for others. */
  #noteServer(server) {
    this.#add(this.#waiting, server);
    if (!(server instanceof net.Server)) return;
    server.on("connection", (socket) => this.#add(this.#waiting, socket));
  }

  #noteChannels() {
    const construct = (target, given, newTarget) => {
      const channel = Reflect.construct(target, given, newTarget);
      for (const port of [channel.port1, channel.port2]) this.#add(this.#open, port);
      return channel;
    };
    const { MessageChannel } = globalThis;
    globalThis.MessageChannel = new Proxy(MessageChannel, { construct });
    define(MessageChannel.prototype, "constructor", globalThis.MessageChannel);
  }

  #noteWorkers() {
    const { Worker } = globalThis;
    // The method that node's workers use.
    const method = Object.getOwnPropertySymbols(Worker.prototype).find((symbol) => !symbol.description);
    if (!method) return;
    const construct = (target, given, newTarget) => {
      const worker = Reflect.construct(target, given, newTarget);
      this.#add(this.#open, { ref: () => worker[method](true), unref: () => worker[method](false) });
      return worker;
    };
    globalThis.Worker = new Proxy(Worker, { construct });
    define(Worker.prototype, "constructor", globalThis.Worker);
  }

  observe() {
    for (const name of ["listen", "listenDatagram", "listenTls", "serve"]) this.#noteResults(name, this.#waiting);
    for (const name of ["connect", "connectTls"]) this.#noteResults(name, this.#open);
    this.#noteCalls(net.Server.prototype, "listen", (server) => this.#noteServer(server));
    this.#noteCalls(net.Socket.prototype, "connect", (socket) => this.#add(this.#open, socket));
    this.#noteChannels();
    this.#noteWorkers();
    this.#noteChildren();
  }

  scan() {
    const children = [...this.#children].filter((child) => !isAwaited(child));
    return { waiting: [...this.#waiting], open: [...this.#open, ...children] };
  }
}

export async function serve({ libc, control, tell, words, fields, request, canDrain }) {
  const { process } = globalThis;
  const write = console.error.bind(console); // the code may put others in their places
  const print = (text) => {
    try {
      write(text);
    } catch {
      // The code has closed it.
    }
  };
  const traces = new Traces();
  const session = new Session();
  session.connect();
  const post = (method, parameters) =>
    new Promise((resolve, reject) => {
      session.post(method, parameters, (error, result) => (error ? reject(error) : resolve(result)));
    });

  /** Ends the running cell with this answer. */
  let finish = () => {};

  const exit = (value) => {
    if (value !== undefined) Deno.exitCode = Number(value);
    finish(code(Deno.exitCode));
    throw new Exit();
  };
  Deno.exit = exit;
  process.exit = exit;
  process.reallyExit = exit;
  // Exits are no errors, whatever listens.
  const emit = (event, ...values) =>
    values[0] instanceof Exit || Reflect.apply(EventEmitter.prototype.emit, process, [event, ...values]);
  Object.defineProperty(process, "emit", { value: emit, writable: true, configurable: true });
  Deno.addSignalListener("SIGINT", () => finish(`signal ${SIGINT}`));
  const uncaught = (event) => {
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
      } else print(traces.describe(error));
    });
  };
  addEventListener("error", uncaught);
  addEventListener("unhandledrejection", uncaught);
  Object.defineProperty(globalThis, imports.NAME, { value: makeImporter(), configurable: true });
  const input = new Input(libc);
  const outputs = new Outputs();
  const network = new Network();
  const handles = new Handles();
  const background = new Background(() => handles.scan(), AsyncLocalStorage);
  const { setTimeout, clearTimeout } = globalThis;
  const hasMore = Deno[Deno.internal]?.core?.eventLoopHasMoreWork;
  /** Keeps deno from ending while nothing but a signal or a timeout can end the cell. */
  let alive;
  if (canDrain) {
    handles.observe();
    background.observe(globalThis, timers);
    syncBuiltinESMExports();
    addEventListener("beforeunload", (event) => {
      event.preventDefault();
      event.stopImmediatePropagation();
      if (background.isWaiting) background.drained();
      else alive = setTimeout(() => {}, FOREVER);
    });
  }
  traces.install();

  /**
   * The promise of a cell that is being evaluated, which begins here; or the inspector's account of
   * why it is no program. The inspector waits for the promise too, and brings deno down when it is
   * collected as garbage: therefore it is kept, for ever if nothing settles it.
   */
  const unsettled = new Set();
  function begin(expression) {
    return new Promise((resolve) => {
      let promise;
      const stop = v8.promiseHooks.onInit((created) => (promise ??= created));
      session.post(
        "Runtime.evaluate",
        { expression, objectGroup: "cell", replMode: true, awaitPromise: true },
        (_error, answer) => resolve({ details: answer?.exceptionDetails }),
      );
      stop();
      if (!promise) return;
      unsettled.add(promise);
      const settled = () => unsettled.delete(promise);
      promise.then(settled, settled);
      resolve({ promise });
    });
  }

  /** Begins the cell, of which the first translation that is a program is taken. */
  async function start(number, source, given) {
    const { text, map } = given;
    traces.add(number, source, map);
    const begun = await begin(`${text}\n//# sourceURL=${Traces.tag(number)}`);
    if (begun.promise || !source.includes("@")) return begun;
    const other = given.isLast ? undefined : await translateAll(imports.rewrite(source, true)).catch(() => undefined);
    return other ? start(number, source, { ...other, isLast: true }) : begun;
  }

  async function evaluate(number, source) {
    let translated;
    try {
      translated = translate(imports.rewrite(source, true));
    } catch (error) {
      const message = String(error?.message ?? error).replaceAll("file:///stripTypeScriptTypes.ts", `<cell ${number}>`);
      print(`error: The cell's source code could not be parsed: ${message}`);
      return code(1);
    }
    const { promise, details } = await start(number, source, translated);
    if (!promise) {
      print(traces.refusal(details, number));
      return code(1);
    }
    try {
      await promise;
      // Callbacks of promises that run at this moment may exit.
      await new Promise((resolve) => nextTick(resolve));
      const note = canDrain && (await new Promise((resolve) => background.wait(resolve, hasMore)));
      if (note) print(note);
      return code(Deno.exitCode);
    } catch (error) {
      if (error instanceof Exit) return code(Deno.exitCode);
      print(traces.describe(error));
      return code(1);
    }
  }

  /** Deno imports nothing where its working directory is gone, whatever it is to import. */
  function leaveGoneDirectory(source) {
    if (!/\bimport\b/.test(source) || currentDirectory() !== undefined) return;
    Deno.chdir(HOME);
    print(`The working directory was removed: this cell runs in ${HOME}.`);
  }

  async function run(number, limit, [directory, stdin, source, ...pairs]) {
    let leave;
    try {
      leave = enter(directory);
    } catch {
      return "directory";
    }
    input.use(stdin);
    outputs.mend();
    leaveGoneDirectory(source);
    const restore = overlay(pairs);
    const withoutNetwork = network.use();
    Deno.exitCode = 0;
    tell(`begun ${number}`);
    const ended = new Promise((resolve) => (finish = resolve));
    background.begin(limit);
    const answer = await Promise.race([background.run(() => evaluate(number, source)), ended]);
    finish = () => {};
    background.end();
    clearTimeout(alive);
    process.exitCode = undefined;
    Deno.exitCode = 0;
    withoutNetwork?.();
    restore();
    leave();
    if (stdin) input.use("");
    post("Runtime.releaseObjectGroup", { objectGroup: "cell" });
    await flushed(process.stdout);
    await flushed(process.stderr);
    if (!outputs.areThere(source)) libc._exit(1); // no cell would be heard again
    return answer;
  }

  const line = new Uint8Array(64);
  for (;;) {
    const [, number, size, limit] = request;
    tell(`cell ${number} ${await run(number, Number(limit), fields(Number(size)))}`);
    // The event loop turns meanwhile: what earlier cells have begun goes on.
    const read = Number(await libc.wait(control, line, BigInt(line.length)));
    if (read <= 0) libc._exit(0);
    request = words(line.subarray(0, read));
  }
}
