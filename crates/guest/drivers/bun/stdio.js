// Standard input and output of the cells, whatever a cell does to its own.

"use strict";

const fs = require("node:fs");
const { Readable } = require("node:stream");
const { identifyFile } = require("../javascript/cells.mjs");

/** Looked up before cells put others in their places. */
const { Bun, Object, Symbol, console, process } = globalThis;
const { closeSync, createReadStream, fstatSync, openSync, read } = fs;
const { nextTick } = process;

const NOTHING = "/dev/null";
const F_DUPFD_CLOEXEC = 1030;

/** Streams of earlier cells that may still be read. */
const MOST_LEFT = 64;

/** Identifies the file that a descriptor leads to; `undefined` if the descriptor is closed. */
const identity = (descriptor) => identifyFile(fstatSync, descriptor);

/** Standard input of cells: what the cell was given, then nothing. */
class Input {
  #libc;
  #idle;
  /** How often there was another. */
  #turn = 0;
  #stream;
  /** Those that earlier cells have left open, the oldest first. */
  #left = [];

  constructor(libc) {
    this.#libc = libc;
    this.use("");
    this.#idle = identity(0);
    process.stdin = undefined; // bun would make its own only to replace it
    Object.defineProperty(process, "stdin", {
      configurable: true,
      enumerable: true,
      get: () => (this.#stream ??= this.#open()),
      set: (stream) => (this.#stream = stream),
    });
    console[Symbol.asyncIterator] = async function* () {
      const { createInterface } = await import("node:readline");
      yield* createInterface({ input: process.stdin, crlfDelay: Infinity });
    };
  }

  #duplicate() {
    return this.#libc.fcntl(0, F_DUPFD_CLOEXEC, 10);
  }

  /** Streams read from a descriptor of their own, and so never what another cell is given. */
  #open() {
    const own = this.#duplicate();
    const files = {
      ...fs,
      read: (_descriptor, ...rest) => read(own, ...rest),
      close(_descriptor, done) {
        closeSync(own);
        nextTick(done);
      },
    };
    const stream = createReadStream("", { fd: 0, autoClose: true, fs: files });
    this.#left.push(stream);
    if (this.#left.length > MOST_LEFT) this.#left.shift().destroy();
    return Object.assign(stream, { isTTY: false });
  }

  #blob() {
    const turn = ++this.#turn;
    const file = Bun.file(0);
    for (const method of ["arrayBuffer", "bytes", "json", "text"]) {
      file[method] = async () => {
        const own = turn === this.#turn ? this.#duplicate() : openSync(NOTHING);
        try {
          return await Bun.file(own)[method]();
        } finally {
          closeSync(own);
        }
      };
    }
    file.stream = () => Readable.toWeb(turn === this.#turn ? this.#open() : Readable.from([]));
    return file;
  }

  use(path) {
    this.#stream = undefined;
    if (!path && this.#idle && this.#idle === identity(0)) return;
    let descriptor;
    try {
      descriptor = openSync(path || NOTHING);
    } catch {
      descriptor = openSync(NOTHING); // the code has removed it
    }
    // The number is 0 if the code has closed descriptor 0.
    if (descriptor !== 0) {
      this.#libc.dup2(descriptor, 0);
      closeSync(descriptor);
    }
    Bun.stdin = this.#blob(); // it remembers its end
  }
}

/** Standard output and error of cells, which the next cell has again when one has closed or ended them. */
class Outputs {
  #libc;
  #files;

  constructor(libc, streams) {
    this.#libc = libc;
    this.#files = [1, 2].map((descriptor) => {
      return { descriptor, identity: identity(descriptor), spare: libc.fcntl(descriptor, F_DUPFD_CLOEXEC, 900) };
    });
    for (const stream of streams) keepOpen(stream);
  }

  repair() {
    for (const { descriptor, identity: own, spare } of this.#files) {
      if (identity(descriptor) !== own) this.#libc.dup2(spare, descriptor);
    }
  }
}

/** Makes a stream say that it has ended, but go on: bun cannot make it usable again. */
function keepOpen(stream) {
  const say = (event) => nextTick(() => stream.emit(event));
  stream.end = (...given) => {
    const done = given.find((each) => typeof each === "function");
    const [chunk, encoding] = given.filter((each) => each !== done);
    if (chunk != null) stream.write(chunk, encoding);
    nextTick(() => {
      stream.emit("finish");
      done?.();
    });
    say("close");
    return stream;
  };
  stream.destroy = (error) => {
    if (error) nextTick(() => stream.emit("error", error));
    say("close");
    return stream;
  };
}

module.exports = { Input, Outputs };
