// Waits inside bun's own start until the guest says what to run.
//
// The guest starts `bun run /sandbox/main.ts` in the directory of this file, whose `bunfig.toml`
// preloads it: neither arguments nor environment tell of it, and workers do not load it. A script of
// that name must exist when bun starts, and is not looked at before this module has ended.
//
// This file only loads the rest, as texts: bun keeps copies of larger modules in the user's home.

import environment from "./bun_environment.js" with { type: "text" };
import cells from "./bun_cells.js" with { type: "text" };
import common from "./cells.mjs" with { type: "text" };
import kernel from "./bun_kernel.js" with { type: "text" };
import lines from "./bun_lines.js" with { type: "text" };
import stdio from "./bun_stdio.js" with { type: "text" };
import sync from "./bun_sync.js" with { type: "text" };
import imports from "./imports.mjs" with { type: "text" };
import work from "./work.mjs" with { type: "text" };

function part(text) {
  const module = {};
  new Function("require", "module", text)(require, module);
  return module.exports;
}

/** The same of a module. */
function moduleOf(text) {
  const names = [];
  const script = text.replace(/^export (\w+ (\w+))/gm, (_, declared, name) => (names.push(name), declared));
  return part(`${script}\nmodule.exports = { ${names.join(", ")} };`);
}

const makeParts = () => {
  const modules = [common, imports, work].map(moduleOf);
  return { ...part(cells), ...part(lines), ...part(stdio), imports: Object.assign({}, ...modules) };
};

await part(kernel).boot(makeParts, { ...part(sync), ...part(environment) });
