// The program of a waiting bun: it gets ready, and runs a script or cells (see preload.js, cells.js).
//
// To run a script is to return from here: bun goes on by its own means, so that errors, traces and
// the exit code are bun's.
//
// The modules `node:fs` and `process.stdout` are not touched before a script: that they are loaded can
// be told from the order in which `process.nextTick` and promises run. So the C library is called.

"use strict";

const { dlopen } = require("bun:ffi");
const { passEnvironment } = require("./environment.js");
const { synchronize } = require("./sync.js");

/** Looked up before code puts others in their places. */
const { Array, Buffer, Bun, Object, process, queueMicrotask } = globalThis;

const MAIN = "/sandbox/main.ts";
const HOME = "/sandbox";

const F_DUPFD_CLOEXEC = 1030;
const AT_EMPTY_PATH = 0x1000;
const STATX_INO = 0x100;

const libc = dlopen("libc.so.6", {
  _exit: { args: ["i32"], returns: "void" },
  close: { args: ["i32"], returns: "i32" },
  dup2: { args: ["i32", "i32"], returns: "i32" },
  fcntl: { args: ["i32", "i32", "i32"], returns: "i32" },
  pread: { args: ["i32", "ptr", "usize", "i64_fast"], returns: "i64_fast" },
  read: { args: ["i32", "ptr", "usize"], returns: "i64_fast" },
  statx: { args: ["i32", "ptr", "i32", "u32", "ptr"], returns: "i32" },
  write: { args: ["i32", "ptr", "usize"], returns: "i64_fast" },
}).symbols;

/** Returns a duplicate of a descriptor that no code closes or finds by chance, and that children do not get; closes it. */
function moveUp(descriptor) {
  const moved = libc.fcntl(descriptor, F_DUPFD_CLOEXEC, 900);
  libc.close(descriptor);
  return moved;
}

/** The socket to the guest. */
const control = moveUp(3);
/** The file that texts come in. */
const mailbox = moveUp(4);

/** Sends a line to the guest. */
function send(line) {
  const bytes = Buffer.from(`${line}\n`);
  libc.write(control, bytes, bytes.length);
}

/** Returns the words of a line from the guest. */
const splitWords = (line) => line.split(/\s/).filter(Boolean);

/** Waits for the next line from the guest, and returns its words; none if the guest is gone. */
function receive() {
  const line = Buffer.alloc(64);
  let read = -1;
  for (let tries = 0; read < 0 && tries < 100; tries++) read = libc.read(control, line, line.length);
  return splitWords(line.latin1Slice(0, Math.max(read, 0)));
}

/** Returns the texts in the mailbox. `size` is in bytes. */
function readMailbox(size) {
  const data = Buffer.alloc(size);
  for (let filled = 0; filled < size; ) {
    const read = libc.pread(mailbox, data.subarray(filled), size - filled, filled);
    if (read <= 0) break;
    filled += read;
  }
  return splitTexts(data);
}

/** Returns the texts in these bytes: each follows its length in bytes, as 4 bytes, little-endian. */
function splitTexts(data) {
  const found = [];
  for (let at = 0; at + 4 <= data.length; ) {
    const begin = at + 4;
    at = begin + data.readUInt32LE(at);
    found.push(data.utf8Slice(begin, at));
  }
  return found;
}

function toObject(pairs) {
  const object = {};
  for (let at = 0; at + 1 < pairs.length; at += 2) object[pairs[at]] = pairs[at + 1];
  return object;
}

/** Makes the environment exactly the given one, in its order; tells whether it was another. */
function setEnvironment(wanted) {
  const { env } = process;
  const names = Object.keys(env);
  const wantedNames = Object.keys(wanted);
  const isSame = (name, at) => name === names[at] && wanted[name] === env[name];
  if (wantedNames.length === names.length && wantedNames.every(isSame)) return false;
  for (const name of names) delete env[name];
  for (const name of wantedNames) env[name] = wanted[name];
  return true;
}

/** Identifies the file that standard error leads to. */
function errorsFile() {
  const status = Buffer.alloc(256);
  if (libc.statx(2, Buffer.from("\0"), AT_EMPTY_PATH, STATX_INO, status) !== 0) return undefined;
  return status.latin1Slice(32, 40) + status.latin1Slice(136, 144);
}

/**
 * Reports the end of a script, before its memory is taken apart, by a listener that code does not see.
 * The code that it is told is not final where an error went unhandled, and a text may follow then. But
 * bun has written of that error to standard error: the guest takes our word if nothing came there.
 */
function reportEnd() {
  const errors = errorsFile();
  const prototype = Object.getPrototypeOf(process);
  const { listeners } = prototype;
  const all = () => listeners.call(process, "exit");
  const end = (code) => {
    // Another listener is called after this one, and may do anything.
    if (process._exiting !== true || all().length !== 1 || errorsFile() !== errors) return;
    send(`ended ${code & 255} quiet`);
  };
  process.on("exit", end);
  const isOurs = (emitter, name) => emitter === process && name === "exit";
  const hide = (method, change) => {
    const apply = (target, self, given) => change(Reflect.apply(target, self, given), self, given);
    prototype[method] = new Proxy(prototype[method], { apply });
  };
  const without = (found, self, [name]) => (isOurs(self, name) ? found.filter((listener) => listener !== end) : found);
  hide("listeners", without);
  hide("rawListeners", without);
  hide("listenerCount", (count, self, [name, listener]) =>
    isOurs(self, name) && listener === undefined && all().includes(end) ? count - 1 : count,
  );
  hide("eventNames", (names, self) =>
    self === process && all().every((listener) => listener === end) ? names.filter((name) => name !== "exit") : names,
  );
}

/** Goes through what a start goes through, so that it is in memory by then. */
async function warmUp() {
  for (let turn = 0; turn < 3; turn++) {
    setEnvironment(toObject(splitTexts(Buffer.from([1, 0, 0, 0, 97, 0, 0, 0, 0])).slice(2)) && { ...process.env });
    readMailbox(0);
    splitWords("S 0\n");
    libc.write(control, Buffer.alloc(0), 0);
    errorsFile();
  }
  process.chdir(HOME);
  Bun.inspect({ a: [1, "b", new Map([[1, 2]])] });
  await import("data:text/typescript,export const a: number = 1;");
}

/** Removes what was loaded from the list of modules, which this one gets into at its end. */
function hideDriver() {
  const { cache } = require;
  let turns = 0;
  const remove = () => {
    for (const name of Object.keys(cache)) if (name !== MAIN) delete cache[name];
    if (turns++ < 3) queueMicrotask(remove);
  };
  remove();
}

/** Prepares the process for the script of a request, and returns; bun runs the script then. */
function startScript(size) {
  const [_file, directory, ...pairs] = readMailbox(size);
  libc.close(mailbox);
  const env = toObject(pairs);
  try {
    process.chdir(directory);
  } catch {
    send("directory");
    libc._exit(1);
  }
  send("started");
  if (setEnvironment(env)) passEnvironment(() => env);
  reportEnd();
  hideDriver();
}

/** Has bun run nothing when it comes to the file that it was started on, which may be there or not. */
function replaceMain() {
  let isDone = false;
  const onResolve = () => {
    if (isDone) return undefined;
    isDone = true;
    return { path: "main", namespace: "cells" };
  };
  const onLoad = () => ({ contents: "", loader: "js" });
  const setup = (build) => {
    build.onResolve({ filter: /^\/sandbox\/main\.ts$/ }, onResolve);
    build.onLoad({ filter: /^main$/, namespace: "cells" }, onLoad);
  };
  Bun.plugin({ name: "cells", setup });
}

/** Makes this process one that runs cells. */
async function startCells(first) {
  const { serve } = require("./cells.js");
  replaceMain();
  await serve(first, { libc, control, send, splitWords, readMailbox, end: () => libc._exit(0) });
}

/** Gets bun ready, and waits until the guest says what to run. */
async function boot() {
  await warmUp();
  const restore = synchronize();
  send("ready");
  const [kind, ...numbers] = receive();
  if (kind === "S") return startScript(Number(numbers[0]));
  if (kind !== "C") return libc._exit(0);
  // Cells wait for what they write.
  restore();
  await startCells(numbers);
}

module.exports = { boot };
