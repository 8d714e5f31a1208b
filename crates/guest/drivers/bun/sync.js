// Has bun write to standard output and error at once, so that an exit loses nothing.
//
// `console.log` does so already. Streams, and `Bun.stdout.writer()`, write through a sink, which keeps what a full
// pipe does not take, and is dropped with the process. A driver loads this, and so does a bun that is started on
// its script.

"use strict";

const { Atomics, Buffer, Bun, Int32Array, Number, Object, Proxy, Reflect, SharedArrayBuffer } = globalThis;

/** How a file shows that has a descriptor but no name. */
const DESCRIPTOR = /^\w+ \(fd: ([12])\)/;

let sleep;

/** Writes all of it, however long the pipe is full. */
function writeAll(descriptor, bytes) {
  // Loaded by the streams that come here.
  const { writeSync } = require("node:fs");
  for (let at = 0; at < bytes.length; ) {
    try {
      at += writeSync(descriptor, bytes, at);
    } catch (error) {
      if (error.code !== "EAGAIN") throw error;
      sleep ??= new Int32Array(new SharedArrayBuffer(4));
      Atomics.wait(sleep, 0, 0, 1);
    }
  }
}

const toBytes = (data) => (typeof data === "string" ? Buffer.from(data) : Buffer.from(data.buffer ?? data, data.byteOffset, data.byteLength));

function write(descriptor, data) {
  const bytes = toBytes(data);
  writeAll(descriptor, bytes);
  return bytes.length;
}

/** Returns a function that undoes the change. */
function synchronize() {
  const prototype = Object.getPrototypeOf(Bun.file("/dev/null"));
  const { writer } = prototype;
  const apply = (target, self, given) => {
    const sink = Reflect.apply(target, self, given);
    const [, descriptor] = DESCRIPTOR.exec(Bun.inspect(self, { colors: false })) ?? [];
    if (descriptor === undefined) return sink;
    const value = (data) => write(Number(descriptor), data);
    return Object.defineProperty(sink, "write", { value, writable: true, configurable: true });
  };
  prototype.writer = new Proxy(writer, { apply });
  return () => {
    prototype.writer = writer;
  };
}

module.exports = { synchronize };
