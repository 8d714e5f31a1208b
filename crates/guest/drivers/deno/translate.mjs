// Makes JavaScript of cells in TypeScript.

import { SourceMap, stripTypeScriptTypes } from "node:module";

/** Looked up before cells put others in their places. */
const { atob, Deno, JSON, RegExp, TextDecoder } = globalThis;

/** Splits a text from the map that it ends with. */
function splitMap(text) {
  const at = text.lastIndexOf("\n//# sourceMappingURL=");
  const [, data] = text.slice(at).split("base64,");
  return { text: text.slice(0, at), map: new SourceMap(JSON.parse(atob(data))) };
}

/** Returns the cell without its types; with a map where places could not be kept. Throws where the cell is wrong. */
export function translate(source) {
  try {
    return { text: stripTypeScriptTypes(source, { mode: "strip" }) };
  } catch {
    // There are types that have a meaning, or it is wrong: then this has the better message.
    return splitMap(stripTypeScriptTypes(source, { mode: "transform", sourceMap: true }));
  }
}

/** Gives the classes that have another name in the translation the name that they have in the source. */
function outerNames(source, text) {
  const inner = [...text.matchAll(/^let (_(\w+?)\d*);$/gm)];
  const classes = inner.filter(([, , name]) => new RegExp(`\\bclass\\s+${name}\\b`).test(source));
  const isDeclared = (name) => new RegExp(`^class ${name}\\b`, "m").test(text);
  return classes.map(([, own, name]) => `\n${isDeclared(name) ? "" : "let "}${name} = ${own};`).join("");
}

/** Translates a cell with decorators, which only a process of deno's own does; returns nothing if it does not. */
export async function translateAll(source) {
  const file = await Deno.makeTempFile({ suffix: ".mts" });
  try {
    await Deno.writeTextFile(file, source);
    const args = ["transpile", "--quiet", "--no-config", "--no-lock", "--source-map=inline", file];
    const command = new Deno.Command(Deno.execPath(), { args, stdin: "null", stderr: "null" });
    const { success, stdout } = await command.output();
    if (!success) return;
    const { text, map } = splitMap(new TextDecoder().decode(stdout).trimEnd());
    return { text: text + outerNames(source, text), map };
  } finally {
    await Deno.remove(file);
  }
}
