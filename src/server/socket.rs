//! The server's sockets, bound and made to listen in two steps: a server without privileges gets them bound
//! by its launcher, and listens when it is ready to serve.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{
    self, AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt,
};

/// Connections that may wait to be accepted, as many as actix-web lets.
const BACKLOG: i32 = 2048;

/// Binds a socket to each address of a host; one that can be bound is enough.
///
/// # Errors
/// The last address's error, if none can be bound.
pub fn bind(host: &str, port: u16) -> io::Result<Vec<OwnedFd>> {
    let mut sockets = Vec::new();
    let mut failed = None;
    for address in (host, port).to_socket_addrs()? {
        match bind_one(address) {
            Ok(socket) => sockets.push(socket),
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        Some(error) if sockets.is_empty() => Err(error),
        None if sockets.is_empty() => Err(io::Error::other(format!("{host} has no address"))),
        _ => Ok(sockets),
    }
}

fn bind_one(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let socket = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(socket)
}

/// Lets clients connect to a bound socket.
///
/// # Errors
/// The system's.
pub fn listen(socket: OwnedFd) -> io::Result<TcpListener> {
    socket::listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(TcpListener::from(socket))
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn clients_connect_from_when_the_socket_listens() {
        let sockets = bind("127.0.0.1", 0).unwrap();
        let [socket] = <[OwnedFd; 1]>::try_from(sockets).unwrap();
        let address = socket::getsockname::<SockaddrStorage>(socket.as_raw_fd()).unwrap();
        let port = address.as_sockaddr_in().unwrap().port();
        TcpStream::connect(("127.0.0.1", port)).unwrap_err();
        let listener = listen(socket).unwrap();
        TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert!(listener.accept().unwrap().1.ip().is_loopback());
        let taken = bind("127.0.0.1", port).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_host_without_an_address_is_an_error() {
        bind("no-such-host.invalid", 0).unwrap_err();
    }
}
