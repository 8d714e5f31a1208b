import { brokenOff } from "./errors.js";

/** The texts of the events in the body of an answer. Leaving the iteration closes the connection. */
export async function* serverSentEvents(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let begun: string[] = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) {
        return;
      }
      const [end = "", ...rest] = decoder.decode(value, { stream: true }).split("\n");
      begun.push(end);
      for (const piece of rest) {
        const line = begun.join("");
        begun = [piece];
        // Each event is one line; the others are heartbeats.
        if (line.startsWith("data:")) {
          yield line.slice("data:".length);
        }
      }
    }
  } finally {
    // Ignore the error: the stream is not read any more.
    await reader.cancel().catch(() => undefined);
  }
}

/** The body of an answer that has one. */
export function bodyOf(response: Response): ReadableStream<Uint8Array> {
  if (response.body === null) {
    throw brokenOff();
  }
  return response.body;
}
