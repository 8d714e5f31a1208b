// The `require`, `import()`, `eval` and the like of cells, which behave as in a module in the working directory.

"use strict";

const Module = require("node:module");
const { URL, pathToFileURL } = require("node:url");
const vm = require("node:vm");
const { GlobalNames, NAME, currentDirectory, helpers } = require("./shared.cjs");

/** Looked up before cells put others in their places. */
const { Object, Proxy, Reflect, eval: evaluateText } = globalThis;

/** Functions that only code of a module can provide. */
const FROM_MODULE = `
  exports.call = (call, ...words) => call(...words);
  exports.load = (name, options) => import(name, options);
  exports.require = require;
  //# sourceURL=node:internal/cells
`;

/** Provides these names to cells. */
class Modules {
  #directory;
  #globals = new GlobalNames();
  #setImport;
  /** Calls a function from a module's code, because functions made there know from where they import. */
  #call;

  constructor() {
    this.#replaceConstructors();
    // A variable of the script scope is no property of any object, where code could see it.
    this.#setImport = vm.runInThisContext(`let ${NAME}; (value) => { ${NAME} = value }`);
  }

  /** Follows the working directory; to be called before each cell. */
  refresh() {
    const dirname = currentDirectory();
    if (dirname === this.#directory || dirname === undefined) return;
    this.#directory = dirname;
    const filename = `${dirname}/cell.cjs`;
    const url = pathToFileURL(filename).href;
    const module = new Module(filename);
    module.filename = filename;
    module.paths = Module._nodeModulePaths(dirname);
    module._compile(FROM_MODULE, filename);
    const { call, load, require } = module.exports;
    this.#call = call;
    module.exports = {};
    const resolve = (name) => {
      if (/^[./]|^\w+:/.test(name)) return new URL(name, url).href;
      return Module.isBuiltin(name) ? `node:${name}` : pathToFileURL(require.resolve(name)).href;
    };
    const meta = { __proto__: null, dirname, filename, resolve, url };
    const evaluate = (source) => call(evaluateText, source);
    this.#setImport(Object.assign(load, { ...helpers, evaluate, meta }));
    this.#globals.define({ require, module, exports: module.exports, __dirname: dirname, __filename: filename });
  }

  /** Replaces the constructors of functions, and `eval` in calls that do not know the names around them. */
  #replaceConstructors() {
    const apply = (target, _self, words) => this.#call(target, ...words);
    const construct = (target, words, newTarget) => this.#call(Reflect.construct, target, words, newTarget);
    for (const sample of [function () {}, async function () {}, function* () {}, async function* () {}]) {
      const prototype = Object.getPrototypeOf(sample);
      const value = new Proxy(prototype.constructor, { apply, construct });
      Object.defineProperty(prototype, "constructor", { value });
      if (prototype === Object.getPrototypeOf(Object)) globalThis.Function = value;
    }
  }
}

module.exports = { Modules };
//# sourceURL=node:internal/cells
