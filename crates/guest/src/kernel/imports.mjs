// Makes a cell of JavaScript or TypeScript fit for evaluation: code that is evaluated is no module,
// so it has neither `import` declarations nor `export`, and its `import()` does not know from where.
//
// `import a, { b as c } from "d"` becomes `const { default: a, "b": c } = await $import("d")`,
// `import(…)` and `import.meta` become `$import(…)` and `$import.meta`, and `export` before a
// declaration goes. All lines stay where they are. Types are understood, not removed.

/** The global function that imports go through; it has `meta` too. */
export const NAME = "$import";

const WORD = /[\p{ID_Start}$_][\p{ID_Continue}$\u200c\u200d]*/uy;
const NUMBER = /\.?\d(?:[eE][+-]|[\w.])*/y;
const BLANK = /(?:\s|\/\/.*|\/\*[^]*?\*\/)*/y;
const REGULAR = /\/(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^\/\\\[\n])+\/[a-z]*/y;
const TEXT = /"(?:\\[^]|[^"\\\n])*"|'(?:\\[^]|[^'\\\n])*'/y;
const DECLARED = /(?:abstract|async|class|const|declare|enum|function|interface|let|namespace|type|var)\b/y;

/** After these a slash begins a regular expression. */
const OPERATORS = new Set(
  ("await case delete do else extends in instanceof new of return throw typeof void yield").split(" "),
);
/** The parenthesis behind these is followed by a statement. */
const HEADS = new Set(["if", "while", "for", "with"]);

function match(pattern, source, at) {
  pattern.lastIndex = at;
  return pattern.exec(source)?.[0];
}

const skipBlank = (source, at) => at + match(BLANK, source, at).length;

const linesOf = (text) => text.replace(/[^\n\r\u2028\u2029]/g, "");

/** What stands instead of the import declaration at `at`, and its end; nothing if it is none. */
function declaration(source, at) {
  const begin = at;
  const bindings = [];
  let namespace;
  let onlyTypes = false;

  const next = (pattern) => {
    const found = match(pattern, source, at);
    if (found !== undefined) at = skipBlank(source, at + found.length);
    return found;
  };
  const name = () => next(WORD) ?? next(TEXT);
  const star = () => {
    if (next(/\*/y) === undefined) return true;
    if (next(WORD) !== "as") return false;
    namespace = next(WORD);
    return namespace !== undefined;
  };
  const braces = () => {
    if (next(/\{/y) === undefined) return true;
    while (next(/\}/y) === undefined) {
      let words = [];
      for (let word; (word = name()) !== undefined;) words.push(word);
      // `type` is a modifier unless it is itself what is imported: `type`, `type as b`.
      const count = words.length;
      const isType = words[0] === "type" && (count === 2 || count === 4 || (count === 3 && words[1] !== "as"));
      if (count === 0) return false;
      if (!isType) bindings.push([words[0], words.at(-1)]);
      if (next(/,/y) === undefined && source[at] !== "}") return false;
    }
    return true;
  };

  at = skipBlank(source, at + "import".length);
  let specifier = next(TEXT);
  if (specifier === undefined) {
    if (/^type\s*(?:[{*]|(?!from\b)[\p{ID_Start}$_]|from\s+from\b)/u.test(source.slice(at, at + 80))) {
      next(WORD);
      onlyTypes = true;
    }
    const word = next(WORD);
    if (word !== undefined) {
      bindings.push(["default", word]);
      if (source[at] === "=") return;
      if (next(/,/y) === undefined && !/from\b/y.test(source.slice(at, at + 5))) return;
    }
    if (!star() || !braces() || next(WORD) !== "from") return;
    specifier = next(TEXT);
    if (specifier === undefined) return;
  }
  let end = at;
  let options = "";
  if (/^(?:with|assert)\s*\{/.test(source.slice(at, at + 40))) {
    const open = source.indexOf("{", at);
    const close = source.indexOf("}", open);
    if (close < 0) return;
    options = `, { with: ${source.slice(open, close + 1).replace(/\s+/g, " ")} }`;
    end = close + 1;
  } else {
    // The blanks behind belong to what follows.
    end = source.lastIndexOf(specifier, at) + specifier.length;
  }
  const semicolon = skipBlank(source, end);
  if (source[semicolon] === ";") end = semicolon + 1;

  const lines = linesOf(source.slice(begin, end));
  if (onlyTypes) return { text: lines, end };
  const load = `await ${NAME}(${specifier}${options})`;
  const quoted = (word) => (/^["']/.test(word) ? word : `"${word}"`);
  const pattern = `{ ${bindings.map(([from, to]) => `${quoted(from)}: ${to}`).join(", ")} }`;
  let text = load;
  if (namespace !== undefined) {
    text = `const ${namespace} = ${load}${bindings.length ? `, ${pattern} = ${namespace}` : ""}`;
  } else if (bindings.length) {
    text = `const ${pattern} = ${load}`;
  }
  return { text: `;${text};${lines}`, end };
}

/** The source with its imports replaced; as it is where it has none. */
export function rewrite(source) {
  if (!/\b(?:import|export)\b/.test(source)) return source;
  let out = "";
  let copied = 0;
  let at = 0;
  /** Whether a slash that comes now divides. */
  let isValue = false;
  /** The word before, and whether it is a property's name. */
  let word = "";
  let isProperty = false;
  /** Open brackets; for a parenthesis, whether a statement follows it; "`" within a template. */
  const open = [];

  const replace = (from, to, text) => {
    out += source.slice(copied, from) + text;
    copied = at = to;
  };
  const template = () => {
    while (at < source.length) {
      const char = source[at++];
      if (char === "\\") at++;
      else if (char === "`") return;
      else if (char === "$" && source[at] === "{") {
        at++;
        open.push("`");
        isValue = false;
        return;
      }
    }
  };

  if (source.startsWith("#!")) at = source.indexOf("\n") < 0 ? source.length : source.indexOf("\n");
  while ((at = skipBlank(source, at)) < source.length) {
    const char = source[at];
    const found = match(WORD, source, at);
    if (found !== undefined) {
      const isName = isProperty;
      isProperty = false;
      word = found;
      isValue = isName || !OPERATORS.has(found);
      const behind = skipBlank(source, at + found.length);
      const isKey = source[behind] === ":" && found === "import";
      if (!isName && !isKey && found === "import") {
        if (source[behind] === "(" || source[behind] === ".") {
          replace(at, at + found.length, NAME);
          continue;
        }
        const import_ = open.length === 0 ? declaration(source, at) : undefined;
        if (import_ !== undefined) {
          replace(at, import_.end, import_.text);
          isValue = false;
          continue;
        }
      }
      if (!isName && found === "export" && open.length === 0 && match(DECLARED, source, behind)) {
        replace(at, behind, linesOf(source.slice(at, behind)));
        continue;
      }
      at += found.length;
      continue;
    }
    const before = isProperty ? "" : word;
    word = "";
    isProperty = false;
    const literal = match(TEXT, source, at) ?? match(NUMBER, source, at);
    if (literal !== undefined) {
      at += literal.length;
      isValue = true;
    } else if (char === "`") {
      at++;
      isValue = true;
      template();
    } else if (char === "/" && !isValue && match(REGULAR, source, at) !== undefined) {
      at += match(REGULAR, source, at).length;
      isValue = true;
    } else {
      at++;
      isValue = false;
      if (char === "(") open.push(HEADS.has(before) ? "head" : char);
      else if (char === "[" || char === "{") open.push(char);
      else if (char === ")") isValue = open.pop() !== "head";
      else if (char === "]") isValue = open.pop() !== undefined;
      else if (char === "}") {
        if (open.pop() === "`") {
          isValue = true;
          template();
        }
      } else if (char === "." && source[at] !== ".") isProperty = source[at - 2] !== ".";
      else if (char === "#") isProperty = true;
      else if ((char === "+" || char === "-") && source[at] === char) {
        // `a++ / b` divides, `a + ++b` does not come here with a value before.
        at++;
        isValue = /[\w$)\]]/.test(source[at - 3] ?? "");
      } else if (char === "!" && /[\w$)\]]/.test(source[at - 2] ?? "") && source[at] !== "=") {
        isValue = true; // TypeScript's assertion
      }
    }
  }
  return copied === 0 && out === "" ? source : out + source.slice(copied);
}
