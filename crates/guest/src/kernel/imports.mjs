// Makes a cell of JavaScript or TypeScript fit for evaluation: code that is evaluated is no module,
// so it has neither `import` declarations nor `export`, and its `import()` does not know from where.
//
// `import a, { b as c } from "d"` becomes `const { default: a, "b": c } = await $import("d")`, `import(…)` and
// `import.meta` become `$import(…)` and `$import.meta`. From an `export`, only the declaration or the loading is left.
// A `const enum` becomes an `enum`, because later cells would not have it otherwise. All lines keep their numbers.
// Types are understood, not removed.
//
// Code that is evaluated by code may not know from where it imports either: `eval(…)` becomes `eval($import.text(…))`
// then, and `(0, eval)` becomes `(0, $import.evaluate)`, which do the same to that code.
//
// The value that an exit call throws must not reach a `catch`: `catch (a) {` becomes `catch (a) {$import.check(a);`,
// and `.catch(…)` becomes `.catch(...$import.others(…))`, from the first cell on that may have to do with exits.

/** The global function that imports go through; it has `meta` too. */
export const NAME = "$import";

const WORD = /[\p{ID_Start}$_][\p{ID_Continue}$\u200c\u200d]*/uy;
const NUMBER = /\.?\d(?:[eE][+-]|[\w.])*/y;
const BLANK = /(?:\s|\/\/.*|\/\*[^]*?\*\/)*/y;
const REGULAR = /\/(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^\/\\\[\n])+\/[a-z]*/y;
const TEXT = /"(?:\\[^]|[^"\\\n])*"|'(?:\\[^]|[^'\\\n])*'/y;
const DECLARED =
  /(?:abstract|async|class|const|declare|enum|function|import(?=\s+\w+\s*=)|interface|let|namespace|type|var)\b|@/y;

const NAMED = /(?:abstract\s+)?class\s+(?!extends\b)[\p{ID_Start}$_]|(?:async\s+)?function\b\s*\*?\s*[\p{ID_Start}$_]|interface\b/uy;

const UNNAMED = /(?:async\s+)?function\b|class\b/y;

/** The same as `BLANK` for the middle of a pattern: no text matches it in two ways, between which a failure would try. */
const GAP = String.raw`(?:\s|\/\/.*(?=[\n\r\u2028\u2029]|$)|\/\*(?:[^*]|\*(?!\/))*\*\/)*`;
const CLAUSE = new RegExp(
  String.raw`catch${GAP}(?:\(${GAP}([\p{ID_Start}$_][\p{ID_Continue}$]*)${GAP}(?::${GAP}(?:any|unknown)${GAP})?\)${GAP})?\{`,
  "uy",
);
const CLAUSE_WITH_PATTERN = new RegExp(String.raw`catch${GAP}\(${GAP}(?=[{[])`, "y");

/** Text before an `import("a").B` or a `typeof import("a")` that is a type. */
const TYPE =
  /(?:[:<]|(?<![|&])[|&]|<[^<>(){};=]*,|\b(?:as|extends|is|keyof|satisfies)\s|\btype\s+\w+\s*(?:<[^=]*>\s*)?=)\s*(typeof\s+)?$/;

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

/** The text just before a position; found without globals, which a cell may have declared anew. */
const before = (source, at) => source.slice(at > 80 ? at - 80 : 0, at);

const linesOf = (text) => text.replace(/[^\n\r\u2028\u2029]/g, "");

/** The end of the declaration that has this specifier before `at`, and the attributes of its loading. */
function attributes(source, at, specifier) {
  let options = "";
  // The blanks behind belong to what follows.
  let end = source.lastIndexOf(specifier, at) + specifier.length;
  if (/^(?:with|assert)\s*\{/.test(source.slice(at, at + 40))) {
    const open = source.indexOf("{", at);
    const close = source.indexOf("}", open);
    if (close > 0) {
      options = `, { with: ${source.slice(open, close + 1).replace(/\s+/g, " ")} }`;
      end = close + 1;
    }
  }
  const semicolon = skipBlank(source, end);
  if (source[semicolon] === ";") end = semicolon + 1;
  return { end, options };
}

/** The replacement for the import declaration at `at`, and its end; `undefined` if it is none. */
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
  const { end, options } = attributes(source, at, specifier);

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

/** The replacement for the `export` at `at`, without its declaration, and its end; or `undefined`. */
function exported(source, at) {
  const behind = skipBlank(source, at + "export".length);
  const replace = (text, end) => ({ text: text + linesOf(source.slice(at, end)), end });
  const list = match(/(?:type\s*)?\{[^{}]*\}|(?:type\s*)?\*/y, source, behind);
  if (list === undefined && match(DECLARED, source, behind)) return replace("", behind);
  const default_ = match(/default\b/y, source, behind);
  if (default_) {
    const end = skipBlank(source, behind + default_.length);
    // An export without a name is no declaration by itself.
    const declared = skipDecorators(source, end);
    if (match(NAMED, source, declared)) return replace("", end);
    return { ...replace(";0, ", end), isUnnamed: match(UNNAMED, source, declared) !== undefined };
  }
  if (/^=(?![=>])/.test(source.slice(behind, behind + 2))) return replace(";0, ", behind + 1);
  if (list === undefined) return;
  let end = skipBlank(source, behind + list.length);
  const from = match(/(?:as\b\s*(?:[^\s"']+|"[^"\n]*"|'[^'\n]*')\s*)?from\b/y, source, end);
  if (from === undefined) return list.endsWith("*") ? undefined : replace(";", behind + list.length);
  end = skipBlank(source, end + from.length);
  const specifier = match(TEXT, source, end);
  if (specifier === undefined) return;
  const { end: last, options } = attributes(source, skipBlank(source, end + specifier.length), specifier);
  return replace(list.startsWith("type") ? ";" : `;await ${NAME}(${specifier}${options});`, last);
}

/** Behind the parenthesis that is open at `at`. */
function closed(source, at) {
  for (let depth = 0; at < source.length; ) {
    const skipped = match(/\/\/.*|\/\*[^]*?\*\//y, source, at) ?? match(TEXT, source, at);
    if (skipped !== undefined) {
      at += skipped.length;
      continue;
    }
    const char = source[at++];
    if ("([{".includes(char)) depth++;
    else if (")]}".includes(char) && --depth === 0) break;
  }
  return at;
}

/**
 * Whether a word with parameters at `open` is a method's name. The `context` has the bracket that it is in (`body`),
 * the word before, if that is the token before (`last`), and the last character of the token before (`previous`).
 */
function isMethod(source, open, { body, last, previous }) {
  if (body !== "{" && body !== "class") return false;
  const end = closed(source, open);
  const behind = skipBlank(source, end);
  if (source[behind] === "{" && linesOf(source.slice(end, behind)) === "") return true;
  // A block behind a call, or a type behind parameters: an operator before makes it a call within an expression.
  if (OPERATORS.has(last) || !/[\w$*{},;)\]"'`]/.test(previous)) return false;
  return (body === "class" ? /[{:;]/ : /:/).test(source[behind] ?? "");
}

/** Whether the `import` at `at`, with parameters at `open`, is a type. Its members are no methods of a promise. */
function isType(source, at, open) {
  const found = TYPE.exec(before(source, at));
  if (found === null || match(/\(\s*["']/y, source, open) === undefined) return false;
  return found[1] !== undefined || match(/\s*\.\s*(?!(?:catch|finally|then)\b)/y, source, closed(source, open)) !== undefined;
}

/** Behind the decorators at `at`, if there are any. */
function skipDecorators(source, at) {
  while (source[at] === "@") {
    at += 1 + (match(/[\p{ID_Continue}$.]+/uy, source, at + 1)?.length ?? 0);
    if (source[at] === "(") at = closed(source, at);
    at = skipBlank(source, at);
  }
  return at;
}

/** Thrown by exit calls, to stop the code that calls them. Never shown: with a stack node makes no error of it. */
export class Exit {
  stack = "";
}

/** The properties of the global function beside `meta`. */
export const helpers = {
  /** Replaces the imports in the text that is given to `eval`. */
  text: (source) => (typeof source === "string" && /\bimport\b/.test(source) ? rewrite(source, true) : source),

  /** Stands for an `eval` that does not know the names around it. */
  evaluate: ((evaluate) => (source) => evaluate(helpers.text(source)))(eval),

  check(error) {
    if (error instanceof Exit) throw error;
  },

  /** Functions that get all errors but exits. */
  others: (...listeners) =>
    listeners.map((listener) => {
      if (typeof listener !== "function") return listener;
      return function (...given) {
        helpers.check(given[0]);
        return apply(listener, this, given);
      };
    }),
};

const { apply } = Reflect;

/** Whether a cell so far may call, or hold, an exit. */
let mayExit = false;

/** The replacement for the call of `eval` at `at`; `undefined` if it stays. */
function evaluation(source, at, behind, context) {
  if (source[behind] === ")" && /\(\s*0\s*,\s*$/.test(before(source, at))) {
    return { text: `${NAME}.evaluate`, end: at + "eval".length };
  }
  if (source[behind] !== "(" || isMethod(source, behind, context)) return;
  const literal = match(/\(\s*(?:"[^"\\]*"|'[^'\\]*')\s*\)/y, source, behind);
  if (literal !== undefined && !/\bimport\b/.test(literal)) return;
  return { text: `${source.slice(at, behind + 1)}${NAME}.text(`, end: behind + 1, opened: "call" };
}

/** The replacement for the `catch` at `at`; `undefined` if it stays. */
function catching(source, at, behind, { body, isProperty, previous }) {
  if (isProperty) {
    if (source[behind] !== "(" || previous !== ".") return;
    return { text: `${source.slice(at, behind + 1)}...${NAME}.others(`, end: behind + 1, opened: "call" };
  }
  // In a class, it is a method behind another one.
  if (previous !== "}" || body === "class") return;
  const pattern = match(CLAUSE_WITH_PATTERN, source, at);
  if (pattern !== undefined) {
    const text = `catch (${NAME}_) {${NAME}.check(${NAME}_);let ${linesOf(pattern)}`;
    return { text, end: at + pattern.length, opened: "pattern" };
  }
  CLAUSE.lastIndex = at;
  const [clause, name] = CLAUSE.exec(source) ?? [];
  if (clause === undefined) return;
  const begin = name ? clause : `catch (${NAME}_) {${linesOf(clause)}`;
  return { text: `${begin}${NAME}.check(${name ?? `${NAME}_`});`, end: at + clause.length, opened: "{" };
}

/** The source with its imports replaced, and with `isEvalBlind` those of `eval`; unchanged if it has none. */
export function rewrite(source, isEvalBlind = false) {
  mayExit ||= /exit/i.test(source);
  const words = [/\b(?:import|export|enum)\b/, isEvalBlind && /\beval\b/, mayExit && /\bcatch\b/];
  if (!words.some((word) => word && word.test(source))) return source;
  let out = "";
  let copied = 0;
  let at = 0;
  /** Whether a slash that comes now divides. */
  let isValue = false;
  /** The word before, and whether it is a property's name. */
  let word = "";
  let isProperty = false;
  /**
   * Open brackets; "head" for a parenthesis that a statement follows, "call" for one with another behind,
   * "pattern" for the one of a `catch`, "class" for the brace of a class or interface, "`" within a template.
   */
  const open = [];
  /** How many were open where a class began whose body has not. */
  let classAt = -1;
  /** Whether a function or class without a name is being exported, which is an expression from then on. */
  let isUnnamed = false;
  /** The last character of the token before. */
  let previous = "";

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
  const next = () => {
    previous = source[at - 1] ?? "";
    at = skipBlank(source, at);
    return at < source.length;
  };
  while (next()) {
    const char = source[at];
    const found = match(WORD, source, at);
    if (found !== undefined) {
      const isName = isProperty;
      const last = word;
      isProperty = false;
      word = found;
      isValue = isName || !OPERATORS.has(found);
      const behind = skipBlank(source, at + found.length);
      const isKey = source[behind] === ":" && found === "import";
      const context = { body: open.at(-1), isProperty: isName, last, previous };
      if (!isName && !isKey && found === "import") {
        const isCall = source[behind] === "(" && !isMethod(source, behind, context) && !isType(source, at, behind);
        if (isCall || source[behind] === ".") {
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
      const isEval = isEvalBlind && !isName && found === "eval" && last !== "function";
      const isCatch = mayExit && found === "catch";
      const call = isEval
        ? evaluation(source, at, behind, context)
        : isCatch && catching(source, at, behind, context);
      if (call) {
        replace(at, call.end, call.text);
        if (call.opened) open.push(call.opened);
        isValue = !call.opened;
        continue;
      }
      if (!isName && found === "export" && open.length === 0) {
        const export_ = exported(source, at);
        if (export_ !== undefined) {
          replace(at, export_.end, export_.text);
          isUnnamed = export_.isUnnamed ?? false;
          isValue = false;
          continue;
        }
      }
      if (!isName && found === "const" && match(/enum\s+[\p{ID_Start}$_]/uy, source, behind) !== undefined) {
        replace(at, at + found.length, " ".repeat(found.length));
        continue;
      }
      const isInterface = found === "interface" && match(WORD, source, behind) !== undefined;
      if (!isName && (isInterface || (found === "class" && source[behind] !== ":"))) classAt = open.length;
      at += found.length;
      continue;
    }
    const last = isProperty ? "" : word;
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
      if (char === "(") open.push(HEADS.has(last) ? "head" : char);
      // Behind these, the brace is that of a type, in what the class extends.
      else if (char === "{" && classAt === open.length && !/[<,:=|&]/.test(previous)) {
        open.push("class");
        classAt = -1;
      } else if (char === "[" || char === "{") open.push(char);
      else if (char === ")") {
        const opened = open.pop();
        isValue = opened !== "head";
        const block = skipBlank(source, at);
        if (opened === "call") replace(at, at, ")");
        else if (opened === "pattern" && source[block] === "{") {
          replace(at - 1, block + 1, ` = ${NAME}_;${linesOf(source.slice(at, block))}`);
          open.push("{");
          isValue = false;
        }
      } else if (char === "]") isValue = open.pop() !== undefined;
      else if (char === "}") {
        if (open.pop() === "`") {
          isValue = true;
          template();
        } else if (isUnnamed && open.length === 0 && !/[{[|&>,]/.test(source[skipBlank(source, at)] ?? "")) {
          replace(at, at, ";");
          isUnnamed = false;
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
