// The program of a waiting bun: it gets ready, and runs a script or cells (see bun.js, bun_cells.js).
//
// To run a script is to return from here: bun goes on by its own means, so that errors, traces and
// the exit code are bun's.
//
// The modules `node:fs` and `process.stdout` are not touched before a script: that they are loaded can
// be told from the order in which `process.nextTick` and promises run. So the C library is called.

"use strict";

const { dlopen } = require("bun:ffi");

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

/** Moved up, where no code closes or finds it by chance, and not for children. */
function outOfTheWay(descriptor) {
  const moved = libc.fcntl(descriptor, F_DUPFD_CLOEXEC, 900);
  libc.close(descriptor);
  return moved;
}

const control = outOfTheWay(3);
const mailbox = outOfTheWay(4);

function tell(line) {
  const bytes = Buffer.from(`${line}\n`);
  libc.write(control, bytes, bytes.length);
}

const words = (line) => line.split(/\s/).filter(Boolean);

/** The next line from the guest, word by word; nothing if it is gone. */
function request() {
  const line = Buffer.alloc(64);
  let read = -1;
  for (let tries = 0; read < 0 && tries < 100; tries++) read = libc.read(control, line, line.length);
  return words(line.latin1Slice(0, Math.max(read, 0)));
}

/** The texts in the mailbox. */
function fields(size) {
  const data = Buffer.alloc(size);
  for (let filled = 0; filled < size; ) {
    const read = libc.pread(mailbox, data.subarray(filled), size - filled, filled);
    if (read <= 0) break;
    filled += read;
  }
  return split(data);
}

function split(data) {
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
    tell(`ended ${code & 255} quiet`);
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
async function warm() {
  for (let turn = 0; turn < 3; turn++) {
    setEnvironment(toObject(split(Buffer.from([1, 0, 0, 0, 97, 0, 0, 0, 0])).slice(2)) && { ...process.env });
    fields(0);
    words("S 0\n");
    libc.write(control, Buffer.alloc(0), 0);
    errorsFile();
  }
  process.chdir(HOME);
  Bun.inspect({ a: [1, "b", new Map([[1, 2]])] });
  await import("data:text/typescript,export const a: number = 1;");
}

/** Takes what was loaded out of the list of modules, which this one gets into at its end. */
function coverTracks() {
  const { cache } = require;
  let turns = 0;
  const remove = () => {
    for (const name of Object.keys(cache)) if (name !== MAIN) delete cache[name];
    if (turns++ < 3) queueMicrotask(remove);
  };
  remove();
}

function run(size, passEnvironment) {
  const [_file, directory, ...pairs] = fields(size);
  libc.close(mailbox);
  const env = toObject(pairs);
  try {
    process.chdir(directory);
  } catch {
    tell("directory");
    libc._exit(1);
  }
  tell("started");
  if (setEnvironment(env)) passEnvironment(() => env);
  reportEnd();
  coverTracks();
}

async function boot(parts, { synchronize, passEnvironment }) {
  await warm();
  const restore = synchronize();
  tell("ready");
  const [kind, ...numbers] = request();
  if (kind === "S") return run(Number(numbers[0]), passEnvironment);
  if (kind !== "C") return libc._exit(0);
  const given = { libc, control, end: () => libc._exit(0), tell, words, fields, passEnvironment, first: numbers };
  // Cells wait for what they write.
  restore();
  const { serve, ...others } = parts();
  replaceMain();
  await serve({ ...given, ...others });
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

module.exports = { boot };
