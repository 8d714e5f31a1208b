// Loads the files that node shares with other engines.
//
// The three files are ES modules without imports. This loader makes functions of their texts. Importing the texts as
// modules, which scripts must not see either, would cost 6 ms of processor time and 7 MiB more (node 24).

"use strict";

const fs = require("node:fs");
const path = require("node:path");
const vm = require("node:vm");

/** The name of the driver's code in traces. */
const FILENAME = "node:internal/cells";

function load(name) {
  const text = fs.readFileSync(path.join(__dirname, "../javascript", name), "utf8");
  const names = [];
  const script = text.replace(/^export (\w+ (\w+))/gm, (_, declared, name) => (names.push(name), declared));
  const body = `"use strict";${script}\nreturn { ${names.join(", ")} };`;
  return vm.compileFunction(body, [], { filename: FILENAME })();
}

module.exports = { ...load("cells.mjs"), ...load("imports.mjs"), ...load("work.mjs") };
