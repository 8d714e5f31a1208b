// Waits inside bun's own start until the guest says what to run.
//
// The guest starts `bun run /sandbox/main.ts` in the directory of this file, whose `bunfig.toml`
// preloads it: neither arguments nor environment tell of it, and workers do not load it. A script of
// that name must exist when bun starts, and is not looked at before this module has ended.
//
// This file only loads the rest, as texts: bun keeps copies of larger modules in the user's home.

import boot from "./boot.js" with { type: "text" };
import cells from "./cells.js" with { type: "text" };
import environment from "./environment.js" with { type: "text" };
import errors from "./errors.js" with { type: "text" };
import lines from "./lines.js" with { type: "text" };
import listeners from "./listeners.js" with { type: "text" };
import modules from "./modules.js" with { type: "text" };
import stdio from "./stdio.js" with { type: "text" };
import sync from "./sync.js" with { type: "text" };
import commonCells from "../javascript/cells.mjs" with { type: "text" };
import imports from "../javascript/imports.mjs" with { type: "text" };
import work from "../javascript/work.mjs" with { type: "text" };

/** The texts of the driver's files, by the name that they have in `require`. */
const texts = {
  "./boot.js": boot,
  "./cells.js": cells,
  "./environment.js": environment,
  "./errors.js": errors,
  "./lines.js": lines,
  "./listeners.js": listeners,
  "./modules.js": modules,
  "./stdio.js": stdio,
  "./sync.js": sync,
  "../javascript/cells.mjs": commonCells,
  "../javascript/imports.mjs": imports,
  "../javascript/work.mjs": work,
};

/** The driver's files that were loaded, by name. */
const loaded = {};

/** Returns an ES module without imports as one of CommonJS. */
function toCommonJs(text) {
  const names = [];
  const script = text.replace(/^export (\w+ (\w+))/gm, (_, declared, name) => (names.push(name), declared));
  return `${script}\nmodule.exports = { ${names.join(", ")} };`;
}

/** The `require` of the driver's files. */
function load(name) {
  if (!(name in texts)) return require(name);
  if (!(name in loaded)) {
    const text = name.endsWith(".mjs") ? toCommonJs(texts[name]) : texts[name];
    const module = {};
    new Function("require", "module", text)(load, module);
    loaded[name] = module.exports;
  }
  return loaded[name];
}

load.cache = require.cache;

await load("./boot.js").boot();
