// Programs that do what an operation of the document does: for curl, and for the clients in Python and TypeScript,
// or where those have no method for it, for httpx and fetch. No DOM: a test runs each of them.

/** A word of the shell. */
function word(text) {
    return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/** A value of JSON as Python writes it. */
function literal(value) {
    if (value === null) return "None";
    if (typeof value === "boolean") return value ? "True" : "False";
    if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
    if (typeof value !== "object") return JSON.stringify(value);
    const members = Object.entries(value).map(([name, member]) => `${JSON.stringify(name)}: ${literal(member)}`);
    return `{${members.join(", ")}}`;
}

function curl({ method, url, needsKey, body, isStream }) {
    const lines = [`curl ${word(url)}`];
    if (method === "HEAD") lines[0] = `curl --head ${word(url)}`;
    else if (method !== "GET" && !(method === "POST" && body)) lines.push(`--request ${method}`);
    if (isStream) lines.push("--no-buffer");
    if (needsKey) lines.push('--header "Authorization: Bearer $ISOL8_API_KEY"');
    if (body?.file) lines.push(`--data-binary @${word(body.file)}`);
    if (body?.json !== undefined) {
        lines.push("--header 'Content-Type: application/json'", `--data ${word(JSON.stringify(body.json))}`);
    }
    return lines.join(" \\\n  ");
}

function httpx({ method, url, needsKey, body }) {
    const lines = ["import os", "", "import httpx", ""].slice(needsKey ? 0 : 2);
    const parts = [JSON.stringify(method), JSON.stringify(url)];
    if (needsKey) {
        lines.push(`headers = {"Authorization": f"Bearer {os.environ['ISOL8_API_KEY']}"}`);
        parts.push("headers=headers");
    }
    if (body?.json !== undefined) parts.push(`json=${literal(body.json)}`);
    lines.push(`answer = httpx.request(${parts.join(", ")})`, "print(answer.status_code, answer.text)");
    return lines.join("\n");
}

function fetched({ method, url, needsKey, body }) {
    const parts = [`  method: ${JSON.stringify(method)},`];
    const headers = [];
    if (needsKey) headers.push("Authorization: `Bearer ${process.env.ISOL8_API_KEY}`");
    if (body?.json !== undefined) headers.push('"Content-Type": "application/json"');
    if (headers.length) parts.push(`  headers: { ${headers.join(", ")} },`);
    if (body?.json !== undefined) parts.push(`  body: JSON.stringify(${JSON.stringify(body.json)}),`);
    const call = `const answer = await fetch(${JSON.stringify(url)}, {\n${parts.join("\n")}\n});`;
    return `${call}\nconsole.log(answer.status, await answer.text());`;
}

/** `ExecutionRequest(…)` and, where the body has them, `Options(…)`. */
function pythonArguments({ request, options }) {
    const snake = (name) => name.replaceAll(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
    const named = (members) => Object.entries(members).map(([name, value]) => `${snake(name)}=${literal(value)}`);
    const { runtime, ...rest } = request;
    const words = [`ExecutionRequest(${[literal(runtime), ...named(rest)].join(", ")})`];
    if (options) words.push(`Options(${named(options).join(", ")})`);
    return words.join(", ");
}

/** The calls of the Python client for an operation: lines in a `with` block. */
const PYTHON = {
    execute: ({ json }) => [`result = isol8.execute(${pythonArguments(json)})`, "print(result.exit_code, result.stdout)"],
    stream: ({ json }) => [
        `with isol8.execute_stream(${pythonArguments(json)}, websocket=False) as run:`,
        "    for event in run:",
        "        print(event.type, event.data)",
    ],
    websocket: ({ json }) => [
        `with isol8.execute_stream(${pythonArguments(json)}) as run:`,
        "    for event in run:",
        "        print(event.type, event.data)",
    ],
    putFile: ({ path, file }) => [`with open(${literal(file)}, "rb") as file:`, `    isol8.put_file(${literal(path)}, file)`],
    getFile: ({ path }) => [`print(isol8.get_file(${literal(path)}))`],
    listFiles: ({ path }) => [
        `for entry in isol8.list_files(${literal(path)}).entries:`,
        "    print(entry.mode, entry.size, entry.name)",
    ],
    sessions: () => ["for session in isol8.sessions():", "    print(session.id, session.runtime)"],
    deleteSession: ({ id }) => [`isol8.delete_session(${literal(id)})`],
    health: () => ["print(isol8.health())"],
};

/** Operations for which the end of a `with` block must not delete the session. */
const KEEPS_SESSION = new Set(["putFile", "getFile", "listFiles"]);

function python(operation, { base, id, json }, lines) {
    const names = ["Isol8"];
    if (lines.some((line) => line.includes("ExecutionRequest("))) names.unshift("ExecutionRequest");
    if (lines.some((line) => line.includes("Options("))) names.push("Options");
    const session = KEEPS_SESSION.has(operation) ? id : json?.sessionId;
    const client = `Isol8(${[literal(base), ...(session ? [`session_id=${literal(session)}`] : [])].join(", ")})`;
    const head = [`from isol8 import ${names.join(", ")}`, ""];
    if (session) return [...head, `isol8 = ${client}`, ...lines].join("\n");
    return [...head, `with ${client} as isol8:`, ...lines.map((line) => `    ${line}`)].join("\n");
}

function typescriptArguments({ request, options }, more = {}) {
    const call = { ...(options ? { options } : {}), ...more };
    const words = [JSON.stringify(request), ...(Object.keys(call).length ? [JSON.stringify(call)] : [])];
    return words.join(", ");
}

function followed(argumentsOf) {
    return ["for await (const event of await isol8.executeStream(" + argumentsOf + ")) {", "  console.log(event.type, event.data);", "}"];
}

/** The calls of the TypeScript client for an operation. */
const TYPESCRIPT = {
    execute: ({ json }) => [
        `const result = await isol8.execute(${typescriptArguments(json)});`,
        "console.log(result.exitCode, result.stdout);",
    ],
    stream: ({ json }) => followed(typescriptArguments(json, { transport: "sse" })),
    websocket: ({ json }) => followed(typescriptArguments(json)),
    putFile: ({ path, file }) => [
        'import { readFile } from "node:fs/promises";',
        `await isol8.putFile(${JSON.stringify(path)}, await readFile(${JSON.stringify(file)}));`,
    ],
    getFile: ({ path }) => [`console.log(new TextDecoder().decode(await isol8.getFile(${JSON.stringify(path)})));`],
    listFiles: ({ path }) => [
        `for (const { mode, size, name } of (await isol8.listFiles(${JSON.stringify(path)})).entries) {`,
        "  console.log(mode, size, name);",
        "}",
    ],
    sessions: () => ["console.log(await isol8.sessions());"],
    deleteSession: ({ id }) => [`await isol8.deleteSession(${JSON.stringify(id)});`],
    health: () => ["console.log(await isol8.health());"],
};

function typescript(operation, { base, id, json }, lines) {
    const session = KEEPS_SESSION.has(operation) ? id : json?.sessionId;
    const options = session ? `, { sessionId: ${JSON.stringify(session)} }` : "";
    const isImport = (line) => line.startsWith("import ");
    return [
        'import { Isol8 } from "isol8-client";',
        ...lines.filter(isImport),
        "",
        `const isol8 = new Isol8(${JSON.stringify(base)}${options});`,
        ...lines.filter((line) => !isImport(line)),
    ].join("\n");
}

/**
 * The samples of an operation, by the name of their language.
 *
 * `call` has `operation` (its id), `method`, `url`, `base` (the server's address without a slash at its end),
 * `needsKey`, `isStream`, `id` and `path` (values of the parameters of these names), and `body`: `undefined`,
 * `{json}` or `{file}`, the name of a local file. The key is in the environment, as ISOL8_API_KEY.
 */
export function samples(call) {
    const { operation, body } = call;
    const given = { ...call, json: body?.json, file: body?.file };
    const isRun = ["execute", "stream", "websocket"].includes(operation);
    const known = operation in PYTHON && (!isRun || body?.json?.request !== undefined);
    const shown = {};
    // The upgrade to a WebSocket is not for curl.
    if (operation !== "websocket") shown.curl = curl(call);
    shown.Python = known ? python(operation, given, PYTHON[operation](given)) : httpx(call);
    shown.TypeScript = known ? typescript(operation, given, TYPESCRIPT[operation](given)) : fetched(call);
    return shown;
}
