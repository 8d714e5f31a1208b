// Shows the output of a program while the program runs, and ends a program that takes too long.
import { Isol8 } from "isol8-client";

const isol8 = new Isol8(undefined, { sessionId: "stream" });
try {
  const countdown = "import time\nfor n in (3, 2, 1):\n  print(n, flush=True); time.sleep(0.1)\nprint('done')";
  for await (const event of await isol8.executeStream({ runtime: "python", code: countdown })) {
    if (event.type === "stdout") process.stdout.write(event.data);
    if (event.type === "exit") console.log(`exit code ${event.data}`);
  }

  const result = await isol8.execute({ runtime: "python", cmd: "echo begun; sleep 60", timeoutMs: 500 });
  console.log(result.stdout, result.timedOut ? "and ended after its time" : "");
} finally {
  await isol8.stop(); // Deletes the session.
}
