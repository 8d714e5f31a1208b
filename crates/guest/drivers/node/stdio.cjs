// Standard input and output of the cells, whatever a cell does to its own.

"use strict";

const fs = require("node:fs");
const { Socket } = require("node:net");
const process = require("node:process");
const { identifyFile } = require("./shared.cjs");

/** Looked up before cells put others in their places. */
const { Object } = globalThis;
const { closeSync, createReadStream, fstatSync, openSync, readFileSync, readSync } = fs;
const { nextTick } = process;
const { O_NONBLOCK, O_RDONLY, O_WRONLY } = fs.constants;

const NOTHING = "/dev/null";

/** Identifies the file that a descriptor leads to; `undefined` if the descriptor is closed. */
const identity = (descriptor) => identifyFile(fstatSync, descriptor);

/** Puts a file in the place of a descriptor; all below must be open. */
function replace(descriptor, path, flags) {
  try {
    closeSync(descriptor);
  } catch {
    // The code has closed it.
  }
  // An opened file gets the lowest descriptor that is free.
  openSync(path, flags);
}

/** A file that a cell reads from. Its rest can still be read when it is no longer descriptor 0. */
class Source {
  #rest;

  read(descriptor, buffer, offset, length, _position, done) {
    let count;
    try {
      if (this.#rest) {
        count = this.#rest.copy(buffer, offset, 0, length);
        this.#rest = this.#rest.subarray(count);
      } else {
        count = readSync(descriptor, buffer, offset, length, null);
      }
    } catch (error) {
      return nextTick(done, error);
    }
    nextTick(done, null, count, buffer);
  }

  /** How a stream gets at it. */
  get files() {
    return { open() {}, close() {}, read: this.read.bind(this) };
  }

  leave() {
    try {
      this.#rest = readFileSync(0);
    } catch {
      // The code has closed it, or there is no end.
    }
  }
}

/** Standard input of cells: what the cell was given, then nothing. */
class Input {
  #idle;
  /** A pipe, until there is the stream that reads from it. */
  #pipe;
  #source;
  #stream;

  constructor() {
    this.use("");
    this.#idle = identity(0);
    const get = () => (this.#stream ??= this.#open());
    Object.defineProperty(process, "stdin", { configurable: true, enumerable: true, get });
  }

  #open() {
    if (this.#pipe !== undefined) {
      const options = { fd: this.#pipe, readable: true, writable: false, manualStart: true };
      this.#pipe = undefined;
      return Object.assign(new Socket(options), { fd: 0 });
    }
    this.#source = new Source();
    return createReadStream(null, { fd: 0, autoClose: false, fs: this.#source.files });
  }

  /** Leaves what code of the last cell is still to read to its stream. */
  #leave() {
    const { readableEnded, destroyed } = this.#stream ?? { destroyed: true };
    if (!readableEnded && !destroyed) {
      if (this.#source) this.#source.leave();
      else if (this.#stream.readableFlowing === null) this.#stream.destroy();
    }
    if (this.#pipe !== undefined) closeSync(this.#pipe);
    this.#stream = this.#source = this.#pipe = undefined;
  }

  use(path) {
    this.#leave();
    if (!path && this.#idle && this.#idle === identity(0)) return;
    try {
      replace(0, path || NOTHING, O_RDONLY);
      // Opened while a writer may exist: a reader that comes later does not learn of the pipe's end.
      if (path && fstatSync(0).isFIFO()) this.#pipe = openSync(path, O_RDONLY | O_NONBLOCK);
    } catch {
      replace(0, NOTHING, O_RDONLY); // the code has removed it
    }
  }
}

/** Standard output and error of cells, which the next cell has again when one has closed or ended them. */
class Outputs {
  #files = [1, 2].map((descriptor) => {
    const spare = openSync(`/proc/self/fd/${descriptor}`, O_WRONLY | O_NONBLOCK);
    return { descriptor, identity: identity(descriptor), spare: `/proc/self/fd/${spare}` };
  });
  #streams;

  constructor(streams) {
    this.#streams = streams;
    for (const stream of streams) {
      // Node makes these streams usable again after their end, but not what is below them.
      Object.defineProperty(stream, "_final", { value: (done) => done(), configurable: true });
    }
  }

  repair() {
    for (const file of this.#files) {
      if (identity(file.descriptor) === file.identity) continue;
      if (identity(0) === undefined) openSync(NOTHING, O_RDONLY);
      replace(file.descriptor, file.spare, O_WRONLY | O_NONBLOCK);
    }
    for (const stream of this.#streams) stream._undestroy();
  }
}

module.exports = { Input, Outputs };
