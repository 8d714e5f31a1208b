// Gives children and workers of bun the environment that the code sees.

"use strict";

/** Looked up before code puts others in their places. */
const { Array, Bun, Object, Proxy, Reflect } = globalThis;

/** Looks like the function that it stands for. */
function disguise(replacement, { name, length }) {
  const bound = replacement.bind(undefined);
  Object.defineProperty(bound, "name", { value: name, configurable: true });
  Object.defineProperty(bound, "length", { value: length, configurable: true });
  return bound;
}

/**
 * Children and workers for which the code names no environment get the one of bun's start: gives
 * them this one. Workers get further options, too.
 */
function passEnvironment(env, forWorkers = {}) {
  const complete = (options) => (options?.env == null ? { ...options, env: env() } : options);
  const call = (original, first, rest) => {
    if (Array.isArray(first)) return original(first, complete(rest[0]));
    return original(first && typeof first === "object" ? complete(first) : first, ...rest);
  };
  const { spawn, spawnSync } = Bun;
  // The names of these arrow functions are shown, too.
  const replacements = {
    spawn: (first, ...rest) => call(spawn, first, rest),
    spawnSync: (first, ...rest) => call(spawnSync, first, rest),
  };
  Bun.spawn = disguise(replacements.spawn, spawn);
  Bun.spawnSync = disguise(replacements.spawnSync, spawnSync);
  const original = Worker;
  const worker = new Proxy(original, {
    construct: (target, [url, options, ...rest], newTarget) =>
      Reflect.construct(target, [url, { ...forWorkers, ...complete(options) }, ...rest], newTarget),
  });
  original.prototype.constructor = worker;
  globalThis.Worker = worker;
}

module.exports = { passEnvironment };
