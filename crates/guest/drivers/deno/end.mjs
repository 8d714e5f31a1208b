// Reports the end of a script to the guest, before deno takes its engine apart.

import { getEventListeners } from "node:events";
import process from "node:process";
import { control, libc, send } from "./control.mjs";

/** Looked up before scripts put others in their places. */
const { addEventListener, Deno, Error, Object, Uint8Array } = globalThis;

/** Number of frames of an exit call that are looked at. */
const FRAMES = 9;

const newListeners = process.listenerCount("newListener");

/** Returns whether an exit call of deno's is under way, which only the stack tells. */
export function isExitCall() {
  if (Object.isFrozen(Error)) return false;
  const { prepareStackTrace: own, stackTraceLimit: limit } = Object.getOwnPropertyDescriptors(Error);
  try {
    Error.stackTraceLimit = FRAMES;
    delete Error.prepareStackTrace;
    return new Error().stack.includes(" (ext:deno_os/30_os.js:");
  } catch {
    return false;
  } finally {
    if (limit) Object.defineProperty(Error, "stackTraceLimit", limit);
    if (own) Object.defineProperty(Error, "prepareStackTrace", own);
  }
}

function endProcess() {
  const code = Deno.exitCode & 255;
  send(`ended ${code}`);
  // The guest ends this process, once there is time to take its memory apart.
  libc.read(control, new Uint8Array(1), 1n);
  libc._exit(code);
}

/**
 * Reports the end of a script whose exit code is certain. Nothing is reported while other code may still run, nor after
 * uncaught errors, which do not lead here.
 */
export function reportEnd() {
  const { listenerCount, listeners, on } = process;
  let isIdle = false;
  let unloads = 0;
  const endIfLast = () => {
    if (unloads === 1 && listeners.call(process, "exit").at(-1) === endIfLast) endProcess();
  };
  addEventListener("beforeunload", () => (isIdle = true));
  addEventListener("unload", () => {
    // More than once: the script has made such an event itself.
    if (++unloads > 1) return;
    if (!isIdle) {
      if (isExitCall() && getEventListeners(globalThis, "unload").length === 1) endProcess();
    } else if (listenerCount.call(process, "newListener") === newListeners) {
      // The natural end: `exit` is emitted by the process now, to this one as the last. Those who
      // listen for listeners must not see one more.
      on.call(process, "exit", endIfLast);
    }
  });
}
