// Waits inside node's own start until the guest says what to run.
//
// The guest starts `node /sandbox/main.mjs` in `/`, with `NODE_OPTIONS=--require=/proc/self/fd/5`
// and this file open as descriptor 5: node loads it before it opens the script. Returning from here
// runs the script by node's own means, whatever its name is; for cells, node finds nothing to run
// and its event loop goes on (see node_cells.cjs). Names and modules of this file are gone by then.
//
// Workers read the same option, and cannot be told not to: for them descriptor 5 is an empty file.
// Node remembers what `package.json` says in the directory that it starts in, hence not `/sandbox`.

"use strict";

const { Buffer } = require("node:buffer");
const fs = require("node:fs");
const Module = require("node:module");
const path = require("node:path");
const process = require("node:process");
const { getHeapSpaceStatistics } = require("node:v8");

const CONTROL = 3;
const MAILBOX = 4;
const DRIVER = 5;
const SANDBOX = "/sandbox";
/** The code with which node ends if a top-level `await` is never settled; it prints a warning then. */
const UNSETTLED = 13;
/** The code with which node ends after an uncaught error. */
const UNCAUGHT = 1;

/** Variables that name a proxy, and the hosts that are reached without it. */
const PROXIES = ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"];
/** Under which undici has its dispatcher for everyone. */
const DISPATCHER = Symbol.for("undici.globalDispatcher.1");

const { fstatSync, readSync, writeSync } = fs;
const control = fstatSync(CONTROL);

const tell = (line) => writeSync(CONTROL, `${line}\n`);

/** The next line from the guest, word by word; nothing if it is gone. */
function request() {
  const line = Buffer.alloc(64);
  return words(line.toString("latin1", 0, fs.readSync(CONTROL, line)));
}

const words = (line) => line.split(/\s/).filter(Boolean);

/** The texts in the mailbox. */
function fields(size) {
  const data = Buffer.alloc(size);
  for (let filled = 0; filled < size; ) {
    const read = fs.readSync(MAILBOX, data, filled, size - filled, filled);
    if (read === 0) break;
    filled += read;
  }
  const found = [];
  for (let at = 0; at < size; ) {
    const begin = at + 4;
    at = begin + data.readUInt32LE(at);
    found.push(data.toString("utf8", begin, at));
  }
  return found;
}

/** Runs what has to wait for promises, but for nothing else, until it is done. */
function settle(promise) {
  let outcome;
  promise.then((value) => (outcome = { value }));
  for (let turn = 0; turn < 100 && !outcome; turn++) process._tickCallback();
  return outcome?.value;
}

/** Touches what the start and the end of a script touch, so that it is in memory by then. */
function warm() {
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

/** Has node's own clients use the proxy that the environment names, where node at its start would. */
function useProxy() {
  const { env } = process;
  if (env.NODE_USE_ENV_PROXY !== "1") return;
  // The first with such clients is one of these; loading them takes some milliseconds.
  if (Number.parseInt(process.versions.node) < 22) return;
  // The global agents and dispatchers remember the environment that they were loaded in: not this one, which is that of
  // a cell.
  const hidden = PROXIES.filter((name) => name in env).map((name) => [name, env[name]]);
  for (const [name] of hidden) delete env[name];
  const http = require("node:http");
  require("node:https");
  for (const [name, value] of hidden) env[name] = value;
  try {
    // Older ones have no such function.
    return http.setGlobalProxyFromEnv?.();
  } catch {
    // The value is no address.
  }
}

/** Whether that can wait: for the guest's proxy, and a node whose way of doing it was looked at. */
function canWait(pairs) {
  const [major, minor] = process.versions.node.split(".").map(Number);
  const isKnown = major === 24 && minor >= 19 && process.versions.undici.startsWith("7.");
  const isOurs = pairs[pairs.indexOf("HTTP_PROXY") + 1].startsWith("http://127.0.0.1:");
  const isLoaded = process.moduleLoadList.includes("NativeModule http") || DISPATCHER in globalThis;
  return isKnown && isOurs && !isLoaded;
}

/** Without the variables that name a proxy. */
const withoutProxies = (pairs) => pairs.filter((_, at) => !PROXIES.includes(pairs[at - (at % 2)]));

/**
 * The same for a script, which may never connect: what `fetch` has takes 60 ms to load. `http` and `https`
 * look at the environment when they are loaded, because this node was started with `NODE_USE_ENV_PROXY`. For
 * `fetch`, something stands where its dispatcher for everyone will be, until it is used.
 */
function useProxyLater() {
  let used;
  const use = () => {
    if (used) return used;
    const http = require("node:http");
    const https = require("node:https");
    const before = [http.globalAgent, https.globalAgent];
    http.setGlobalProxyFromEnv();
    [http.globalAgent, https.globalAgent] = before;
    used = globalThis[DISPATCHER];
    return used;
  };
  const value = new Proxy(Object.create(null), {
    get(_, name) {
      const found = Reflect.get(use(), name);
      return typeof found === "function" ? found.bind(used) : found;
    },
    set: (_, name, given) => Reflect.set(use(), name, given),
    has: (_, name) => Reflect.has(use(), name),
    getPrototypeOf: () => Reflect.getPrototypeOf(use()),
  });
  // As undici defines it.
  Object.defineProperty(globalThis, DISPATCHER, { value, writable: true, enumerable: false, configurable: false });
}

/**
 * Reports the end of a script whose code is certain, before node takes its engine apart. Listeners
 * and functions of ours would be seen, so they are put in place when `exit` is about to be emitted:
 * node looks up `emit` on the process then.
 */
function reportEnd() {
  const { reallyExit } = process;
  const activeRequests = process._getActiveRequests.bind(process);
  const prototype = Object.getPrototypeOf(process);
  const emitter = Object.getPrototypeOf(prototype);

  const nothing = Buffer.alloc(1);
  let isReported = false;

  function report(code) {
    // Node waits for work of other threads, such as writing to a file.
    if (isReported || process.reallyExit !== exit || activeRequests().length > 0) return;
    isReported = true;
    try {
      const { dev, ino } = fstatSync(CONTROL);
      if (dev !== control.dev || ino !== control.ino) return;
      tell(`ended ${code & 255}`);
      // The guest ends this process, once there is time to take its memory apart.
      readSync(CONTROL, nothing);
    } catch {
      // The script has closed it.
    }
  }

  /** Ends the process if no listener of the script would run, after an exit call or not. */
  function end(code) {
    // The text of an uncaught error comes later.
    if (code !== UNSETTLED && code !== UNCAUGHT) report(Number(code));
  }

  /** The last that an exit call does. */
  function exit(code) {
    report(Number(code));
    reallyExit.call(process, code);
  }

  Object.defineProperty(prototype, "emit", {
    configurable: true,
    enumerable: true,
    get() {
      if (this === process && process._exiting) {
        if (process.reallyExit === reallyExit) process.reallyExit = exit;
        process._events.exit ??= end;
      }
      return emitter.emit;
    },
    set(value) {
      Object.defineProperty(this, "emit", { value, writable: true, enumerable: true, configurable: true });
    },
  });
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

/** Takes back what loading the driver has left. */
function coverTracks() {
  for (const name of Object.keys(Module._cache)) delete Module._cache[name];
  for (const name of Object.keys(Module._pathCache)) delete Module._pathCache[name];
  Object.defineProperty(process, "_preload_modules", { value: [] });
  delete process.env.NODE_OPTIONS;
  delete process.env.NODE_USE_ENV_PROXY;
  fs.closeSync(DRIVER);
  fs.openSync("/dev/null");
}

function boot() {
  const cells = require("./node_cells.cjs");
  const { routeConnections } = require("./node_network.cjs");
  const { refuseTypes } = require("./node_types.cjs");
  const load = (name) => {
    // Traces show the source's URL, which would be the whole of it.
    const source = `${fs.readFileSync(path.join(__dirname, name))}\n//# sourceURL=node:internal/cells`;
    return settle(import(`data:text/javascript;base64,${Buffer.from(source).toString("base64")}`));
  };
  const imports = { ...load("cells.mjs"), ...load("imports.mjs"), ...load("work.mjs") };
  reportEnd();
  warm();
  cells.warm(imports);
  collect();
  coverTracks();
  tell("ready");
  const [kind, ...numbers] = request();
  if (kind === "C") {
    replaceMain();
    routeConnections();
    cells.serve({ CONTROL, tell, words, fields, useProxy, imports, first: numbers });
    return;
  }
  if (kind !== "S") process.reallyExit(0);
  const [file, directory, ...pairs] = fields(Number(numbers[0]));
  fs.closeSync(MAILBOX);
  try {
    process.chdir(directory);
  } catch {
    tell("directory");
    process.reallyExit(1);
  }
  process.argv[1] = file;
  // An exit loses nothing then.
  for (const { _handle } of [process.stdout, process.stderr]) _handle?.setBlocking?.(true);
  if (pairs.includes("NODE_USE_ENV_PROXY")) routeConnections();
  if (pairs.includes("NODE_USE_ENV_PROXY") && canWait(pairs)) {
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
  tell("started");
  refuseTypes(file);
}

boot();
