// Makes a cell of JavaScript or TypeScript fit for evaluation: code that is evaluated is no module,
// so it has neither `import` declarations nor `export`, and its `import()` does not know its own place.
//
// `import a, { b as c } from "d"` becomes `const { default: a, "b": c } = await $import("d")`, `import(…)` and
// `import.meta` become `$import(…)` and `$import.meta`. From an `export`, only the declaration or the loading is left.
// A `const enum` becomes an `enum`, because later cells would not have it otherwise. All lines keep their numbers.
// Types are understood, not removed.
//
// Code that other code evaluates does not know its own place for imports either: `eval(…)` becomes `eval($import.text(…))`
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

/** Returns the text just before a position, without globals, which a cell may have declared anew. */
const before = (source, at) => source.slice(at > 80 ? at - 80 : 0, at);

const linesOf = (text) => text.replace(/[^\n\r\u2028\u2029]/g, "");

/** Returns the end of the declaration that has this specifier before `at`, and the attributes of its loading. */
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

const IS_ONLY_TYPES = /^type\s*(?:[{*]|(?!from\b)[\p{ID_Start}$_]|from\s+from\b)/u;

/** Reads an import declaration. */
class ImportDeclaration {
  #source;
  #begin;
  #at;
  /** Pairs of the exported and the local name. */
  #bindings = [];
  #namespace;
  #isOnlyTypes = false;

  constructor(source, begin) {
    this.#source = source;
    this.#begin = begin;
    this.#at = skipBlank(source, begin + "import".length);
  }

  /** Returns the replacement and the end of the declaration; `undefined` if it is none. */
  read() {
    let specifier = this.#next(TEXT);
    if (specifier === undefined) {
      if (!this.#readClause() || this.#next(WORD) !== "from") return;
      specifier = this.#next(TEXT);
      if (specifier === undefined) return;
    }
    const { end, options } = attributes(this.#source, this.#at, specifier);
    const lines = linesOf(this.#source.slice(this.#begin, end));
    if (this.#isOnlyTypes) return { text: lines, end };
    return { text: `;${this.#replacement(`await ${NAME}(${specifier}${options})`)};${lines}`, end };
  }

  /** Takes what the pattern matches, and the blanks behind it. */
  #next(pattern) {
    const found = match(pattern, this.#source, this.#at);
    if (found !== undefined) this.#at = skipBlank(this.#source, this.#at + found.length);
    return found;
  }

  /** Takes what stands before `from`; returns false if it is no such clause. */
  #readClause() {
    if (IS_ONLY_TYPES.test(this.#source.slice(this.#at, this.#at + 80))) {
      this.#next(WORD);
      this.#isOnlyTypes = true;
    }
    const word = this.#next(WORD);
    if (word !== undefined) {
      this.#bindings.push(["default", word]);
      if (this.#source[this.#at] === "=") return false;
      if (this.#next(/,/y) === undefined && !/from\b/y.test(this.#source.slice(this.#at, this.#at + 5))) return false;
    }
    return this.#readNamespace() && this.#readNames();
  }

  #readNamespace() {
    if (this.#next(/\*/y) === undefined) return true;
    if (this.#next(WORD) !== "as") return false;
    this.#namespace = this.#next(WORD);
    return this.#namespace !== undefined;
  }

  #readNames() {
    if (this.#next(/\{/y) === undefined) return true;
    while (this.#next(/\}/y) === undefined) {
      const words = [];
      for (let word; (word = this.#next(WORD) ?? this.#next(TEXT)) !== undefined;) words.push(word);
      // `type` is a modifier unless it is itself what is imported: `type`, `type as b`.
      const count = words.length;
      const isType = words[0] === "type" && (count === 2 || count === 4 || (count === 3 && words[1] !== "as"));
      if (count === 0) return false;
      if (!isType) this.#bindings.push([words[0], words.at(-1)]);
      if (this.#next(/,/y) === undefined && this.#source[this.#at] !== "}") return false;
    }
    return true;
  }

  /** Returns the statement that declares the names, with this expression for the module. */
  #replacement(load) {
    const quoted = (word) => (/^["']/.test(word) ? word : `"${word}"`);
    const pattern = `{ ${this.#bindings.map(([from, to]) => `${quoted(from)}: ${to}`).join(", ")} }`;
    const { length } = this.#bindings;
    if (this.#namespace !== undefined) {
      return `const ${this.#namespace} = ${load}${length ? `, ${pattern} = ${this.#namespace}` : ""}`;
    }
    return length ? `const ${pattern} = ${load}` : load;
  }
}

/** Returns the replacement for the `export` at `at`, without its declaration, and its end; or `undefined`. */
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

/** Returns the position behind the parenthesis that opens at `at`. */
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
 * Returns whether a word with parameters at `open` is a method's name. The `context` has the bracket that it is in (`body`),
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

/** Returns whether the `import` at `at`, with parameters at `open`, is a type. Its members are no methods of a promise. */
function isType(source, at, open) {
  const found = TYPE.exec(before(source, at));
  if (found === null || match(/\(\s*["']/y, source, open) === undefined) return false;
  return found[1] !== undefined || match(/\s*\.\s*(?!(?:catch|finally|then)\b)/y, source, closed(source, open)) !== undefined;
}

/** Returns the position behind the decorators at `at`, if there are any. */
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

  /** Throws the error of a `catch` again if it is an exit. */
  check(error) {
    if (error instanceof Exit) throw error;
  },

  /** Returns functions that get all errors but exits. */
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

/** Returns the replacement for the call of `eval` at `at`; `undefined` if it stays. */
function evaluation(source, at, behind, context) {
  if (source[behind] === ")" && /\(\s*0\s*,\s*$/.test(before(source, at))) {
    return { text: `${NAME}.evaluate`, end: at + "eval".length };
  }
  if (source[behind] !== "(" || isMethod(source, behind, context)) return;
  const literal = match(/\(\s*(?:"[^"\\]*"|'[^'\\]*')\s*\)/y, source, behind);
  if (literal !== undefined && !/\bimport\b/.test(literal)) return;
  return { text: `${source.slice(at, behind + 1)}${NAME}.text(`, end: behind + 1, opened: "call" };
}

/** Returns the replacement for the `catch` at `at`; `undefined` if it stays. */
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

/** Goes through the words of a cell, and replaces some. */
class Rewriter {
  #source;
  #isEvalBlind;
  #out = "";
  /** Where the part of the source begins that is not in the output yet. */
  #copied = 0;
  #at = 0;
  /** Whether a slash that comes now divides. */
  #isValue = false;
  /** The word before, and whether it is a property's name. */
  #word = "";
  #isProperty = false;
  /**
   * Open brackets; "head" for a parenthesis that a statement follows, "call" for one with another behind,
   * "pattern" for the one of a `catch`, "class" for the brace of a class or interface, "`" within a template.
   */
  #open = [];
  /** How many were open where a class began whose body has not. */
  #classAt = -1;
  /** Whether a function or class without a name is being exported, which is an expression from then on. */
  #isUnnamed = false;
  /** The last character of the token before. */
  #previous = "";

  constructor(source, isEvalBlind) {
    this.#source = source;
    this.#isEvalBlind = isEvalBlind;
  }

  /** Returns the source with its replacements. */
  rewrite() {
    const source = this.#source;
    const { length } = source;
    if (source.startsWith("#!")) this.#at = source.indexOf("\n") < 0 ? length : source.indexOf("\n");
    while (this.#next() < length) {
      const word = match(WORD, source, this.#at);
      if (word !== undefined) this.#takeWord(word);
      else this.#takeOther(source[this.#at]);
    }
    return this.#copied === 0 && this.#out === "" ? source : this.#out + source.slice(this.#copied);
  }

  /** Returns the position of the next token. */
  #next() {
    this.#previous = this.#source[this.#at - 1] ?? "";
    this.#at = skipBlank(this.#source, this.#at);
    return this.#at;
  }

  #replace(from, to, text) {
    this.#out += this.#source.slice(this.#copied, from) + text;
    this.#copied = this.#at = to;
  }

  #takeWord(word) {
    const isName = this.#isProperty;
    const last = this.#word;
    this.#isProperty = false;
    this.#word = word;
    this.#isValue = isName || !OPERATORS.has(word);
    const behind = skipBlank(this.#source, this.#at + word.length);
    if (this.#replaceWord(word, behind, isName, last)) return;
    const isInterface = word === "interface" && match(WORD, this.#source, behind) !== undefined;
    const isClass = word === "class" && this.#source[behind] !== ":";
    if (!isName && (isInterface || isClass)) this.#classAt = this.#open.length;
    this.#at += word.length;
  }

  /** Replaces what this word begins; returns false if that stays. */
  #replaceWord(word, behind, isName, last) {
    const [source, at, body] = [this.#source, this.#at, this.#open.at(-1)];
    const context = { body, isProperty: isName, last, previous: this.#previous };
    switch (word) {
      case "import":
        return !isName && source[behind] !== ":" && this.#replaceImport(behind, context);
      case "eval":
        if (!this.#isEvalBlind || isName || last === "function") return false;
        return this.#replaceCall(evaluation(source, at, behind, context));
      case "catch":
        return mayExit && this.#replaceCall(catching(source, at, behind, context));
      case "export":
        return !isName && body === undefined && this.#replaceExport(exported(source, at));
      case "const":
        if (isName || match(/enum\s+[\p{ID_Start}$_]/uy, source, behind) === undefined) return false;
        this.#replace(at, at + word.length, " ".repeat(word.length));
        return true;
      default:
        return false;
    }
  }

  #replaceImport(behind, context) {
    const [source, at] = [this.#source, this.#at];
    const isCall = source[behind] === "(" && !isMethod(source, behind, context) && !isType(source, at, behind);
    if (isCall || source[behind] === ".") {
      this.#replace(at, at + "import".length, NAME);
      return true;
    }
    return context.body === undefined && this.#replaceStatement(new ImportDeclaration(source, at).read());
  }

  #replaceExport(found) {
    if (found !== undefined) this.#isUnnamed = found.isUnnamed ?? false;
    return this.#replaceStatement(found);
  }

  #replaceStatement(found) {
    if (found === undefined) return false;
    this.#replace(this.#at, found.end, found.text);
    this.#isValue = false;
    return true;
  }

  #replaceCall(found) {
    if (found === undefined) return false;
    this.#replace(this.#at, found.end, found.text);
    if (found.opened) this.#open.push(found.opened);
    this.#isValue = !found.opened;
    return true;
  }

  #takeOther(char) {
    const last = this.#isProperty ? "" : this.#word;
    this.#word = "";
    this.#isProperty = false;
    const [source, at] = [this.#source, this.#at];
    const literal = match(TEXT, source, at) ?? match(NUMBER, source, at);
    const regular = literal === undefined && char === "/" && !this.#isValue ? match(REGULAR, source, at) : undefined;
    if (literal === undefined && regular === undefined && char !== "`") return this.#takePunctuation(char, last);
    this.#at += (literal ?? regular ?? char).length;
    this.#isValue = true;
    if (char === "`") this.#takeTemplate();
  }

  /** Takes the part of a template up to its end, or to the next expression in it. */
  #takeTemplate() {
    const source = this.#source;
    while (this.#at < source.length) {
      const char = source[this.#at++];
      if (char === "\\") this.#at++;
      else if (char === "`") return;
      else if (char === "$" && source[this.#at] === "{") {
        this.#at++;
        this.#open.push("`");
        this.#isValue = false;
        return;
      }
    }
  }

  /** Takes an operator or a bracket; `last` is the word before it. */
  #takePunctuation(char, last) {
    const source = this.#source;
    const open = this.#open;
    this.#at++;
    this.#isValue = false;
    if (char === "(") open.push(HEADS.has(last) ? "head" : char);
    // Behind these, the brace is that of a type, in what the class extends.
    else if (char === "{" && this.#classAt === open.length && !/[<,:=|&]/.test(this.#previous)) {
      open.push("class");
      this.#classAt = -1;
    } else if (char === "[" || char === "{") open.push(char);
    else if (")]}".includes(char)) this.#close(char);
    else if (char === "." && source[this.#at] !== ".") this.#isProperty = source[this.#at - 2] !== ".";
    else if (char === "#") this.#isProperty = true;
    else if ((char === "+" || char === "-") && source[this.#at] === char) {
      // `a++ / b` divides, `a + ++b` does not come here with a value before.
      this.#at++;
      this.#isValue = /[\w$)\]]/.test(source[this.#at - 3] ?? "");
    } else if (char === "!" && /[\w$)\]]/.test(source[this.#at - 2] ?? "") && source[this.#at] !== "=") {
      this.#isValue = true; // TypeScript's assertion
    }
  }

  #close(char) {
    const opened = this.#open.pop();
    if (char === ")") {
      this.#isValue = opened !== "head";
      if (opened === "call") this.#replace(this.#at, this.#at, ")");
      else if (opened === "pattern") this.#openCatch();
    } else if (char === "]") this.#isValue = opened !== undefined;
    else if (opened === "`") {
      this.#isValue = true;
      this.#takeTemplate();
    } else if (this.#isUnnamed && this.#open.length === 0) this.#endExport();
  }

  /** Opens the block of a `catch` whose pattern ends here. */
  #openCatch() {
    const [source, at] = [this.#source, this.#at];
    const block = skipBlank(source, at);
    if (source[block] !== "{") return;
    this.#replace(at - 1, block + 1, ` = ${NAME}_;${linesOf(source.slice(at, block))}`);
    this.#open.push("{");
    this.#isValue = false;
  }

  /** Ends the expression that an exported function or class without a name is, unless a brace or type goes on. */
  #endExport() {
    if (/[{[|&>,]/.test(this.#source[skipBlank(this.#source, this.#at)] ?? "")) return;
    this.#replace(this.#at, this.#at, ";");
    this.#isUnnamed = false;
  }
}

/** Returns the source with its imports replaced, and with `isEvalBlind` those of `eval`; unchanged if it has none. */
export function rewrite(source, isEvalBlind = false) {
  mayExit ||= /exit/i.test(source);
  const words = [/\b(?:import|export|enum)\b/, isEvalBlind && /\beval\b/, mayExit && /\bcatch\b/];
  if (!words.some((word) => word && word.test(source))) return source;
  return new Rewriter(source, isEvalBlind).rewrite();
}
