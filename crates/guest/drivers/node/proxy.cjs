// Has node's own clients use the proxy of a run.
//
// Node looks for the variables that name a proxy at its start, which was before there was a run.

"use strict";

const process = require("node:process");

/** Looked up before code puts others in their places. */
const { Number, Object, Proxy, Reflect, Symbol } = globalThis;

/** Variables that name a proxy, and the hosts that are reached without it. */
const PROXIES = ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"];
/** The global name of the dispatcher that undici uses for all requests. */
const DISPATCHER = Symbol.for("undici.globalDispatcher.1");

/**
 * Has the clients use the proxy that the environment names, where node at its start would. May return a function that
 * undoes it.
 */
exports.useProxy = () => {
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
};

/**
 * Returns whether the clients can be led through the proxy of these variables later: for the guest's proxy, and a node
 * whose way of doing it was looked at.
 */
exports.canUseProxyLater = (pairs) => {
  const [major, minor] = process.versions.node.split(".").map(Number);
  const isKnown = major === 24 && minor >= 19 && process.versions.undici.startsWith("7.");
  const isOurs = pairs[pairs.indexOf("HTTP_PROXY") + 1].startsWith("http://127.0.0.1:");
  const isLoaded = process.moduleLoadList.includes("NativeModule http") || DISPATCHER in globalThis;
  return isKnown && isOurs && !isLoaded;
};

/** Returns the variables without those that name a proxy. */
exports.withoutProxies = (pairs) => pairs.filter((_, at) => !PROXIES.includes(pairs[at - (at % 2)]));

/**
 * Has the clients of a script use the proxy, which may never connect: what `fetch` has takes 60 ms to load. `http` and `https`
 * look at the environment when they are loaded, because this node was started with `NODE_USE_ENV_PROXY`. For
 * `fetch`, something stands where its dispatcher for everyone will be, until it is used.
 */
exports.useProxyLater = () => {
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
};
