// Waits inside bun's own start until the guest says what to run.
//
// The guest starts `bun run /sandbox/main.ts` in the directory of this file, whose `bunfig.toml`
// preloads it: neither arguments nor environment tell of it, and workers do not load it. A script of
// that name must exist when bun starts, and is not looked at before this module has ended. Returning
// from here runs the script by bun's own means, so that its errors, traces and exit code are bun's. Cells
// never return (see bun_cells.js).
//
// What bun has read by then for good (files of configuration, the name of the script), a bun that is
// executed in this one's place reads again.

import fs from "node:fs";
import { serve } from "./bun_cells.js";

const CONTROL = 3;
const MAILBOX = 4;
const MAIN = "/sandbox/main.ts";

/** Files that bun has looked for at its start, or remembers for the script's directory. */
const CONFIGURATION = /^(?:\.env(?:\..+)?|bunfig\.toml|[jt]sconfig\.json|package\.json|node_modules)$/;

const tell = (line) => fs.writeSync(CONTROL, `${line}\n`);

const words = (line) => line.split(/\s/).filter(Boolean);

/** The next line from the guest, word by word; nothing if it is gone. */
function request() {
  const line = Buffer.alloc(64);
  return words(line.latin1Slice(0, fs.readSync(CONTROL, line, 0, 64, null)));
}

/** The texts in the mailbox. */
function fields(size) {
  const data = Buffer.alloc(size);
  for (let filled = 0; filled < size; ) {
    const read = fs.readSync(MAILBOX, data, filled, size - filled, filled);
    if (read === 0) break;
    filled += read;
  }
  const found = [];
  for (let at = 0; at < size; ) {
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
  const isSame = (name, at) => name === names[at] && wanted[name] === env[name];
  const wantedNames = Object.keys(wanted);
  if (wantedNames.length === names.length && wantedNames.every(isSame)) return false;
  for (const name of names) delete env[name];
  for (const name of wantedNames) env[name] = wanted[name];
  return true;
}

/** Whether there is something in a directory that a bun would have read that starts now. */
function isConfigured(directory) {
  try {
    return fs.readdirSync(directory).some((name) => CONFIGURATION.test(name));
  } catch {
    return true;
  }
}

/** Looks like the function that it stands for. */
function disguise(replacement, original) {
  const bound = replacement.bind(undefined);
  Object.defineProperty(bound, "name", { value: original.name, configurable: true });
  Object.defineProperty(bound, "length", { value: original.length, configurable: true });
  return bound;
}

/** Children get the environment of bun's start where the code names none: gives them this one. */
function passEnvironment(env) {
  const complete = (options) => (options?.env === undefined ? { ...options, env: env() } : options);
  for (const name of ["spawn", "spawnSync"]) {
    const original = Bun[name];
    const spawn = (first, ...rest) => {
      if (Array.isArray(first)) return original(first, complete(rest[0]));
      return original(typeof first === "object" && first ? complete(first) : first, ...rest);
    };
    Bun[name] = disguise(spawn, original);
  }
  const original = Worker;
  const worker = new Proxy(original, {
    construct: (target, [url, options, ...rest], newTarget) =>
      Reflect.construct(target, [url, complete(options), ...rest], newTarget),
  });
  Object.defineProperty(original.prototype, "constructor", { value: worker });
  Object.defineProperty(globalThis, "Worker", { value: worker });
}

/** Touches what the start of a script touches, so that it is in memory by then. */
function warm() {
}

/** Takes this file out of the list of modules, which it gets into after its evaluation. */
function coverTracks() {
  const { cache } = require;
  let turns = 0;
  const remove = () => {
    delete cache[import.meta.path];
    if (turns++ < 4) queueMicrotask(remove);
  };
  remove();
}

function run(size) {
  const [file, directory, ...pairs] = fields(size);
  fs.closeSync(MAILBOX);
  const env = toObject(pairs);
  try {
    process.chdir(directory);
  } catch {
    tell("directory");
    process.reallyExit(1);
  }
  tell("started");
  fs.closeSync(CONTROL);
  if (file !== MAIN || isConfigured(directory) || isConfigured("/sandbox")) {
    process.execve(process.execPath, ["bun", "run", file], env);
  }
  if (setEnvironment(env)) passEnvironment(() => env);
  coverTracks();
}

async function boot() {
  warm();
  tell("ready");
  const [kind, ...numbers] = request();
  if (kind === "S") run(Number(numbers[0]));
  else if (kind === "C") await serve({ tell, words, fields, passEnvironment, first: numbers });
  else process.reallyExit(0);
}

await boot();
