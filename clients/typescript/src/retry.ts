import { Isol8ConnectionError, Isol8Error } from "./errors.js";

/** Milliseconds before a connection is tried again; doubled each time. */
const FIRST_WAIT = 100;

/** How often a call is made again, and how patiently. */
export interface RetryPolicy {
  retries: number;
  /** A server that wants more patience is not waited for. */
  maxWaitMs: number;
}

/** The effect of repeating a call. */
export type Repetition =
  /** No harm. */
  | "harmless"
  /** Run something twice. */
  | "harmful"
  /** Nothing: its body is gone. */
  | "impossible";

/**
 * Returns the milliseconds until the next try; `undefined` if there is none.
 *
 * A call that may do harm is tried again only if it certainly was not carried out: a server that answers 503 may be
 * going down, and have ended a run that had begun.
 */
export function waitBeforeNext(
  policy: RetryPolicy,
  error: unknown,
  tried: number,
  repetition: Repetition,
): number | undefined {
  if (tried > policy.retries || repetition === "impossible" || !(error instanceof Isol8Error)) {
    return undefined;
  }
  const harmless = repetition === "harmless";
  if (error instanceof Isol8ConnectionError) {
    const safe = harmless || !error.maybeSent;
    return safe ? Math.min(FIRST_WAIT * 2 ** (tried - 1), policy.maxWaitMs) : undefined;
  }
  const safe = error.status === 429 || (error.status === 503 && harmless);
  const { retryAfterMs } = error;
  return safe && retryAfterMs !== undefined && retryAfterMs <= policy.maxWaitMs ? retryAfterMs : undefined;
}

/** Waits; throws the signal's reason if the signal is aborted. */
export function sleep(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const abort = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", abort);
      resolve();
    }, ms);
    if (signal?.aborted) {
      abort();
    } else {
      signal?.addEventListener("abort", abort, { once: true });
    }
  });
}
