// Loads the modules that node shares with other engines, which are ES modules.

"use strict";

const { Buffer } = require("node:buffer");
const fs = require("node:fs");
const path = require("node:path");
const process = require("node:process");

/** Turns of the queues of promises after which a module counts as one that waits for something else. */
const MAX_TURNS = 100;

/** Runs what has to wait for promises, but for nothing else, until the promise is settled. Returns its value. */
function settle(promise) {
  let outcome;
  promise.then((value) => (outcome = { value }));
  for (let turn = 0; turn < MAX_TURNS && !outcome; turn++) process._tickCallback();
  return outcome?.value;
}

function load(name) {
  const source = fs.readFileSync(path.join(__dirname, "../javascript", name));
  // Traces show the source's URL, which would be the whole of it.
  const text = `${source}\n//# sourceURL=node:internal/cells`;
  return settle(import(`data:text/javascript;base64,${Buffer.from(text).toString("base64")}`));
}

module.exports = { ...load("cells.mjs"), ...load("imports.mjs"), ...load("work.mjs") };
