//! The log on standard error.

use std::io::{self, Write as _};

use env_logger::fmt::{Formatter, default_kv_format};
use jiff::Timestamp;
use log::{LevelFilter, Record};

/// Environment variable that selects the messages to log.
const FILTER: &str = "RUST_LOG";

pub(super) fn is_filtered() -> bool {
    std::env::var_os(FILTER).is_some_and(|filter| !filter.is_empty())
}

/// Logs to standard error from this level on; `RUST_LOG` overrides it.
pub fn log_from(level: LevelFilter) {
    let mut logger = env_logger::Builder::new();
    match std::env::var(FILTER) {
        Ok(filter) if is_filtered() => logger.parse_filters(&filter),
        // libcontainer logs every container and warns of controllers that the kernel lacks; its errors, and those
        // of certificates, are returned and need no log. actix-http logs an error for every client that does not
        // send HTTP; the server logs these itself, at a level for operators who want to see them.
        _ => logger
            .filter_level(LevelFilter::Debug)
            .filter_module("actix_http", LevelFilter::Off)
            .filter_module("libcgroups", LevelFilter::Off)
            .filter_module("libcontainer", LevelFilter::Off)
            .filter_module("rustls_platform_verifier", LevelFilter::Off),
    };
    logger.format(log_line);
    logger.init();
    if !is_filtered() {
        log::set_max_level(level);
    }
}

/// Formats a record: `2026-01-31T12:00:00Z [INFO] isol8::server: listening address=…`
fn log_line(line: &mut Formatter, record: &Record<'_>) -> io::Result<()> {
    let style = line.default_level_style(record.level());
    let (level, target) = (record.level(), record.target());
    let time = Timestamp::now();
    write!(
        line,
        "{time:.0} {style}[{level}]{style:#} {target}: {}",
        record.args()
    )?;
    default_kv_format(line, record.key_values())?;
    writeln!(line)
}
