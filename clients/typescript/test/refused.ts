import assert from "node:assert/strict";

import { Isol8Error } from "../src/index.js";

/** Returns the error that a call is refused with. */
export async function refused(call: Promise<unknown>): Promise<Isol8Error> {
  const outcome = await call.then(
    () => undefined,
    (error: unknown) => error,
  );
  assert(outcome instanceof Isol8Error, `expected a refusal, got ${String(outcome)}`);
  return outcome;
}
