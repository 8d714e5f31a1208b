// Standard input and output of the cells, whatever a cell does to its own.
//
// Streams that code closes here are resources of deno's, and cannot be made anew: so cells get objects that close
// nothing. The descriptors below stay open.

import fs from "node:fs";
import process from "node:process";
import { Readable } from "node:stream";
import { duplicateHigh, encodePath, libc } from "./control.mjs";

/** Looked up before cells put others in their places. */
const { BigInt, Boolean, Buffer, Deno, Error, FinalizationRegistry, Map, Number, Object, ReadableStream } = globalThis;
const { Uint8Array, WritableStream } = globalThis;

const { fstatSync } = fs;

const O_RDONLY = 0;

/** `Deno.stdin` of one cell, on a descriptor of its own: nothing that goes on reads what another is given. */
class CellInput extends Deno.stdin.constructor {
  #unread;
  #descriptor;
  #isPipe;
  #isDone = false;
  #pending = 0;
  #stream;

  constructor(unread) {
    super();
    this.#unread = unread;
  }

  /** Returns whether there is a descriptor to read from; it is made for the first that reads. */
  #begin() {
    if (this.#isDone === "closed") throw new Deno.errors.BadResource("Bad resource ID");
    if (this.#isDone) return false;
    if (this.#descriptor === undefined) {
      this.#descriptor = duplicateHigh(0);
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
    libc.close(this.#descriptor);
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
    return this.#took(BigInt(libc.read(this.#descriptor, buffer, BigInt(buffer.length))), buffer);
  }

  async read(buffer) {
    if (!this.#begin()) return null;
    if (!this.#isPipe) return this.readSync(buffer);
    this.#pending++;
    let count;
    try {
      count = BigInt(await libc.wait(this.#descriptor, buffer, BigInt(buffer.length)));
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

/** Standard input of cells: what the cell was given, then nothing. */
export class Input {
  #input;
  #stream;
  /** Descriptors of inputs that no reader can reach any more. */
  #unread;

  constructor() {
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
    const descriptor = libc.open(encodePath(path || "/dev/null"), O_RDONLY);
    // The code may have removed it; what is there then is empty.
    if (descriptor >= 0) {
      libc.dup2(descriptor, 0);
      libc.close(descriptor);
    }
    if (this.#input) CellInput.leave(this.#input);
    Deno.stdin = this.#input = new CellInput(this.#unread);
    this.#stream = undefined;
  }
}

/** Standard output and error of cells, which no cell can close or end for the next one. */
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

  /** Returns whether the descriptors are still open after this code, which may have imported the functions that close them. */
  areOpen(source) {
    this.#mayClose ||= source.includes("close");
    try {
      return !this.#mayClose || Boolean(fstatSync(1) && fstatSync(2));
    } catch {
      return false;
    }
  }

  repair() {
    this.#writables.clear();
    for (const stream of this.#streams) stream._undestroy();
  }
}
