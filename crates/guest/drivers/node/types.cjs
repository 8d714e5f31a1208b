// Says of a script in TypeScript why a node that cannot take its types away does not run it.

"use strict";

const fs = require("node:fs");
const process = require("node:process");

const TYPESCRIPT = /\.[cm]?ts$/;

/** Whether an option of the script's own may have node understand it. */
const hasLoader = () => /strip-types|transform-types|loader|import|-r/.test(process.env.NODE_OPTIONS ?? "");

/** Ends node if it cannot run this file. */
exports.refuseTypes = (file) => {
  if (!TYPESCRIPT.test(file) || process.features.typescript || hasLoader()) return;
  const others = "node runs TypeScript from 22.18 on, and the runtimes bun and deno always do";
  fs.writeSync(2, `${file}: this node (${process.version}) cannot run TypeScript; ${others}\n`);
  process.reallyExit(1);
};
