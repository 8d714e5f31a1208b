//! The connections that programs of a run with network make.
//!
//! Each such run has its own port, which exists while the run does. A connection is accepted when the number of tunnels
//! allows it, and read when the outgoing buffer has room. A program that does not read, or is not read from, delays
//! only itself.

use isol8_protocol::{GuestFrame, MAX_TUNNELS, StreamId, TunnelFrame, TunnelId};

use super::Guest;
use super::wait::{PollSet, PollSource};
use crate::run::GuestRun;
use crate::tunnel::{GuestTunnel, TunnelRead};

impl Guest {
    pub(super) fn add_network_to_poll_set(&self, poll_set: &mut PollSet) {
        let room = self.has_room();
        if room && self.tunnels.len() < MAX_TUNNELS {
            for run in &self.runs {
                if let Some(port) = &run.port {
                    poll_set.readable(PollSource::Port(run.id), &port.fd());
                }
            }
        }
        for tunnel in &self.tunnels {
            if let Some((socket, reads, writes)) = tunnel.waits_for() {
                poll_set.either(
                    PollSource::Tunnel(tunnel.id),
                    &socket,
                    reads && room,
                    writes,
                );
            }
        }
    }

    /// Accepts a connection of a program.
    pub(super) fn on_port_connection(&mut self, id: StreamId) {
        if self.tunnels.len() >= MAX_TUNNELS {
            return;
        }
        let Some(GuestRun {
            port: Some(port), ..
        }) = self.run_of(id, false)
        else {
            return;
        };
        // The program may have closed the connection again.
        let Ok(socket) = port.accept() else { return };
        self.last_tunnel.0 += 1;
        let tunnel = GuestTunnel::new(self.last_tunnel, id, socket);
        self.send_tunnel_frame(tunnel.id, TunnelFrame::Open { run: id });
        self.tunnels.push(tunnel);
    }

    /// Handles a program's socket that is readable or writable.
    pub(super) fn on_tunnel_ready(&mut self, id: TunnelId) {
        self.feed_tunnel(id);
        if !self.has_room() {
            return;
        }
        let Some(tunnel) = self.tunnels.iter_mut().find(|tunnel| tunnel.id == id) else {
            return;
        };
        match tunnel.read(&mut self.buffer[..]) {
            TunnelRead::Nothing => {}
            TunnelRead::Bytes(size) => {
                let bytes = self.buffer[..size].to_vec();
                self.send_tunnel_frame(id, TunnelFrame::Data { bytes });
            }
            TunnelRead::End => self.send_tunnel_frame(id, TunnelFrame::End),
            TunnelRead::Gone => self.close_tunnels(|tunnel| tunnel.id == id),
        }
    }

    fn feed_tunnel(&mut self, id: TunnelId) {
        let Some(tunnel) = self.tunnels.iter_mut().find(|tunnel| tunnel.id == id) else {
            return;
        };
        match tunnel.feed() {
            Ok(0) => {}
            Ok(bytes) => self.send_tunnel_frame(id, TunnelFrame::Credit { bytes }),
            Err(_) => self.close_tunnels(|tunnel| tunnel.id == id),
        }
        self.tunnels.retain(|tunnel| !tunnel.is_over());
    }

    /// Handles a frame of the host about a tunnel. An error ends the connection.
    pub(super) fn take_tunnel_frame(
        &mut self,
        id: TunnelId,
        frame: TunnelFrame,
    ) -> Result<(), String> {
        let Some(tunnel) = self.tunnels.iter_mut().find(|tunnel| tunnel.id == id) else {
            return Err(format!("there is no tunnel {}", id.0));
        };
        match frame {
            TunnelFrame::Open { .. } => return Err("host opened a tunnel".to_owned()),
            TunnelFrame::Data { bytes } if !tunnel.push(&bytes) => {
                return Err(format!("tunnel {} sent beyond its credit", id.0));
            }
            TunnelFrame::Data { .. } => {}
            TunnelFrame::End => tunnel.end(),
            TunnelFrame::Credit { bytes } => tunnel.grant(bytes),
            TunnelFrame::Close => tunnel.host_closed(),
        }
        self.feed_tunnel(id);
        Ok(())
    }

    /// Ends the network of a run, and every connection through it.
    pub(super) fn end_network(&mut self, position: usize) {
        let run = &mut self.runs[position];
        if run.port.take().is_some() {
            let id = run.id;
            self.close_tunnels(|tunnel| tunnel.run == id);
        }
    }

    fn close_tunnels(&mut self, which: impl Fn(&GuestTunnel) -> bool) {
        let mut closed = Vec::new();
        for tunnel in self.tunnels.iter_mut().filter(|tunnel| which(tunnel)) {
            if tunnel.is_open() {
                tunnel.close();
                closed.push(tunnel.id);
            }
        }
        self.tunnels.retain(|tunnel| !tunnel.is_over());
        for id in closed {
            // The host ignores the frame if it has closed the tunnel before.
            self.send_tunnel_frame(id, TunnelFrame::Close);
        }
    }

    fn send_tunnel_frame(&mut self, id: TunnelId, frame: TunnelFrame) {
        self.send(&GuestFrame::Tunnel { id, frame });
    }
}
