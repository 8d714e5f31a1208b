// Waits inside deno's own start until the guest says what to run.
//
// The guest starts `deno run --allow-all --preload <this file> /sandbox/main.mts`. Deno evaluates
// this module before it loads the main one, which need not exist by then: returning from here runs
// the script by deno's own means, so that its errors, traces and exit code are deno's. For cells, deno
// finds nothing to run and its event loop goes on (see deno_cells.mjs).
//
// Deno has no access to descriptors that it did not open, therefore the C library is called.

import { EventEmitter, getEventListeners } from "node:events";
import module from "node:module";
import process from "node:process";
import { serve } from "./deno_cells.mjs";

// Cells can declare names of their own over these.
const { BigInt, DataView, Number, Uint8Array } = globalThis;

const F_GETFD = 1;
const F_DUPFD_CLOEXEC = 1030;
const O_WRONLY = 1;

/** The script that deno was started on. */
const MAIN = "file:///sandbox/main.mts";

const libc = Deno.dlopen("libc.so.6", {
  close: { parameters: ["i32"], result: "i32" },
  dup2: { parameters: ["i32", "i32"], result: "i32" },
  _exit: { parameters: ["i32"], result: "void" },
  fcntl: { parameters: ["i32", "i32", "i32"], result: "i32" },
  ftruncate: { parameters: ["i32", "i64"], result: "i32" },
  malloc_trim: { parameters: ["usize"], result: "i32" },
  open: { parameters: ["buffer", "i32"], result: "i32" },
  pread: { parameters: ["i32", "buffer", "usize", "i64"], result: "isize" },
  read: { parameters: ["i32", "buffer", "usize"], result: "isize" },
  wait: { name: "read", parameters: ["i32", "buffer", "usize"], result: "isize", nonblocking: true },
  write: { parameters: ["i32", "buffer", "usize"], result: "isize" },
}).symbols;

// Importing `node:module` leaves this behind.
delete globalThis.nodeBootstrap;

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** Moved up, where no code closes or finds it by chance, and not for children. */
function outOfTheWay(descriptor) {
  const moved = libc.fcntl(descriptor, F_DUPFD_CLOEXEC, 900);
  libc.close(descriptor);
  return moved;
}

const own = findOwnVariables();
const newListeners = process.listenerCount("newListener");
const control = outOfTheWay(3);
const mailbox = outOfTheWay(4);

function tell(line) {
  const bytes = encoder.encode(line + "\n");
  return libc.write(control, bytes, BigInt(bytes.length));
}

/** The words of a line on the control descriptor. */
const words = (line) => decoder.decode(line).trim().split(" ");

/** The texts in the mailbox, which is empty afterwards. */
function fields(size) {
  const data = new Uint8Array(size);
  let filled = 0;
  while (filled < size) {
    const read = Number(libc.pread(mailbox, data.subarray(filled), BigInt(size - filled), BigInt(filled)));
    if (read <= 0) break;
    filled += read;
  }
  libc.ftruncate(mailbox, 0n);
  return split(data.subarray(0, filled));
}

function split(data) {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const found = [];
  for (let at = 0; at + 4 <= data.length;) {
    const length = view.getUint32(at, true);
    found.push(decoder.decode(data.subarray(at + 4, at + 4 + length)));
    at += 4 + length;
  }
  return found;
}

/**
 * Finds the variables that deno itself has put into its environment since it was started. Without a node on the
 * machine, deno puts a stand-in first into `PATH`, and says so.
 */
function findOwnVariables() {
  const started = new Map();
  for (const pair of Deno.readTextFileSync("/proc/self/environ").split("\0")) {
    const at = pair.indexOf("=");
    if (at > 0) started.set(pair.slice(0, at), pair.slice(at + 1));
  }
  const variables = Object.entries(Deno.env.toObject()).filter(([name]) => !started.has(name));
  const [now, then] = [Deno.env.get("PATH") ?? "", started.get("PATH") ?? ""];
  return { variables, first: now.endsWith(then) ? now.slice(0, now.length - then.length) : "" };
}

/** Makes the environment the given one, as deno starts with it; deno takes a changed `TZ` up. */
function setEnvironment(pairs) {
  const wanted = new Map(own.variables);
  for (let at = 0; at + 1 < pairs.length; at += 2) {
    wanted.set(pairs[at], pairs[at] === "PATH" ? own.first + pairs[at + 1] : pairs[at + 1]);
  }
  for (const [name, value] of Object.entries(Deno.env.toObject())) {
    if (!wanted.has(name)) Deno.env.delete(name);
    else if (wanted.get(name) === value) wanted.delete(name);
  }
  for (const [name, value] of wanted) Deno.env.set(name, value);
}

/** Whether an exit call of deno's is under way, which only the stack tells. */
function isExitCall() {
  if (Object.isFrozen(Error)) return false;
  const { prepareStackTrace: own, stackTraceLimit: limit } = Object.getOwnPropertyDescriptors(Error);
  try {
    Error.stackTraceLimit = 9;
    delete Error.prepareStackTrace;
    return new Error().stack.includes(" (ext:deno_os/30_os.js:");
  } catch {
    return false;
  } finally {
    if (limit) Object.defineProperty(Error, "stackTraceLimit", limit);
    if (own) Object.defineProperty(Error, "prepareStackTrace", own);
  }
}

/**
 * Reports the end of a script whose exit code is certain, before deno takes its engine apart. Nothing is reported while
 * other code may still run, nor after uncaught errors, which do not lead here.
 */
function reportEnd() {
  const { listenerCount, listeners, on } = process;
  let isIdle = false;
  let unloads = 0;
  const end = () => {
    const code = Deno.exitCode & 255;
    tell(`ended ${code}`);
    // The guest ends this process, once there is time to take its memory apart.
    libc.read(control, new Uint8Array(1), 1n);
    libc._exit(code);
  };
  const last = () => {
    if (unloads === 1 && listeners.call(process, "exit").at(-1) === last) end();
  };
  addEventListener("beforeunload", () => (isIdle = true));
  addEventListener("unload", () => {
    // More than once: the script has made such an event itself.
    if (++unloads > 1) return;
    if (!isIdle) {
      if (isExitCall() && getEventListeners(globalThis, "unload").length === 1) end();
    } else if (listenerCount.call(process, "newListener") === newListeners) {
      // The natural end: `exit` is emitted by the process now, to this one as the last. Those who
      // listen for listeners must not see one more.
      on.call(process, "exit", last);
    }
  });
}

/** Does something that writes to the standard streams, and keeps it from being seen. */
function unseen(action) {
  const nowhere = libc.open(encoder.encode("/dev/null\0"), O_WRONLY);
  if (nowhere < 0) return;
  const streams = [1, 2].map((stream) => [stream, libc.fcntl(stream, F_DUPFD_CLOEXEC, 900)]);
  for (const [stream] of streams) libc.dup2(nowhere, stream);
  action();
  for (const [stream, kept] of streams) {
    libc.dup2(kept, stream);
    libc.close(kept);
  }
  libc.close(nowhere);
}

/** Goes through what the start and the end of a script go through, so that it is in memory by then. */
async function warm() {
  unseen(() => {
    console.log("%s", 1);
    console.error(1);
  });
  await new Promise((resolve) => process.nextTick(resolve));
  Deno.inspect({ a: [1, "b"], c: new Map([[1, new Error("d")]]) });
  await import("data:application/typescript,export const a: number = await 1;");
  const listen = () => {};
  addEventListener("isol8", listen);
  dispatchEvent(new Event("isol8", { cancelable: true }));
  removeEventListener("isol8", listen);
  const emitter = new EventEmitter();
  emitter.on("isol8", listen);
  emitter.emit("isol8", Deno.exitCode);
  emitter.listeners("isol8").at(-1);
  getEventListeners(globalThis, "unload");
  isExitCall();
  process.emit("isol8", 0);
  Deno.chdir(Deno.cwd());
  const { PATH, ...others } = Deno.env.toObject();
  setEnvironment(["PATH", (PATH ?? "").slice(own.first.length), ...Object.entries(others).flat()]);
  fields(Number(words(encoder.encode("S 0\n"))[1]));
  split(new Uint8Array([1, 0, 0, 0, 97, 0, 0, 0, 0]));
  libc.fcntl(control, F_GETFD, 0);
  // Deno does so when it has loaded a script, and needs the longer for it the more was freed until then.
  libc.malloc_trim(0n);
}

/** Whether deno can load what is in the place of the module that it was started on: it opens it in any case. */
function isMainReadable() {
  try {
    return Deno.lstatSync(new URL(MAIN)).isFile && Deno.readFileSync(new URL(MAIN)) !== undefined;
  } catch (error) {
    return error instanceof Deno.errors.NotFound;
  }
}

/** Has deno run nothing instead of the module that it was started on; false where this deno cannot. */
function replaceMain() {
  if (!isMainReadable()) return false;
  // Looked up on the module, because older ones have none.
  const { registerHooks } = module;
  if (!registerHooks) return false;
  const hooks = registerHooks({
    load(url, context, next) {
      if (url !== MAIN) return next(url, context);
      hooks.deregister();
      return { source: "", format: "module", shortCircuit: true };
    },
  });
  return true;
}

async function boot() {
  reportEnd();
  await warm();
  tell("ready");
  const line = new Uint8Array(64);
  const read = Number(libc.read(control, line, BigInt(line.length)));
  if (read <= 0) libc._exit(0);
  const request = words(line.subarray(0, read));
  if (request[0] === "C") {
    const canDrain = replaceMain();
    const served = serve({ libc, control, tell, words, fields, request, canDrain });
    return canDrain ? undefined : served;
  }
  const [_path, directory, ...pairs] = fields(Number(request[1]));
  libc.close(mailbox);
  try {
    Deno.chdir(directory);
  } catch {
    tell("directory");
    libc._exit(1);
  }
  setEnvironment(pairs);
  tell("started");
}

await boot();
