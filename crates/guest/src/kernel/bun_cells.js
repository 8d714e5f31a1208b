// Runs cells one after the other in bun's global scope, for the guest.
//
// After imports are replaced (imports.mjs), bun's transpiler rewrites a cell, which may be TypeScript,
// into a script: names that it declares become variables of the global scope, which later cells may
// declare again, the rest a function that may await. The event loop goes on between cells.

"use strict";

const { AsyncLocalStorage } = require("node:async_hooks");
const EventEmitter = require("node:events");
const { ChildProcess } = require("node:child_process");
const http = require("node:http");
const Module = require("node:module");
const net = require("node:net");
const vm = require("node:vm");
const threads = require("node:worker_threads");

/** Looked up before cells put others in their places: what they declare is global. */
const { Bun, Error, Number, Object, Promise, Proxy, Reflect, Set, URL, console, process } = globalThis;
const { setImmediate } = globalThis;
const { nextTick } = process;

const SIGINT = 2;

const EVENT = "unhandledRejection";

/** The file that the driver's frames are in. */
const OWN = /([^\s(]+\/bun\.js):\d+/.exec(new Error().stack)?.[1] ?? "bun.js";

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

const write = console.error.bind(console); // the code may put another in its place
const print = (text) => write("%s", text);

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

/** The `require`, `import()` and the like of cells, which behave as in a module in the working directory. */
class Modules {
  #directory;
  #globals = {};
  #imports;

  constructor(imports) {
    this.#imports = imports;
  }

  /** Follows the working directory. */
  refresh() {
    const dirname = this.#imports.currentDirectory();
    if (dirname === this.#directory || dirname === undefined) return;
    this.#directory = dirname;
    const filename = `${dirname}/cell.ts`;
    const { href } = Bun.pathToFileURL(filename);
    const require = Module.createRequire(filename);
    const load = async (specifier, options) => import(Bun.resolveSync(`${specifier}`, dirname), options);
    const resolve = (specifier) => {
      if (/^\.{0,2}\//.test(specifier)) return new URL(specifier, href).href;
      const found = Bun.resolveSync(specifier, dirname);
      return found.startsWith("/") ? Bun.pathToFileURL(found).href : found;
    };
    const meta = { dir: dirname, dirname, env: process.env, file: "cell.ts", filename, main: true, path: filename };
    Object.assign(load, this.#imports.helpers, { meta: { ...meta, require, resolve, url: href } });
    this.load = load;
    const module = new Module(filename);
    Object.assign(module, { filename, paths: Module._nodeModulePaths(dirname) });
    this.#define({ [this.#imports.NAME]: load, require, module, exports: module.exports });
  }

  #define(values) {
    for (const [name, value] of Object.entries(values)) {
      if (globalThis[name] !== this.#globals[name]) continue; // the code has put its own there
      this.#globals[name] = value;
      Object.defineProperty(globalThis, name, { value, writable: true, configurable: true });
    }
  }
}

/** Methods by which listeners come, go, and are told. */
const OF_LISTENERS = ["addListener", "emit", "listenerCount", "listeners", "off", "on", "once", "prependListener"]
  .concat("prependOnceListener", "rawListeners", "removeAllListeners", "removeListener");

/** Events that happen to bun at other times than to the code. */
const APART = new Set([EVENT, "beforeExit"]);

/**
 * Keeps the code's listeners for some events apart: bun tells those for rejections all that it knows of exits too,
 * and each cell that waits comes to what bun takes for its own end. `listen` makes up for listeners that the code has
 * removed.
 */
function listenersApart(listen) {
  const apart = new EventEmitter();
  const prototype = Object.getPrototypeOf(process);
  for (const method of OF_LISTENERS) {
    const apply = (target, self, given) => {
      if (self !== process || !APART.has(given[0] ?? EVENT)) return Reflect.apply(target, self, given);
      const answer = apart[method](...given);
      if (given.length === 0) {
        Reflect.apply(target, self, given);
        listen();
      }
      return answer === apart ? process : answer;
    };
    prototype[method] = new Proxy(prototype[method], { apply });
  }
  return apart;
}

/** Above so many, handles that are closed are forgotten. */
const MANY_HANDLES = 64;

const isOver = (handle) => handle.destroyed === true || handle.listening === false || handle.exitCode != null;

/** Whether there is code that waits for the end of this child. */
const isAwaited = (child) => child.listenerCount("exit") + child.listenerCount("close") > 0;

const define = (owner, name, value) => (owner[name] = value);

/** The handles that bun's event loop waits for, told apart for cells (see work.mjs). */
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
    const original = Bun[name];
    if (!original) return;
    const apply = (target, self, given) => {
      const found = Reflect.apply(target, self, given);
      if (typeof found?.then === "function") found.then((one) => this.#add(list, one), () => {});
      else this.#add(list, found);
      return found;
    };
    define(Bun, name, new Proxy(original, { apply }));
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
      // The child was given a pipe to read from.
      if (child.stdin) this.#add(this.#open, child);
      return child;
    };
    Bun.spawn = new Proxy(Bun.spawn, { apply });
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
    globalThis.MessageChannel = new Proxy(globalThis.MessageChannel, { construct });
    globalThis.MessageChannel.prototype.constructor = globalThis.MessageChannel;
  }

  #noteWorkers() {
    const construct = (target, given, newTarget) => {
      const worker = Reflect.construct(target, given, newTarget);
      this.#add(this.#open, worker);
      return worker;
    };
    for (const owner of [globalThis, threads]) {
      owner.Worker = new Proxy(owner.Worker, { construct });
      owner.Worker.prototype.constructor = owner.Worker;
    }
  }

  observe() {
    for (const name of ["listen", "serve"]) this.#noteResults(name, this.#waiting);
    this.#noteResults("connect", this.#open);
    for (const { Server } of [net, http]) this.#noteCalls(Server.prototype, "listen", (server) => this.#noteServer(server));
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

async function serve({ libc, control, end, tell, words, fields, passEnvironment, first, ...parts }) {
  const { imports, restoreLines, Input, Outputs } = parts;
  const { Exit, code, enter, overlay, flushed } = imports;
  const names = { __dirname: `${imports.NAME}.meta.dirname`, __filename: `${imports.NAME}.meta.filename` };
  const transpiler = new Bun.Transpiler({ loader: "ts", replMode: true, define: names });
  const sources = new Map();
  const modules = new Modules(imports);
  const { listeners, on, rawListeners, stdout, stderr } = process;
  const rejections = listenersApart(() => listen());
  const input = new Input(libc);
  const outputs = new Outputs(libc, [stdout, stderr]);
  const handles = new Handles();
  const background = new imports.Background(() => handles.scan(), AsyncLocalStorage);
  background.observe(globalThis, require("node:timers"));
  let socket;

  /** Ends the running cell with this answer. */
  let finish = () => {};
  const exit = (value) => {
    if (value !== undefined) process.exitCode = value;
    finish(code(process.exitCode));
    throw new Exit();
  };
  process.exit = exit;
  process.reallyExit = exit;

  const show = (error) => {
    if (!(error instanceof Exit)) print(describe(error, sources));
  };
  const ours = {
    SIGINT: () => finish(`signal ${SIGINT}`),
    beforeExit() {
      // Bun tells of the last rejections in the next turn.
      if (background.isWaiting) setImmediate(() => background.drained());
      // Only a signal, or a timeout, can end the cell.
      socket.ref();
    },
    [EVENT](error, promise) {
      if (!(error instanceof Exit) && !rejections.emit(EVENT, error, promise)) show(error);
    },
  };
  /** Again for each cell: code may have removed all listeners. */
  function listen() {
    for (const event of Object.keys(ours)) {
      if (!listeners.call(process, event).includes(ours[event])) on.call(process, event, ours[event]);
    }
  }
  process.setUncaughtExceptionCaptureCallback((error) => {
    if (error instanceof Exit) return;
    try {
      const heard = rawListeners.call(process, "uncaughtException");
      if (heard.length === 0) show(error);
      // Emitted, what they throw would end bun.
      for (const listener of heard) listener.call(process, error, "uncaughtException");
    } catch (another) {
      show(another);
    }
  });
  passEnvironment(() => process.env);

  const importModuleDynamically = (specifier, _script, attributes) => modules.load(specifier, { with: attributes });

  function transpile(source) {
    try {
      // Without the semicolon, a block at the begin would be taken for an object.
      return transpiler.transformSync(`${source}\n;`);
    } catch (error) {
      transpiler.transformSync(source); // fails with lines of the source only
      throw error;
    }
  }

  async function evaluate(number, source, resolve) {
    let script;
    try {
      const plain = imports.rewrite(source);
      const text = restoreLines(plain, transpile(plain));
      script = new vm.Script(text, { filename: `<cell ${number}>`, importModuleDynamically });
    } catch (error) {
      print(refusal(error, number, source));
      return resolve(code(1));
    }
    sources.set(number, source);
    const ended = (note) => {
      if (note) print(note);
      resolve(code(process.exitCode));
    };
    try {
      const result = script.runInThisContext();
      await (result instanceof Promise ? result : undefined);
      // Callbacks of promises that run at this moment may exit.
      nextTick(() => background.wait(ended));
    } catch (error) {
      show(error);
      resolve(code(error instanceof Exit ? process.exitCode : 1));
    }
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
    listen();
    modules.refresh();
    const restore = overlay(pairs);
    process.exitCode = 0;
    tell(`begun ${number}`);
    socket.unref();
    background.begin(limit);
    const answer = await new Promise((resolve) => {
      finish = resolve;
      background.run(() => evaluate(number, source, resolve));
    });
    socket.ref();
    finish = () => {};
    background.end();
    process.exitCode = 0;
    restore();
    leave();
    if (stdin) input.use("");
    for (const stream of [stdout, stderr]) {
      await release(stream);
      await flushed(stream);
    }
    return answer;
  }

  const answer = async ([, number, size, limit]) => {
    tell(`cell ${number} ${await run(Number(number), Number(limit), fields(Number(size)))}`);
  };
  handles.observe();
  socket = await Bun.connect({
    fd: control,
    socket: {
      data: (_socket, line) => void answer(words(line.latin1Slice())),
      close: end,
    },
  });
  void answer(["C", ...first]);
}

module.exports = { serve };
