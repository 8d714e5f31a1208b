// The `require`, `import()` and the like of cells, which behave as in a module in the working directory.

"use strict";

const Module = require("node:module");
const { GlobalNames, currentDirectory } = require("../javascript/cells.mjs");
const { NAME, helpers } = require("../javascript/imports.mjs");

/** Looked up before cells put others in their places. */
const { Bun, Object, URL, process } = globalThis;

/** Provides these names to cells. */
class Modules {
  #directory;
  #globals = new GlobalNames();

  /** Follows the working directory; to be called before each cell. */
  refresh() {
    const dirname = currentDirectory();
    if (dirname === this.#directory || dirname === undefined) return;
    this.#directory = dirname;
    const filename = `${dirname}/cell.ts`;
    const { href } = Bun.pathToFileURL(filename);
    const require = Module.createRequire(filename);
    const load = async (specifier, options) => import(Bun.resolveSync(`${specifier}`, dirname), options);
    const resolve = (specifier) => {
      if (/^\.{0,2}\//.test(specifier)) return new URL(specifier, href).href;
      const found = Bun.resolveSync(specifier, dirname);
      return found.startsWith("/") ? Bun.pathToFileURL(found).href : found;
    };
    const meta = { dir: dirname, dirname, env: process.env, file: "cell.ts", filename, main: true, path: filename };
    Object.assign(load, helpers, { meta: { ...meta, require, resolve, url: href } });
    this.load = load;
    const module = new Module(filename);
    Object.assign(module, { filename, paths: Module._nodeModulePaths(dirname) });
    this.#globals.define({ [NAME]: load, require, module, exports: module.exports });
  }
}

module.exports = { Modules };
