// Loaded by a node that is started on its script, before that.
//
// The guest adds this file to NODE_OPTIONS, a value that other programs neither see nor read.

"use strict";

const Module = require("node:module");
const process = require("node:process");
const { isMainThread } = require("node:worker_threads");

function restoreOptions() {
  const own = (process.env.NODE_OPTIONS ?? "").replace(/^--require=\S*\/prelude\.cjs ?/, "");
  if (own) process.env.NODE_OPTIONS = own;
  else delete process.env.NODE_OPTIONS;
}

function hideDriver() {
  for (const name of Object.keys(Module._cache)) delete Module._cache[name];
  for (const name of Object.keys(Module._pathCache)) delete Module._pathCache[name];
  const others = process._preload_modules.filter((name) => name !== __filename);
  Object.defineProperty(process, "_preload_modules", { value: others });
}

restoreOptions();
const { refuseTypes } = require("./types.cjs");
const { routeConnections } = require("./network.cjs");
hideDriver();
if (isMainThread) {
  if (process.env.NODE_USE_ENV_PROXY === "1") routeConnections();
  refuseTypes(process.argv[1]);
  // An exit loses nothing then.
  for (const { _handle } of [process.stdout, process.stderr]) _handle?.setBlocking?.(true);
}
