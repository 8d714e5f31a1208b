//! The network of a run: a port of loopback, and the connections that programs make to it.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd};

use isol8_protocol::{Failure, GRANT_STEP, StreamId, TunnelId, WINDOW};

use crate::failure::internal;
use crate::write_buffer::WriteBuffer;

/// The port, if it is free: user code may have taken it.
const PORT: u16 = 8118;

/// Variables by which programs find the proxy. Both spellings are in use, and curl reads the lower case of one only.
const PROXY: [&str; 4] = ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"];

/// Variables that list the hosts reached without it: loopback in all its forms, and the sandbox by its own name.
const NO_PROXY: [&str; 2] = ["NO_PROXY", "no_proxy"];
const LOOPBACK: &str = "localhost,127.0.0.1,127.0.0.0/8,::1,0.0.0.0,sandbox";

/// Has node look at the others.
const NODE: &str = "NODE_USE_ENV_PROXY";

/// The port that the programs of a run connect to.
#[derive(Debug)]
pub(crate) struct Port {
    listener: TcpListener,
    number: u16,
}

impl Port {
    pub(crate) fn open() -> Result<Self, Failure> {
        let usual = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT));
        let opened = usual.or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
        let prepared = opened.and_then(|listener| {
            listener.set_nonblocking(true)?;
            let number = listener.local_addr()?.port();
            Ok(Self { listener, number })
        });
        prepared.map_err(|error| internal("no port for the network of the run", error))
    }

    /// The variables that tell programs of it, but for those that the run sets itself.
    pub(crate) fn variables(&self, own: &[(String, String)]) -> Vec<(String, String)> {
        let proxy = format!("http://127.0.0.1:{}", self.number);
        let proxies = PROXY.iter().map(|name| (*name, proxy.as_str()));
        let others = NO_PROXY.iter().map(|name| (*name, LOOPBACK));
        let all = proxies.chain(others).chain([(NODE, "1")]);
        all.filter(|(name, _)| !own.iter().any(|(set, _)| set.eq_ignore_ascii_case(name)))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    /// The next connection that waits.
    pub(crate) fn accept(&self) -> io::Result<TcpStream> {
        let (socket, _) = self.listener.accept()?;
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        Ok(socket)
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// The result of reading from a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// So many bytes.
    Bytes(usize),
    /// Nothing now.
    Nothing,
    /// The program sends nothing more.
    End,
    /// The program's socket is gone.
    Gone,
}

/// The directions that the host has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Host {
    Sends,
    /// The host sends nothing more.
    Ended,
    /// The host takes nothing more either.
    Closed,
}

/// A connection of a program, carried by the host.
#[derive(Debug)]
pub(crate) struct Tunnel {
    pub(crate) id: TunnelId,
    pub(crate) run: StreamId,
    /// The program's socket, until this side has closed it. The tunnel waits for the host's close then.
    socket: Option<TcpStream>,
    /// The program sends nothing more.
    ended: bool,
    /// Bytes that the host takes now.
    credit: u64,
    host: Host,
    /// Bytes that the program has not taken yet.
    pending: WriteBuffer,
    /// Bytes that the host may still send, and those that it was not told of.
    window: u32,
    owed: u32,
}

impl Tunnel {
    pub(crate) fn new(id: TunnelId, run: StreamId, socket: TcpStream) -> Self {
        Self {
            id,
            run,
            socket: Some(socket),
            ended: false,
            credit: WINDOW.into(),
            host: Host::Sends,
            pending: WriteBuffer::default(),
            window: WINDOW,
            owed: 0,
        }
    }

    /// The socket to wait for, and whether for reading and for writing.
    pub(crate) fn waits_for(&self) -> Option<(BorrowedFd<'_>, bool, bool)> {
        let (reads, writes) = (self.may_read(), !self.pending.is_empty());
        let socket = self.socket.as_ref().filter(|_| reads || writes)?;
        Some((socket.as_fd(), reads, writes))
    }

    fn may_read(&self) -> bool {
        !self.ended && self.host != Host::Closed && self.credit > 0
    }

    /// Whether nothing is left of it on either side.
    pub(crate) fn is_over(&self) -> bool {
        self.host == Host::Closed && (self.socket.is_none() || self.pending.is_empty())
    }

    /// Whether this side has not closed it yet.
    pub(crate) fn is_open(&self) -> bool {
        self.socket.is_some()
    }

    /// Lets go of the program.
    pub(crate) fn close(&mut self) {
        self.socket = None;
        self.pending.clear();
    }

    pub(crate) fn grant(&mut self, bytes: u32) {
        // The host grants back what it took, so more than a window is never under way.
        self.credit = (self.credit + u64::from(bytes)).min(WINDOW.into());
    }

    /// Reads what the program says now.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> Said {
        if !self.may_read() {
            return Said::Nothing;
        }
        let Some(socket) = &mut self.socket else {
            return Said::Nothing;
        };
        let room = buffer.len().min(self.credit as usize);
        match socket.read(&mut buffer[..room]) {
            Ok(0) => {
                self.ended = true;
                Said::End
            }
            Ok(size) => {
                self.credit -= size as u64;
                Said::Bytes(size)
            }
            Err(error) if is_temporary(&error) => Said::Nothing,
            Err(_) => Said::Gone,
        }
    }

    /// Takes bytes of the host; returns `false` if the host exceeded its credit.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> bool {
        let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let Some(window) = self.window.checked_sub(size) else {
            return false;
        };
        if self.host != Host::Sends {
            return false;
        }
        self.window = window;
        if self.is_open() {
            self.pending.push(bytes);
        }
        true
    }

    pub(crate) fn end(&mut self) {
        if self.host == Host::Sends {
            self.host = Host::Ended;
        }
    }

    pub(crate) fn host_closed(&mut self) {
        self.host = Host::Closed;
    }

    /// Writes as much as the program takes now, and ends its input behind the last byte. An error says
    /// that it is gone; else these are the bytes to grant to the host.
    pub(crate) fn feed(&mut self) -> io::Result<u32> {
        let Some(socket) = &mut self.socket else {
            return Ok(0);
        };
        while !self.pending.is_empty() {
            match socket.write(self.pending.rest()) {
                Ok(size) => {
                    self.pending.take(size);
                    // No more than a window is ever pending.
                    self.owed += size as u32;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_temporary(&error) => break,
                Err(error) => return Err(error),
            }
        }
        if self.pending.is_empty() && self.host >= Host::Ended {
            // A program that is gone says so when it is read from.
            let _ = socket.shutdown(Shutdown::Write);
        }
        if self.owed < GRANT_STEP || self.host != Host::Sends {
            return Ok(0);
        }
        self.window += self.owed;
        Ok(std::mem::take(&mut self.owed))
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_s_own_variables_go_first() {
        let port = Port::open().unwrap();
        let own = [("Https_Proxy".to_owned(), "x".to_owned())];
        let variables = port.variables(&own);
        let names: Vec<_> = variables.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            ["HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy", NODE]
        );
        let expected = format!("http://127.0.0.1:{}", port.number);
        assert_eq!(variables[0].1, expected);
    }

    #[test]
    fn where_the_usual_port_is_taken_there_is_another() {
        let (first, second) = (Port::open().unwrap(), Port::open().unwrap());
        assert_ne!(first.number, second.number);
    }

    /// A tunnel, and the program at its end.
    fn connected() -> (Tunnel, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let program = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        (Tunnel::new(TunnelId(1), StreamId(1), socket), program)
    }

    #[test]
    fn a_program_that_never_catches_up_costs_a_window_at_most() {
        let (mut tunnel, mut program) = connected();
        let mut space = vec![0; WINDOW as usize];
        let mut credit = WINDOW as usize;
        for _ in 0..200 {
            assert!(tunnel.push(&space[..credit]));
            assert!(tunnel.pending.len() <= WINDOW as usize);
            credit = tunnel.feed().unwrap() as usize;
            while credit == 0 {
                let size = program.read(&mut space).unwrap();
                assert!(size > 0);
                credit = tunnel.feed().unwrap() as usize;
            }
        }
    }

    #[test]
    fn what_does_not_fit_waits_and_the_host_is_granted_what_was_taken() {
        let (mut tunnel, mut program) = connected();
        assert!(tunnel.push(&vec![7; WINDOW as usize]));
        assert!(!tunnel.push(b"x"), "beyond the window");
        let mut granted = tunnel.feed().unwrap();
        let mut space = vec![0; WINDOW as usize];
        program.read_exact(&mut space).unwrap();
        granted += tunnel.feed().unwrap();
        assert_eq!(granted, WINDOW);
        assert!(tunnel.push(b"last"));
        tunnel.end();
        assert_eq!(tunnel.feed().unwrap(), 0);
        assert!(!tunnel.push(b"x"), "after the end");
        let mut rest = String::new();
        program.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "last");
    }
}
