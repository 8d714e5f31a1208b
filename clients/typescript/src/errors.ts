/** The details of a refusal beside its text. */
export interface ErrorDetails {
  /** The kind, for example `"SESSION_NOT_FOUND"`. */
  code?: string | undefined;
  /** HTTP status. */
  status?: number | undefined;
  /** Milliseconds after which the server wants to be asked again. */
  retryAfterMs?: number | undefined;
  /** The error that led to this one. */
  cause?: unknown;
}

/** The server refused, or a stream ended with an error. The text says what went wrong and what to do. */
export class Isol8Error extends Error {
  override readonly name: string = "Isol8Error";
  /**
   * The kind, for example `"SESSION_NOT_FOUND"`; missing where the answer is not one of isol8's, and for
   * errors within a stream, which have a text only.
   */
  readonly code: string | undefined;
  /** HTTP status, if there was an answer over HTTP. */
  readonly status: number | undefined;
  /** Milliseconds after which the server wants to be asked again, if it said so. */
  readonly retryAfterMs: number | undefined;

  /** An error with this text. */
  constructor(message: string, details: ErrorDetails = {}) {
    super(message, "cause" in details ? { cause: details.cause } : {});
    this.code = details.code;
    this.status = details.status;
    this.retryAfterMs = details.retryAfterMs;
  }
}

/** The server could not be reached, or its answer did not arrive. */
export class Isol8ConnectionError extends Isol8Error {
  override readonly name: string = "Isol8ConnectionError";
  /** Whether the request may have reached the server, and have been carried out. */
  readonly maybeSent: boolean;

  /** An error with this text. */
  constructor(message: string, maybeSent: boolean, cause?: unknown) {
    super(message, { cause });
    this.maybeSent = maybeSent;
  }
}

/** Codes with which Node and Bun tell that there was no connection. */
const NOT_CONNECTED = new Set([
  "ConnectionRefused",
  "EAI_AGAIN",
  "ECONNREFUSED",
  "EHOSTUNREACH",
  "ENETUNREACH",
  "ENOTFOUND",
  "UND_ERR_CONNECT_TIMEOUT",
]);

/** Returns the error of a request that `fetch` has no answer for. Browsers do not tell, so it may have been sent. */
export function unreachable(error: unknown): Isol8ConnectionError {
  const at = error as { code?: unknown; cause?: { code?: unknown; message?: unknown } } | undefined;
  const code = at?.cause?.code ?? at?.code;
  const maybeSent = !(typeof code === "string" && NOT_CONNECTED.has(code));
  const reason = at?.cause?.message ?? error;
  return new Isol8ConnectionError(`server cannot be reached: ${String(reason)}`, maybeSent, error);
}

/** A stream without an end. */
export function brokenOff(cause?: unknown): Isol8ConnectionError {
  return new Isol8ConnectionError("stream broke off before the exit", true, cause);
}

/** Returns the error of an unsuccessful answer. */
export async function refusal(response: Response): Promise<Isol8Error> {
  const { status } = response;
  const after = response.headers.get("Retry-After") ?? "";
  const retryAfterMs = /^\d+$/.test(after) ? Number(after) * 1000 : undefined;
  const text = await response.text();
  try {
    const body = JSON.parse(text) as { error: unknown; code: unknown };
    if (typeof body.error === "string" && typeof body.code === "string") {
      return new Isol8Error(body.error, { code: body.code, status, retryAfterMs });
    }
  } catch {
    // Not isol8's: of a proxy, perhaps.
  }
  return new Isol8Error(`server answered ${status}`, { status, retryAfterMs });
}
