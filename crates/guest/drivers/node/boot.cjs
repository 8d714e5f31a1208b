// Waits inside node's own start until the guest says what to run.
//
// The guest starts `node /sandbox/main.mjs` in `/`, with `NODE_OPTIONS=--require=/proc/self/fd/5`
// and this file open as descriptor 5: node loads it before it opens the script. Returning from here
// runs the script by node's own means, whatever its name is; for cells, node finds nothing to run
// and its event loop goes on (see cells.cjs). Names and modules of this file are gone by then.
//
// Workers read the same option, and cannot be told not to: for them descriptor 5 is an empty file.
// Node remembers what `package.json` says in the directory that it starts in, hence not `/sandbox`.

"use strict";

const fs = require("node:fs");
const Module = require("node:module");
const process = require("node:process");
const { getHeapSpaceStatistics } = require("node:v8");
const cells = require("./cells.cjs");
const { closeMailbox, readMailbox, receive, send } = require("./control.cjs");
const { reportEnd } = require("./end.cjs");
const { routeConnections } = require("./network.cjs");
const { canUseProxyLater, useProxy, useProxyLater, withoutProxies } = require("./proxy.cjs");
const { refuseTypes } = require("./types.cjs");

/** The descriptor of this file. */
const DRIVER = 5;
const SANDBOX = "/sandbox";

/** Turns of the queues of promises after which a module counts as one that waits for something else. */
const MAX_TURNS = 100;

/** Runs what has to wait for promises, but for nothing else, until the promise is settled. */
function settle(promise) {
  let isSettled = false;
  promise.then(() => (isSettled = true));
  for (let turn = 0; turn < MAX_TURNS && !isSettled; turn++) process._tickCallback();
}

/** Touches what the start and the end of a script touch, so that it is in memory by then. */
function warmUp() {
  settle(import("data:text/javascript,export const a = 1"));
  const { stdout, stderr } = process;
  stdout.write = () => true;
  console.log("%s", { a: [1, "b", new Map([[1, new Error("c")]])] }, 2);
  delete stdout.write;
  stdout.write("");
  stderr.write("");
  process.emit("isol8", 0);
  process.getActiveResourcesInfo();
  process.chdir(SANDBOX);
  new Module("isol8")._compile("module.exports = 1", "/isol8.cjs");
}

/** Makes the environment exactly the given one, in its order. */
function setEnvironment(pairs) {
  const { env } = process;
  const { HOME: home, TZ: zone } = env;
  const wanted = new Map();
  for (let at = 0; at + 1 < pairs.length; at += 2) wanted.set(pairs[at], pairs[at + 1]);
  // Touching the time zone makes it looked up again.
  if (wanted.has("TZ") && wanted.get("TZ") === zone) wanted.delete("TZ");
  else delete env.TZ;
  for (const name of Object.keys(env)) if (name !== "TZ") delete env[name];
  for (const [name, value] of wanted) env[name] = value;
  // The last directory in which modules are looked for is under the home.
  if (env.HOME !== home) Module._initPaths();
}

/**
 * Makes node run this file, or nothing, instead of the one that it was started on. `before` is called when
 * node has done everything else that it does before.
 */
function replaceMain(file, before) {
  const { runMain } = Module;
  Object.defineProperty(Module, "runMain", {
    configurable: true,
    get() {
      Object.defineProperty(Module, "runMain", { value: runMain, writable: true });
      before?.();
      // A bound function, because this shows in no trace.
      return file ? runMain.bind(Module, file) : () => {};
    },
  });
}

/** Has the space for young objects collected, so that this does not fall into a script that makes few. */
function collect() {
  const used = () => getHeapSpaceStatistics().find((space) => space.space_name === "new_space").space_used_size;
  for (let last = 0, now = used(); now >= last; last = now, now = used()) new Array(4096).fill(0);
}

/** Removes what loading the driver has left. */
function hideDriver() {
  for (const name of Object.keys(Module._cache)) delete Module._cache[name];
  for (const name of Object.keys(Module._pathCache)) delete Module._pathCache[name];
  Object.defineProperty(process, "_preload_modules", { value: [] });
  delete process.env.NODE_OPTIONS;
  delete process.env.NODE_USE_ENV_PROXY;
  fs.closeSync(DRIVER);
  fs.openSync("/dev/null");
}

/** Prepares the process for the script of a request, and returns; node runs the script then. */
function startScript(size) {
  const [file, directory, ...pairs] = readMailbox(size);
  closeMailbox();
  try {
    process.chdir(directory);
  } catch {
    send("directory");
    process.reallyExit(1);
  }
  process.argv[1] = file;
  // An exit loses nothing then.
  for (const { _handle } of [process.stdout, process.stderr]) _handle?.setBlocking?.(true);
  const hasNetwork = pairs.includes("NODE_USE_ENV_PROXY");
  if (hasNetwork) routeConnections();
  if (hasNetwork && canUseProxyLater(pairs)) {
    // If node finds the proxies now, it loads the modules of `fetch` itself.
    setEnvironment(withoutProxies(pairs));
    replaceMain(file, () => {
      setEnvironment(pairs);
      useProxyLater();
    });
  } else {
    setEnvironment(pairs);
    useProxy();
    replaceMain(file);
  }
  send("started");
  refuseTypes(file);
}

/** Makes this process one that runs cells. */
function startCells(first) {
  replaceMain();
  routeConnections();
  cells.serve(first);
}

function boot() {
  reportEnd();
  warmUp();
  cells.warmUp();
  collect();
  hideDriver();
  send("ready");
  const [kind, ...numbers] = receive();
  if (kind === "C") startCells(numbers);
  else if (kind === "S") startScript(Number(numbers[0]));
  else process.reallyExit(0);
}

boot();
