// Loaded by a bun that is started on its script, before that.
//
// The guest adds this file to BUN_OPTIONS, a value that other programs neither see nor read.

import environment from "./environment.js" with { type: "text" };
import sync from "./sync.js" with { type: "text" };

function part(text) {
  const module = {};
  new Function("require", "module", text)(require, module);
  return module.exports;
}

function restoreOptions() {
  const isOurs = /^--preload=\S*\/prelude\.js ?/;
  const own = (process.env.BUN_OPTIONS ?? "").replace(isOurs, "");
  if (own) process.env.BUN_OPTIONS = own;
  else delete process.env.BUN_OPTIONS;
  process.execArgv = process.execArgv.filter((option) => !isOurs.test(option));
}

/** Removes what was loaded from the list of modules, which this one gets into at its end. */
function hideDriver() {
  const { cache } = require;
  let turns = 0;
  const remove = () => {
    for (const name of Object.keys(cache)) if (name.startsWith(`${import.meta.dir}/`)) delete cache[name];
    if (turns++ < 3) queueMicrotask(remove);
  };
  remove();
}

restoreOptions();
const { execArgv } = process;
// Bun passes on the environment of its start, without what the script changes.
const env = { ...process.env };
part(environment).passEnvironment(() => env, { execArgv });
part(sync).synchronize();
hideDriver();
