// Shows the server's OpenAPI document, and tries its operations. Everything that comes from the
// document or from an answer is put in as text, never as markup.
import { samples } from "./docs-samples.js";

const METHODS = ["get", "post", "put", "delete", "head", "patch", "options"];

/** Characters of an answer that are shown; all of it can be saved. */
const SHOWN = 200_000;

/** An element with these properties and children; a child that is a string is text. */
function make(tag, properties = {}, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
}

/** The little Markdown that descriptions have: `code`, and links of the source's documentation, as their text. */
function prose(text) {
    const parts = (text ?? "").replaceAll(/\[(`[^`]+`)\](\([^)]*\))?/g, "$1").split("`");
    return parts.map((part, index) => (index % 2 ? make("code", {}, part) : part));
}

function table(headings, rows) {
    const head = make("tr", {}, ...headings.map((text) => make("th", {}, text)));
    const body = rows.map((cells) => {
        const made = cells.map((cell) => make("td", {}, ...(Array.isArray(cell) ? cell : [cell])));
        return make("tr", {}, ...made);
    });
    return make("table", {}, head, ...body);
}

function nameOf(reference) {
    return reference.slice(reference.lastIndexOf("/") + 1);
}

/** Describes a schema in one line: nodes, some of them links to the schemas below. */
function kind(schema) {
    if (schema === undefined) return ["any bytes"];
    if (schema.$ref) {
        const name = nameOf(schema.$ref);
        return [make("a", { href: `#schema-${name}` }, name)];
    }
    const several = schema.oneOf ?? schema.anyOf ?? schema.allOf;
    if (several) {
        const sign = schema.allOf ? " and " : " or ";
        return several.flatMap((one, index) => (index ? [sign, ...kind(one)] : kind(one)));
    }
    const type = [schema.type ?? "any"].flat().join(" or ");
    if (schema.enum) return [`${type}: ${schema.enum.map((value) => JSON.stringify(value)).join(", ")}`];
    if (schema.items) return ["list of ", ...kind(schema.items)];
    if (schema.additionalProperties) return ["map to ", ...kind(schema.additionalProperties)];
    const limits = [];
    if (schema.minimum !== undefined) limits.push(`from ${schema.minimum}`);
    if (schema.maximum !== undefined) limits.push(`to ${schema.maximum}`);
    if (schema.maxLength !== undefined) limits.push(`at most ${schema.maxLength} characters`);
    if (schema.pattern !== undefined) limits.push(schema.pattern);
    return [limits.length ? `${type} (${limits.join(", ")})` : type];
}

/** The type of a whole schema, for its heading: short, and without links. */
function typeOf(schema) {
    if (schema.oneOf ?? schema.anyOf) return [...new Set((schema.oneOf ?? schema.anyOf).map(typeOf))].join(" or ");
    if (schema.allOf) return "object";
    if (schema.$ref) return nameOf(schema.$ref);
    return [schema.type ?? "any"].flat().join(" or ");
}

function membersOf(schema) {
    const required = new Set(schema.required ?? []);
    const rows = Object.entries(schema.properties ?? {}).map(([name, member]) => [
        make("code", {}, required.has(name) ? `${name} *` : name),
        kind(member),
        prose(member.description),
    ]);
    return table(["member (* required)", "type", ""], rows);
}

function shownSchema(name, schema) {
    const details = make("details", { id: `schema-${name}` });
    const type = make("span", { className: "note" }, typeOf(schema));
    details.append(make("summary", {}, make("code", {}, name), " ", type), make("p", {}, ...prose(schema.description)));
    const parts = [schema, ...(schema.oneOf ?? []), ...(schema.allOf ?? [])].flatMap((part) => [part, ...(part.allOf ?? [])]);
    const objects = [...new Set(parts)].filter((part) => part.properties);
    if (objects.length === 0 || schema.oneOf || schema.allOf) details.append(make("p", {}, ...kind(schema)));
    details.append(...objects.map(membersOf));
    return details;
}

/** The parameters' table, and what gives the values that were entered. */
function parameterForm(parameters) {
    const inputs = parameters.map((parameter) => [parameter, make("input", { spellcheck: false })]);
    const rows = inputs.map(([parameter, input]) => [
        make("code", {}, parameter.required ? `${parameter.name} *` : parameter.name),
        [`${parameter.in}: `, ...kind(parameter.schema)],
        prose(parameter.description),
        input,
    ]);
    const shown = parameters.length ? table(["parameter (* required)", "", "", "value"], rows) : "";
    const values = () => inputs.map(([parameter, input]) => [parameter, input.value]);
    return [shown, values];
}

/** A field for the body, and what gives the body that was entered. */
function bodyForm(body) {
    if (!body) return ["", () => undefined];
    const [type, content] = Object.entries(body.content)[0];
    const heading = make("p", {}, "body: ", ...kind(content.schema), ` as ${type}`);
    if (type === "application/json") {
        const text = JSON.stringify(content.example ?? {}, null, 2);
        const field = make("textarea", { rows: text.split("\n").length + 1, spellcheck: false, value: text });
        const given = () => field.value.trim() && { type, content: field.value };
        return [make("div", {}, heading, field), given];
    }
    const file = make("input", { type: "file" });
    return [make("div", {}, heading, file), () => ({ type, content: file.files[0] ?? "" })];
}

/** The address of a request. The slashes of a path within a path stay. */
function addressOf(path, values) {
    const query = new URLSearchParams();
    for (const [parameter, value] of values) {
        if (parameter.in === "path") {
            const encoded = value.split("/").map(encodeURIComponent).join("/");
            path = path.replace(`{${parameter.name}}`, encoded);
        }
        if (parameter.in === "query" && value) query.append(parameter.name, value);
    }
    const text = query.toString();
    // Relative, so that the page works behind a proxy that serves it under another path.
    return path.slice(1) + (text ? `?${text}` : "");
}

function headersOf(operation, values, body) {
    const headers = new Headers();
    const key = document.getElementById("key").value;
    if (operation.security && key) headers.set("Authorization", `Bearer ${key}`);
    if (body) headers.set("Content-Type", body.type);
    for (const [parameter, value] of values) {
        if (parameter.in === "header" && value) headers.set(parameter.name, value);
    }
    return headers;
}

/** Shows an answer while it arrives: streams go on for as long as their run. */
async function follow(answer, output) {
    const headers = [...answer.headers].map(([name, value]) => `${name}: ${value}`).join("\n");
    const shown = make("pre");
    output.append(make("pre", {}, `${answer.status} ${answer.statusText}\n${headers}`), shown);
    const reader = answer.body?.getReader();
    const [pieces, decoder] = [[], new TextDecoder()];
    let length = 0;
    for (let next = await reader?.read(); next && !next.done; next = await reader.read()) {
        pieces.push(next.value);
        const text = decoder.decode(next.value, { stream: true });
        shown.append(text.slice(0, Math.max(0, SHOWN - length)));
        length += text.length;
    }
    if ((answer.headers.get("Content-Type") ?? "").startsWith("application/json") && length <= SHOWN) {
        shown.textContent = JSON.stringify(JSON.parse(shown.textContent), null, 2);
    }
    if (pieces.length) {
        const href = URL.createObjectURL(new Blob(pieces));
        output.append(make("a", { href, download: "answer" }, "save the answer"));
    }
}

/** A schema, or the one that a reference names. */
function resolved(schema) {
    return schema?.$ref ? described.components.schemas[nameOf(schema.$ref)] : (schema ?? {});
}

/** The call that a sample shows: the entered values, else the document's examples. */
function sampleCall(method, path, operation, values, body) {
    const base = location.origin + location.pathname.replace(/\/[^/]*$/, "");
    const examples = { path: operation.operationId === "listFiles" ? "/sandbox" : undefined };
    const filled = values.filter(([parameter, value]) => parameter.required || value).map(([parameter, value]) => {
        const example = examples[parameter.name] ?? resolved(parameter.schema).examples?.[0] ?? parameter.name;
        return [parameter, value || example];
    });
    const valueOf = Object.fromEntries(filled.map(([parameter, value]) => [parameter.name, value]));
    const isStream = "text/event-stream" in (operation.responses["200"]?.content ?? {});
    const file = valueOf.path && `/${valueOf.path.replace(/^\//, "")}`;
    return {
        operation: operation.operationId,
        method: method.toUpperCase(),
        url: `${base}/${addressOf(path, filled)}`,
        base,
        needsKey: Boolean(operation.security),
        isStream,
        id: valueOf.id,
        path: file,
        body: sampleBody(operation, body, file),
    };
}

function sampleBody(operation, body, file) {
    if (operation.operationId === "websocket") return { json: exampleOf(described.paths["/execute"].post) };
    if (!operation.requestBody) return undefined;
    if (!operation.requestBody.content["application/json"]) return { file: file.split("/").at(-1) };
    try {
        return { json: JSON.parse(body.content) };
    } catch {
        // The text that is being typed is no JSON yet.
        return { json: exampleOf(operation) };
    }
}

function exampleOf(operation) {
    return operation.requestBody.content["application/json"].example ?? {};
}

/** The language whose samples are shown, in every operation. */
let language = "curl";

/** Buttons for the languages, and the sample of the one that is chosen. */
function sampleView(current) {
    const code = make("code");
    const buttons = make("div", { className: "languages" });
    const copy = make("button", { type: "button" }, "Copy");
    copy.addEventListener("click", () => navigator.clipboard?.writeText(code.textContent));
    const view = make("div", { className: "sample" }, buttons, make("pre", {}, code));
    view.update = () => {
        const all = samples(current());
        const chosen = language in all ? language : Object.keys(all)[0];
        code.textContent = all[chosen];
        const choices = Object.keys(all).map((name) => {
            const choice = make("button", { type: "button", ariaPressed: String(name === chosen) }, name);
            choice.addEventListener("click", () => choose(name));
            return choice;
        });
        buttons.replaceChildren(...choices, copy);
    };
    return view;
}

function choose(name) {
    language = name;
    for (const view of document.querySelectorAll("details[open] .sample")) view.update();
}

/** The form that sends a request: two buttons, and a place for the answer. */
function trial(method, path, operation, values, body) {
    const output = make("div", { ariaLive: "polite" });
    const send = make("button", { type: "button" }, "Send");
    const stop = make("button", { type: "button", disabled: true }, "Stop");
    send.addEventListener("click", async () => {
        const [given, entered, controller] = [body(), values(), new AbortController()];
        const end = () => controller.abort();
        output.replaceChildren();
        stop.addEventListener("click", end);
        [send.disabled, stop.disabled] = [true, false];
        try {
            const answer = await fetch(addressOf(path, entered), {
                method: method.toUpperCase(),
                headers: headersOf(operation, entered, given),
                body: given ? given.content : undefined,
                signal: controller.signal,
            });
            await follow(answer, output);
        } catch (error) {
            output.append(make("p", {}, controller.signal.aborted ? "Stopped." : `No answer: ${error}`));
        } finally {
            stop.removeEventListener("click", end);
            [send.disabled, stop.disabled] = [false, true];
        }
    });
    return make("div", {}, send, " ", stop, output);
}

function answersOf(operation) {
    const rows = Object.entries(operation.responses).map(([status, answer]) => {
        const contents = Object.entries(answer.content ?? {});
        const shown = contents.flatMap(([type, content]) => [...kind(content.schema), ` as ${type}`]);
        return [status, prose(answer.description), shown];
    });
    return make("details", {}, make("summary", {}, "Answers"), table(["status", "", "body"], rows));
}

function badge(method) {
    return make("span", { className: `method ${method}` }, method.toUpperCase());
}

function shownOperation(method, path, operation) {
    const [parameters, values] = parameterForm(operation.parameters ?? []);
    const [field, body] = bodyForm(operation.requestBody);
    const name = badge(method);
    const note = make("span", { className: "note" }, operation.summary ?? "");
    const details = make("details", { id: `operation-${operation.operationId}` });
    details.append(make("summary", {}, name, make("code", {}, path), " ", note));
    if (operation.description) details.append(make("p", {}, ...prose(operation.description)));
    // A page cannot send a key with the upgrade to a WebSocket.
    const messages = Object.entries(operation).filter(([member]) => member.startsWith("x-"));
    for (const [member, schema] of messages) {
        details.append(make("p", {}, `${member.slice(2)}: `, ...kind(schema)));
    }
    if (operation.responses["101"]) {
        details.append(make("p", { className: "note" }, "Pages cannot try this: browsers send no key with the upgrade."));
    } else {
        details.append(parameters, field, trial(method, path, operation, values, body));
    }
    const view = sampleView(() => sampleCall(method, path, operation, values(), body()));
    details.append(view, answersOf(operation));
    details.addEventListener("input", view.update);
    // Samples are made when they are seen, in the language that is chosen by then.
    details.addEventListener("toggle", () => details.open && view.update());
    return details;
}

/** A part of the contents; `entries` are ids, nodes to show, and the text that a search looks at. */
function contentsOf(name, entries) {
    const items = entries.map(([id, shown, text]) => {
        const item = make("li", {}, make("a", { href: `#${id}` }, ...shown));
        item.dataset.text = text.toLowerCase();
        return item;
    });
    return make("section", {}, make("h2", {}, name), make("ul", {}, ...items));
}

function operationEntry([method, path, operation]) {
    const text = [method, path, operation.summary, operation.operationId].join(" ");
    return [`operation-${operation.operationId}`, [badge(method), make("code", {}, path)], text];
}

function schemaEntry([name, schema]) {
    const members = Object.keys(schema.properties ?? {}).join(" ");
    return [`schema-${name}`, [make("code", {}, name)], `${name} ${members}`];
}

/** Shows the contents that have all words of the search. */
function search() {
    const words = document.getElementById("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    for (const section of document.querySelectorAll("#contents section")) {
        const items = [...section.querySelectorAll("li")];
        for (const item of items) item.hidden = !words.every((word) => item.dataset.text.includes(word));
        const shown = items.filter((item) => !item.hidden).length;
        section.hidden = shown === 0;
        found += shown;
    }
    document.getElementById("nothing").hidden = found > 0;
}

function goToFirst(event) {
    if (event.key !== "Enter") return;
    document.querySelector("#contents section:not([hidden]) li:not([hidden]) a")?.click();
}

/** The document, once it is there. */
let described;

function show() {
    document.title = document.getElementById("title").textContent = `${described.info.title} ${described.info.version}`;
    document.getElementById("about").append(...prose(described.info.description));
    const all = Object.entries(described.paths).flatMap(([path, item]) =>
        METHODS.filter((method) => item[method]).map((method) => [method, path, item[method]]),
    );
    for (const { name } of described.tags) {
        const tagged = all.filter(([, , operation]) => operation.tags.includes(name));
        const section = make("section", {}, make("h2", {}, name), ...tagged.map((one) => shownOperation(...one)));
        document.getElementById("operations").append(section);
        document.getElementById("contents").append(contentsOf(name, tagged.map(operationEntry)));
    }
    const entries = Object.entries(described.components.schemas).map(schemaEntry);
    document.getElementById("contents").append(contentsOf("Schemas", entries));
    const schemas = Object.entries(described.components.schemas).map((one) => shownSchema(...one));
    document.getElementById("schemas").append(...schemas);
}

/** A link to what is folded opens it. */
function unfold() {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (target) {
        target.open = true;
        target.scrollIntoView();
    }
}

async function start() {
    try {
        const answer = await fetch("openapi.json");
        if (!answer.ok) throw new Error(`openapi.json: ${answer.status}`);
        described = await answer.json();
        show();
        document.getElementById("search").addEventListener("input", search);
        document.getElementById("search").addEventListener("keydown", goToFirst);
        addEventListener("hashchange", unfold);
        unfold();
    } catch (error) {
        const problem = document.getElementById("problem");
        problem.textContent = String(error);
        problem.hidden = false;
    }
}

start();
