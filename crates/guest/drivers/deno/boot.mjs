// Waits inside deno's own start until the guest says what to run.
//
// The guest starts `deno run --allow-all --preload <this file> /sandbox/main.mts`. Deno evaluates
// this module before it loads the main one, which need not exist by then: returning from here runs
// the script by deno's own means, so that its errors, traces and exit code are deno's. For cells, deno
// finds nothing to run and its event loop goes on (see cells.mjs).

import { EventEmitter, getEventListeners } from "node:events";
import module from "node:module";
import process from "node:process";
import { serve } from "./cells.mjs";
import { control, libc, mailbox, readMailbox, receive, send, splitTexts, splitWords, withoutOutput } from "./control.mjs";
import { isExitCall, reportEnd } from "./end.mjs";

/** Looked up before cells put others in their places. */
const { Deno, Map, Number, Object, TextEncoder, Uint8Array } = globalThis;

const F_GETFD = 1;

/** The script that deno was started on. */
const MAIN = "file:///sandbox/main.mts";

// Importing `node:module` leaves this behind.
delete globalThis.nodeBootstrap;

/**
 * Finds the variables that deno itself has put into its environment since it was started. Without a node on the
 * machine, deno puts a stand-in first into `PATH`, and says so in a variable.
 */
function findOwnVariables() {
  const started = new Map();
  for (const pair of Deno.readTextFileSync("/proc/self/environ").split("\0")) {
    const at = pair.indexOf("=");
    if (at > 0) started.set(pair.slice(0, at), pair.slice(at + 1));
  }
  const variables = Object.entries(Deno.env.toObject()).filter(([name]) => !started.has(name));
  const [now, then] = [Deno.env.get("PATH") ?? "", started.get("PATH") ?? ""];
  return { variables, pathPrefix: now.endsWith(then) ? now.slice(0, now.length - then.length) : "" };
}

const own = findOwnVariables();

/** Makes the environment the given one, as deno starts with it; deno takes a changed `TZ` up. */
function setEnvironment(pairs) {
  const wanted = new Map(own.variables);
  for (let at = 0; at + 1 < pairs.length; at += 2) {
    wanted.set(pairs[at], pairs[at] === "PATH" ? own.pathPrefix + pairs[at + 1] : pairs[at + 1]);
  }
  for (const [name, value] of Object.entries(Deno.env.toObject())) {
    if (!wanted.has(name)) Deno.env.delete(name);
    else if (wanted.get(name) === value) wanted.delete(name);
  }
  for (const [name, value] of wanted) Deno.env.set(name, value);
}

/** Sets the environment that deno has already. */
function warmEnvironment() {
  const { PATH, ...others } = Deno.env.toObject();
  setEnvironment(["PATH", (PATH ?? "").slice(own.pathPrefix.length), ...Object.entries(others).flat()]);
}

/** Goes through what the start and the end of a script go through, so that it is in memory by then. */
async function warmUp() {
  withoutOutput(() => {
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
  warmEnvironment();
  readMailbox(Number(splitWords(new TextEncoder().encode("S 0\n"))[1]));
  splitTexts(new Uint8Array([1, 0, 0, 0, 97, 0, 0, 0, 0]));
  libc.fcntl(control, F_GETFD, 0);
  // Deno does so when it has loaded a script, and needs the longer for it the more was freed until then.
  libc.malloc_trim(0n);
}

/** Returns whether deno can load what is in the place of the module that it was started on: it opens it in any case. */
function isMainReadable() {
  try {
    return Deno.lstatSync(new URL(MAIN)).isFile && Deno.readFileSync(new URL(MAIN)) !== undefined;
  } catch (error) {
    return error instanceof Deno.errors.NotFound;
  }
}

/** Has deno run nothing instead of the module that it was started on; returns false where this deno cannot. */
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

/** Prepares the process for the script of a request. */
function startScript(size) {
  const [_path, directory, ...pairs] = readMailbox(size);
  libc.close(mailbox);
  try {
    Deno.chdir(directory);
  } catch {
    send("directory");
    libc._exit(1);
  }
  setEnvironment(pairs);
  send("started");
}

async function boot() {
  reportEnd();
  await warmUp();
  send("ready");
  const [kind, ...request] = receive();
  if (kind !== "C") return startScript(Number(request[0]));
  const canDrain = replaceMain();
  const served = serve(request, canDrain);
  return canDrain ? undefined : served;
}

await boot();
