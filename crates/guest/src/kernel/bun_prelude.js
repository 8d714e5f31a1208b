// Loaded by a bun that is started on its script, before that.
//
// The guest adds this file to BUN_OPTIONS, where it is not to be seen, nor read by other programs.

import synchronize from "./bun_sync.js" with { type: "text" };

const isOurs = /^--preload=\S*\/prelude\.js ?/;
const own = (process.env.BUN_OPTIONS ?? "").replace(isOurs, "");
if (own) process.env.BUN_OPTIONS = own;
else delete process.env.BUN_OPTIONS;
process.execArgv = process.execArgv.filter((option) => !isOurs.test(option));
const module = {};
new Function("require", "module", synchronize)(require, module);
module.exports.synchronize();
