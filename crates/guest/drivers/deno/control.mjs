// The connection to the guest: a socket for lines, and a mailbox for texts, which is a file in memory.
//
// Deno has no access to descriptors that it did not open, therefore the C library is called.

/** Looked up before cells put others in their places. */
const { BigInt, DataView, Deno, Number, TextDecoder, TextEncoder, Uint8Array } = globalThis;

const F_DUPFD_CLOEXEC = 1030;

/** The lowest number of a descriptor that no code closes or finds by chance. */
const HIGH = 900;

const O_WRONLY = 1;

/** Functions of the C library. `wait` is `read` on another thread. */
export const libc = Deno.dlopen("libc.so.6", {
  close: { parameters: ["i32"], result: "i32" },
  dup2: { parameters: ["i32", "i32"], result: "i32" },
  _exit: { parameters: ["i32"], result: "void" },
  fcntl: { parameters: ["i32", "i32", "i32"], result: "i32" },
  ftruncate: { parameters: ["i32", "i64"], result: "i32" },
  malloc_trim: { parameters: ["usize"], result: "i32" },
  open: { parameters: ["buffer", "i32"], result: "i32" },
  pread: { parameters: ["i32", "buffer", "usize", "i64"], result: "isize" },
  read: { parameters: ["i32", "buffer", "usize"], result: "isize" },
  wait: { name: "read", parameters: ["i32", "buffer", "usize"], result: "isize", nonblocking: true },
  write: { parameters: ["i32", "buffer", "usize"], result: "isize" },
}).symbols;

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** Returns a duplicate of a descriptor that no code closes or finds by chance, and that children do not get. */
export const duplicateHigh = (descriptor) => libc.fcntl(descriptor, F_DUPFD_CLOEXEC, HIGH);

function moveUp(descriptor) {
  const moved = duplicateHigh(descriptor);
  libc.close(descriptor);
  return moved;
}

/** The socket to the guest. */
export const control = moveUp(3);

/** The file that texts come in. */
export const mailbox = moveUp(4);

/** Returns a path as the C library takes it. */
export const encodePath = (path) => encoder.encode(`${path}\0`);

/** Sends a line to the guest. */
export function send(line) {
  const bytes = encoder.encode(line + "\n");
  return libc.write(control, bytes, BigInt(bytes.length));
}

/** Returns the words of a line from the guest. */
export const splitWords = (line) => decoder.decode(line).trim().split(" ");

const line = new Uint8Array(64);

/** Returns the words of the line of which `count` bytes were read, and ends deno if the guest is gone. */
function received(count) {
  if (count <= 0) libc._exit(0);
  return splitWords(line.subarray(0, count));
}

/** Waits for the next line from the guest, and returns its words. */
export const receive = () => received(Number(libc.read(control, line, BigInt(line.length))));

/** Does the same, but the event loop turns meanwhile. */
export const receiveLater = async () => received(Number(await libc.wait(control, line, BigInt(line.length))));

/** Returns the texts in the mailbox, which is empty afterwards. `size` is in bytes. */
export function readMailbox(size) {
  const data = new Uint8Array(size);
  let filled = 0;
  while (filled < size) {
    const read = Number(libc.pread(mailbox, data.subarray(filled), BigInt(size - filled), BigInt(filled)));
    if (read <= 0) break;
    filled += read;
  }
  libc.ftruncate(mailbox, 0n);
  return splitTexts(data.subarray(0, filled));
}

/** Returns the texts in these bytes: each follows its length in bytes, as 4 bytes, little-endian. */
export function splitTexts(data) {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const found = [];
  for (let at = 0; at + 4 <= data.length;) {
    const length = view.getUint32(at, true);
    found.push(decoder.decode(data.subarray(at + 4, at + 4 + length)));
    at += 4 + length;
  }
  return found;
}

/** Does something that writes to the standard streams, and drops what it writes. */
export function withoutOutput(action) {
  const nowhere = libc.open(encodePath("/dev/null"), O_WRONLY);
  if (nowhere < 0) return;
  const streams = [1, 2].map((stream) => [stream, duplicateHigh(stream)]);
  for (const [stream] of streams) libc.dup2(nowhere, stream);
  action();
  for (const [stream, kept] of streams) {
    libc.dup2(kept, stream);
    libc.close(kept);
  }
  libc.close(nowhere);
}
