// The `import()` and `import.meta` of cells, which behave as in a module in the working directory.

import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import vm from "node:vm";
import { currentDirectory } from "../javascript/cells.mjs";
import { helpers } from "../javascript/imports.mjs";

/** Looked up before cells put others in their places. */
const { Deno, JSON, Map, Object, SyntaxError, Symbol, URL } = globalThis;

/** Working directory of cells for which the host names none. */
export const HOME = "/sandbox";

/** Files in which `deno add` and `deno install` map names. */
const CONFIGURATIONS = ["deno.json", "deno.jsonc"];

/** Specifiers of the file that deno was started on. */
const MAIN = /^\.{0,2}\/(?:.*\/)?main\.mts$|^file:.*\/main\.mts$/;

/** Functions that load a module, by the path of the module that they load for. */
const loaders = new Map();

/** Number of modules that were loaded under another name, because deno remembers something wrong of the right one. */
let aliases = 0;

let lastDirectory = HOME;

/** Returns the directory in which modules are looked for: the last one that existed, if code has removed it. */
function moduleDirectory() {
  lastDirectory = currentDirectory() ?? lastDirectory;
  return lastDirectory;
}

const cellPath = () => `${moduleDirectory()}/cell.mts`;

/** Returns a function that imports as a module of this path does. */
function loaderFor(path) {
  let load = loaders.get(path);
  if (!load) {
    load = vm.runInThisContext("(name, options) => import(name, options)", {
      filename: path,
      importModuleDynamically: vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER,
    });
    loaders.set(path, load);
  }
  return load;
}

/** Returns the URL with a query that makes deno take it for another module. */
function aliasOf(url) {
  url.search = `again=${++aliases}`;
  return url.href;
}

function readMappings(file) {
  try {
    return JSON.parse(readFileSync(file, "utf8")).imports ?? {};
  } catch {
    return {}; // it is not there, or has comments
  }
}

/** Returns the place that `deno add` and `deno install` have mapped a name to since the start. */
function mappedLater(specifier) {
  for (const file of [Deno.cwd(), HOME].flatMap((place) => CONFIGURATIONS.map((name) => `${place}/${name}`))) {
    for (const [name, target] of Object.entries(readMappings(file))) {
      if (!/^(?:npm|jsr):/.test(target)) continue;
      if (specifier === name) return target;
      if (specifier.startsWith(`${name}/`)) return target + specifier.slice(name.length);
    }
  }
}

/**
 * Loads a package that was installed after deno had started: deno looks neither at a new `deno.json` nor at
 * `node_modules`. Throws the given error if there is no such package.
 */
async function loadInstalled(path, specifier, error) {
  const load = loaderFor(path);
  const mapped = mappedLater(specifier);
  if (mapped !== undefined) return await load(mapped);
  const require = createRequire(path);
  let file;
  try {
    file = require.resolve(specifier);
  } catch {
    throw error;
  }
  try {
    const found = require(specifier);
    return found?.__esModule || found?.[Symbol.toStringTag] === "Module" ? found : { default: found, ...found };
  } catch (problem) {
    if (!(problem instanceof SyntaxError) && problem?.code !== "ERR_REQUIRE_ESM") throw problem;
    return await load(pathToFileURL(file).href);
  }
}

function importer(specifier, options) {
  const path = cellPath();
  const load = loaderFor(path);
  // Deno was started on this file, and takes it for empty.
  if (MAIN.test(specifier)) return load(aliasOf(new URL(specifier, pathToFileURL(path))), options);
  return load(specifier, options).catch((error) => {
    if (/^\w+:/.test(specifier)) throw error;
    if (/^[@\w]/.test(specifier)) return loadInstalled(path, specifier, error);
    // Deno remembers that there was no such file; under another name it looks again.
    const url = new URL(specifier, pathToFileURL(path));
    if (error?.code !== "ERR_MODULE_NOT_FOUND" || !existsSync(url)) throw error;
    return load(aliasOf(url), options);
  });
}

/** The `import.meta` of cells. */
const meta = {
  get dirname() {
    return moduleDirectory();
  },
  get filename() {
    return cellPath();
  },
  main: true,
  resolve: (specifier) => new URL(specifier, meta.url).href,
  get url() {
    return pathToFileURL(cellPath()).href;
  },
};

/** Returns the global function that the imports of cells call. */
export const makeImporter = () => Object.assign(importer, helpers, { meta });
