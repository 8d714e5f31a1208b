// Leads node's connections through the proxy of a run, whatever makes them.
//
// Node's own clients find the proxy by themselves from 24 on; older ones, and everything that connects by `net` or
// `tls` in any node, find no name server and no route. So a socket that is to be connected to another host connects to
// the proxy instead, and asks it for a tunnel (`CONNECT`). Until the tunnel is open, the socket counts as connecting;
// if the tunnel is refused, the error says so.

"use strict";

const fs = require("node:fs");
const os = require("node:os");
const process = require("node:process");

/** Looked up before code puts others in their places. */
const { Array, Buffer, Error, Number, Object, Reflect, setTimeout } = globalThis;

/** Longest answer of the proxy that is read, in bytes. */
const LONGEST = 4096;

/** How long the proxy is waited for before it is looked at again, in milliseconds. */
const PAUSE = 1;

/** In the sandbox itself; further ones are in `NO_PROXY`. */
const isHere = (host) => ["localhost", "127.0.0.1", "::1", "::", "0.0.0.0"].includes(host) || host === os.hostname();

/** Whether the environment names this host, or a domain that it is in, as one to be reached without a proxy. */
function isExempt(host, list = "") {
  const matches = (entry) => entry === "*" || host === entry || host.endsWith(`.${entry.replace(/^\*?\./, "")}`);
  return list.split(/[\s,]+/).some((entry) => entry && matches(entry));
}

/** The port of the run's proxy, if it has one that this host is to be reached through. */
function proxyFor(host) {
  const { env } = process;
  const [, port] = /^http:\/\/127\.0\.0\.1:(\d+)\/?$/.exec(env.HTTPS_PROXY ?? env.HTTP_PROXY ?? "") ?? [];
  if (env.NODE_USE_ENV_PROXY !== "1" || !port) return undefined;
  return isHere(host) || isExempt(host, env.NO_PROXY) ? undefined : Number(port);
}

/** The arguments of `connect` in all their forms, as options and a callback. */
function normalized(given) {
  if (Array.isArray(given[0])) return given[0];
  const done = given.find((each) => typeof each === "function");
  if (typeof given[0] === "object" && given[0]) return [given[0], done];
  const [port, host] = given;
  return [{ port, host: typeof host === "string" ? host : undefined }, done];
}

function refusal(host, port, text) {
  const [head, ...lines] = text.split("\r\n");
  const reason = lines.slice(lines.indexOf("") + 1).join(" ").trim();
  const message = `connect EACCES ${host}:${port}: the sandbox's network refused it (${head.replace(/^HTTP\S+ /, "")}${reason && `: ${reason}`})`;
  return Object.assign(new Error(message), { code: "EACCES", errno: -os.constants.errno.EACCES, syscall: "connect", address: host, port });
}

/** Asks for a tunnel on a descriptor that is connected to the proxy; `done` gets an error, or nothing. */
function openTunnel(descriptor, host, port, isOver, done) {
  const name = `${host.includes(":") ? `[${host}]` : host}:${port}`;
  const byte = Buffer.alloc(1);
  let answer = "";
  // No byte behind the answer's head may be taken: it is the other host's.
  const isWhole = () => answer.endsWith("\r\n\r\n");
  const look = () => {
    if (isOver()) return;
    try {
      while (!isWhole() && answer.length < LONGEST && fs.readSync(descriptor, byte) > 0) answer += byte.toString("latin1");
    } catch (error) {
      if (error.code === "EAGAIN") return void setTimeout(look, PAUSE);
      return done(error);
    }
    if (isWhole() && /^HTTP\/1\.\d 200/.test(answer)) return done();
    const rest = Buffer.alloc(LONGEST);
    try {
      answer += rest.toString("utf8", 0, fs.readSync(descriptor, rest));
    } catch {
      // The status says enough.
    }
    done(refusal(host, port, answer));
  };
  try {
    fs.writeSync(descriptor, `CONNECT ${name} HTTP/1.1\r\nHost: ${name}\r\n\r\n`);
  } catch (error) {
    return done(error);
  }
  look();
}

/** Keeps a socket from telling that it is connected, until the tunnel is there. */
function holdBack(socket, host, port) {
  const { emit } = socket;
  const own = Object.getOwnPropertyDescriptor(socket, "emit");
  const release = () => {
    if (own) Object.defineProperty(socket, "emit", own);
    else delete socket.emit;
  };
  const opened = (error) => {
    release();
    if (error) return socket.destroy(error);
    socket.connecting = false;
    socket.emit("connect");
    socket.emit("ready");
  };
  socket.emit = function (event, ...values) {
    if (event === "ready") return true;
    if (event !== "connect") return Reflect.apply(emit, socket, [event, ...values]);
    // Reads and writes wait meanwhile, as before.
    socket.connecting = true;
    openTunnel(socket._handle.fd, host, port, () => socket.destroyed, opened);
    return true;
  };
}

/** Has all sockets of this thread do so, in runs that have a network. */
exports.routeConnections = () => {
  const { prototype } = require("node:net").Socket;
  const { connect } = prototype;
  const routed = function (...given) {
    const [options, done] = normalized(given);
    const host = `${options.host ?? "localhost"}`.toLowerCase();
    const proxy = options.path || !options.port ? undefined : proxyFor(host);
    if (!proxy) return Reflect.apply(connect, this, given);
    holdBack(this, host, options.port);
    const { lookup, localAddress, localPort, family, ...others } = options;
    const instead = { ...others, host: "127.0.0.1", port: proxy, autoSelectFamily: false };
    return Reflect.apply(connect, this, done ? [instead, done] : [instead]);
  };
  Object.defineProperty(prototype, "connect", {
    value: Object.defineProperty(routed, "name", { value: "connect" }),
    writable: true,
    configurable: true,
    enumerable: true,
  });
};
//# sourceURL=node:internal/cells
