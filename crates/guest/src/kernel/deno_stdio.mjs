// Standard input and output of the cells, whatever a cell does to its own.
//
// Streams that code closes here are resources of deno's, and cannot be made anew: so cells get objects that close
// nothing. The descriptors below stay open.

import fs from "node:fs";
import process from "node:process";
import { Readable } from "node:stream";

// Cells can declare names of their own over these.
const { BigInt, Buffer, Deno, Error, FinalizationRegistry, Number, Object, ReadableStream } = globalThis;
const { TextEncoder, Uint8Array, WritableStream } = globalThis;

const { fstatSync } = fs;

const F_DUPFD_CLOEXEC = 1030;

const encode = (path) => new TextEncoder().encode(`${path}\0`);

/** `Deno.stdin` of one cell, on a descriptor of its own: nothing that goes on reads what another is given. */
class CellInput extends Deno.stdin.constructor {
  #libc;
  #unread;
  #descriptor;
  #isPipe;
  #isDone = false;
  #pending = 0;
  #stream;

  constructor(libc, unread) {
    super();
    this.#libc = libc;
    this.#unread = unread;
  }

  /** Whether there is a descriptor to read from; it is made for the first that reads. */
  #begin() {
    if (this.#isDone === "closed") throw new Deno.errors.BadResource("Bad resource ID");
    if (this.#isDone) return false;
    if (this.#descriptor === undefined) {
      this.#descriptor = this.#libc.fcntl(0, F_DUPFD_CLOEXEC, 900);
      this.#isPipe = !Deno.statSync("/dev/stdin").isFile;
      this.#unread.register(this, this.#descriptor, this);
    }
    return true;
  }

  /** Makes sure that it can be read from later. */
  static keep(input) {
    input.#begin();
  }

  /** Once descriptor 0 leads to another file, no reader starts here. */
  static leave(input) {
    if (input.#descriptor === undefined) input.#end("read");
  }

  #end(how) {
    this.#isDone ||= how;
    if (this.#descriptor === undefined || this.#pending > 0) return;
    this.#unread.unregister(this);
    this.#libc.close(this.#descriptor);
    this.#descriptor = undefined;
  }

  #took(count, buffer) {
    if (count < 0n) throw new Error("standard input cannot be read");
    if (count > 0n || buffer.length === 0) return Number(count);
    this.#end("read");
    return null;
  }

  readSync(buffer) {
    if (!this.#begin()) return null;
    return this.#took(BigInt(this.#libc.read(this.#descriptor, buffer, BigInt(buffer.length))), buffer);
  }

  async read(buffer) {
    if (!this.#begin()) return null;
    if (!this.#isPipe) return this.readSync(buffer);
    this.#pending++;
    let count;
    try {
      count = BigInt(await this.#libc.wait(this.#descriptor, buffer, BigInt(buffer.length)));
    } finally {
      this.#pending--;
      if (this.#isDone) this.#end();
    }
    return this.#took(count, buffer);
  }

  close() {
    this.#end("closed");
  }

  get readable() {
    return (this.#stream ??= new ReadableStream({
      type: "bytes",
      autoAllocateChunkSize: 65536,
      pull: async (controller) => {
        const { byobRequest } = controller;
        const count = await this.read(byobRequest.view);
        if (count === null) controller.close();
        byobRequest.respond(count ?? 0);
      },
      cancel: () => this.close(),
    }));
  }
}

/** The kernel's standard input: what the cell was given, then nothing. */
export class Input {
  #libc;
  #input;
  #stream;
  /** Descriptors of inputs that no reader can reach any more. */
  #unread;

  constructor(libc) {
    this.#libc = libc;
    this.#unread = new FinalizationRegistry((descriptor) => libc.close(descriptor));
    Object.defineProperty(process, "stdin", {
      configurable: true,
      enumerable: true,
      get: () => (this.#stream ??= this.#open()),
      set: (stream) => (this.#stream = stream),
    });
  }

  #open() {
    const from = Deno.stdin;
    if (from === this.#input) CellInput.keep(from);
    const stream = new Readable({
      highWaterMark: 65536,
      read(size) {
        const buffer = new Uint8Array(size);
        from.read(buffer).then(
          (count) => this.push(count === null ? null : Buffer.from(buffer.subarray(0, count))),
          (error) => this.destroy(error),
        );
      },
    });
    return Object.assign(stream, { fd: 0, isTTY: false });
  }

  use(path) {
    const descriptor = this.#libc.open(encode(path || "/dev/null"), 0);
    // The code may have removed it; what is there then is empty.
    if (descriptor >= 0) {
      this.#libc.dup2(descriptor, 0);
      this.#libc.close(descriptor);
    }
    if (this.#input) CellInput.leave(this.#input);
    Deno.stdin = this.#input = new CellInput(this.#libc, this.#unread);
    this.#stream = undefined;
  }
}

/** Standard output and error, which no cell can close or end for the next one. */
export class Outputs {
  #streams = [process.stdout, process.stderr];
  #writables = new Map();
  #mayClose = false;

  constructor() {
    const { close, closeSync } = fs;
    const isStandard = (descriptor) => descriptor === 0 || descriptor === 1 || descriptor === 2;
    fs.closeSync = (descriptor) => {
      if (!isStandard(descriptor)) closeSync(descriptor);
    };
    fs.close = (descriptor, done = () => {}) => {
      if (isStandard(descriptor)) process.nextTick(done, null);
      else close(descriptor, done);
    };
    for (const output of [Deno.stdout, Deno.stderr]) {
      output.close = () => {};
      Object.defineProperty(output, "writable", { configurable: true, get: () => this.#writableOf(output) });
    }
    for (const stream of this.#streams) {
      Object.defineProperty(stream, "_final", { value: (done) => done(), configurable: true });
      Object.defineProperty(stream, "_destroy", { value: (error, done) => done(error), configurable: true });
    }
  }

  #writableOf(output) {
    let writable = this.#writables.get(output);
    if (!writable) {
      const write = async (chunk) => {
        for (let at = 0; at < chunk.length; ) at += await output.write(chunk.subarray(at));
      };
      writable = new WritableStream({ write });
      this.#writables.set(output, writable);
    }
    return writable;
  }

  /** Whether the descriptors are still open after this code, which may have imported the functions that close them. */
  areThere(source) {
    this.#mayClose ||= source.includes("close");
    try {
      return !this.#mayClose || Boolean(fstatSync(1) && fstatSync(2));
    } catch {
      return false;
    }
  }

  mend() {
    this.#writables.clear();
    for (const stream of this.#streams) stream._undestroy();
  }
}
