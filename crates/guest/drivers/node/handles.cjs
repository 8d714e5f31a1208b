// The handles that node's event loop waits for, told apart for cells (see work.mjs).

"use strict";

const { ChildProcess } = require("node:child_process");
const { Server, Socket } = require("node:net");
const process = require("node:process");
const threads = require("node:worker_threads");
const { isAwaited } = require("./shared.cjs");

/** Looked up before cells put others in their places. */
const { Object, Proxy, Reflect, Set } = globalThis;

/** Workers that have not ended. */
const workers = new Set();

const hasRef = (handle) => handle._handle?.hasRef?.() ?? false;

/** Returns whether a socket is a connection of HTTP on which an answer is still to come. Idle ones do not count for node. */
function isRequested(socket) {
  if (socket._httpMessage) return true;
  // The socket belongs to `fetch`.
  return Object.getOwnPropertySymbols(socket).some((symbol) => symbol.description === "parser");
}

/** Returns a function that gives all handles but `own`: those that wait for others, and those that may stay open. */
exports.scan = (own) => () => {
  const waiting = [];
  const open = [...workers];
  for (const handle of process._getActiveHandles()) {
    if (own.includes(handle)) continue;
    if (handle instanceof Server) {
      if (hasRef(handle)) waiting.push(handle);
    } else if (!(handle instanceof Socket)) {
      // Datagrams and watchers wait for others, and a child may wait for input.
      if (!(handle instanceof ChildProcess)) handle.unref && waiting.push(handle);
      else if (!isAwaited(handle)) open.push(handle);
    } else if (hasRef(handle) && !isRequested(handle)) {
      // Those that a server has accepted are its.
      (handle.server ?? handle._server ? waiting : open).push(handle);
    }
  }
  return { waiting, open };
};

/** Notes workers, which are no handles. */
exports.observeWorkers = () => {
  const original = threads.Worker;
  const construct = (target, given, newTarget) => {
    const worker = Reflect.construct(target, given, newTarget);
    workers.add(worker);
    worker.once("exit", () => workers.delete(worker));
    return worker;
  };
  threads.Worker = new Proxy(original, { construct });
  original.prototype.constructor = threads.Worker;
};
//# sourceURL=node:internal/cells
