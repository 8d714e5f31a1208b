//! Checks of this host other than its backends: cgroups, disk, and the server's port.

use std::io;
use std::net::TcpListener;
use std::path::Path;

use isol8_backend::cgroup::{Layout, detect};
use isol8_config::Config;
use isol8_engine::backends;
use nix::sys::statvfs::statvfs;

use super::finding::Finding;

/// Free disk space, in bytes, below which images and sandbox files soon fill the disk; the images take 1.2 GB.
const MIN_FREE_SPACE: u64 = 2 << 30;

pub(super) fn findings(config: &Config) -> Vec<Finding> {
    vec![
        cgroups(&Path::new(backends::HOST_ROOT).join("sys/fs/cgroup")),
        disk(&config.startup.state),
        port(&config.startup.listen.host, config.startup.listen.port),
    ]
}

fn cgroups(root: &Path) -> Finding {
    let version = match detect(root) {
        Layout::V2 => "version 2",
        Layout::V1 => "version 1",
        Layout::Hybrid => "version 1, with version 2 mounted without controllers",
    };
    Finding::good("cgroups", version)
}

/// Checks the file system of the state directory, which may not exist yet.
fn disk(state: &Path) -> Finding {
    let mut exists = state.ancestors().filter(|path| path.exists());
    let existing = exists.next().unwrap_or(Path::new("/"));
    let shown = state.display();
    match statvfs(existing) {
        Ok(found) => {
            let free = u128::from(found.blocks_available()) * u128::from(found.fragment_size());
            let text = format!("{:.1} GiB are free for {shown}", to_gibibytes(free));
            match free < u128::from(MIN_FREE_SPACE) {
                false => Finding::good("disk", text),
                true => Finding::bad("disk", text, "free some, or set stateDir to a larger disk"),
            }
        }
        Err(error) => {
            let text = format!("cannot read the free space of {shown}: {error}");
            Finding::bad("disk", text, "set stateDir to a directory that you own")
        }
    }
}

#[allow(clippy::cast_precision_loss)] // The value is shown with one decimal place.
fn to_gibibytes(bytes: u128) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// Checks whether a server could listen on this address, or a process already does.
fn port(host: &str, port: u16) -> Finding {
    let address = format!("{host}:{port}");
    match TcpListener::bind((host, port)) {
        Ok(_) => Finding::good("port", format!("{address} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Finding::bad(
            "port",
            format!("another process already listens on {address}"),
            "nothing to do if that is isol8; otherwise choose another port with --port or server.port",
        ),
        Err(error) => Finding::bad(
            "port",
            format!("cannot listen on {address}: {error}"),
            "choose another address with server.host and server.port",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_taken_is_told_from_a_free_one() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let number = listener.local_addr().unwrap().port();
        let taken = port("127.0.0.1", number);
        assert!(taken.text.contains("listens"), "{taken:?}");
        assert!(taken.fix.is_some_and(|fix| fix.contains("--port")));
        drop(listener);
        assert_eq!(port("127.0.0.1", number).fix, None);
    }

    #[test]
    fn the_disk_of_a_directory_that_is_yet_to_be_made_is_that_of_its_parent() {
        let found = disk(Path::new("/no/such/directory"));
        assert!(
            found.text.contains("GiB are free for /no/such/directory"),
            "{found:?}"
        );
    }
}
