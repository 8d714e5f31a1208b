//! Decides whether a JavaScript script is a CommonJS or an ES module if its request does not say.
//!
//! The default names of scripts (`main.mjs`, `main.mts`) make them ES modules, in which `require` is not defined. A
//! script that uses features of CommonJS gets a name with which its runtime decides as for files without a format:
//! node looks at the syntax (from 20.19 on), and deno takes `.cts` for CommonJS. Bun accepts both in every file.

use std::sync::LazyLock;

use isol8_actors::FileExtension;
use isol8_api::Runtime;
use regex::Regex;

/// Matches features that only CommonJS has.
static COMMON: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"\b(?:require\s*\(|require\.\w|module\.exports\b|exports\.\w|__dirname\b|__filename\b)",
    )
    .ok()
});

/// Matches features that only an ES module has, or uses to get its own `require`.
static MODULE: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let import = r#"import\s*(?:[\w$]+\s*,|[\w$]+\s+from\b|[{*"'])"#;
    let export = r"export\s*(?:default\b|const\b|let\b|var\b|function\b|class\b|async\b|[{*])";
    Regex::new(&format!(
        r"(?m)^\s*(?:{import}|{export})|\bimport\.meta\b|\bcreateRequire\b"
    ))
    .ok()
});

/// Match `await`, which CommonJS does not allow at the top level, and `async`, which allows it in a function.
static AWAIT: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\bawait\b").ok());
static ASYNC: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\basync\b").ok());

/// Returns the file extension of a script whose request names none.
pub(crate) fn extension_of(runtime: Runtime, code: &str) -> FileExtension {
    let has = |pattern: &Option<Regex>| pattern.as_ref().is_some_and(|it| it.is_match(code));
    let usual = FileExtension::default_of(runtime);
    let Some(common_js) = &runtime.facts().scripts.common_js else {
        return usual;
    };
    if !has(&COMMON) || has(&MODULE) {
        return usual;
    }
    if !common_js.looks_at_syntax && has(&AWAIT) && !has(&ASYNC) {
        return usual;
    }
    common_js.extension.parse().unwrap_or(usual)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_scripts_that_use_what_common_js_has_get_another_name() {
        for (code, node, deno) in [
            (
                "const fs = require('fs'); fs.existsSync('/')",
                ".js",
                ".cts",
            ),
            ("console.log(__dirname)", ".js", ".cts"),
            ("module.exports = 1", ".js", ".cts"),
            (
                "async function main() { await require('x')() } main()",
                ".js",
                ".cts",
            ),
            ("const x = require('x'); await x()", ".js", ".mts"),
            (
                "import fs from 'fs'; const path = require('path')",
                ".mjs",
                ".mts",
            ),
            ("  import { a } from 'b'\n// require('b')", ".mjs", ".mts"),
            ("export const a = 1; // module.exports", ".mjs", ".mts"),
            ("import 'x'; require('y')", ".mjs", ".mts"),
            (
                "const require = createRequire(import.meta.url); require('x')",
                ".mjs",
                ".mts",
            ),
            ("console.log(1)", ".mjs", ".mts"),
            (
                "const required = 1, exportsAll = 2; await 1",
                ".mjs",
                ".mts",
            ),
            ("const fs = await import('fs')", ".mjs", ".mts"),
        ] {
            let found = [Runtime::Node, Runtime::Deno].map(|runtime| extension_of(runtime, code));
            assert_eq!(
                found.each_ref().map(FileExtension::as_str),
                [node, deno],
                "{code}"
            );
        }
        assert_eq!(extension_of(Runtime::Bun, "require('x')").as_str(), ".ts");
        assert_eq!(
            extension_of(Runtime::Python, "require('x')").as_str(),
            ".py"
        );
    }
}
