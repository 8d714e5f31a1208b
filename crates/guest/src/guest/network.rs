//! Connections that programs of runs with network make.
//!
//! Each such run has a port of its own, which exists while the run does. A connection is accepted when there is room
//! for it, and is read when its bytes find room: a program that does not read, or is not read from, makes only itself
//! wait.

use isol8_protocol::{GuestFrame, MAX_TUNNELS, StreamId, TunnelFrame, TunnelId};

use super::Guest;
use super::wait::{Source, Waits};
use crate::run::Run;
use crate::tunnel::{Said, Tunnel};

impl Guest {
    pub(super) fn add_network_waits(&self, waits: &mut Waits) {
        let room = self.has_room();
        if room && self.tunnels.len() < MAX_TUNNELS {
            for run in &self.runs {
                if let Some(port) = &run.port {
                    waits.readable(Source::Port(run.id), &port.fd());
                }
            }
        }
        for tunnel in &self.tunnels {
            if let Some((socket, reads, writes)) = tunnel.waits_for() {
                waits.either(Source::Tunnel(tunnel.id), &socket, reads && room, writes);
            }
        }
    }

    /// Takes a connection.
    pub(super) fn attend_port(&mut self, id: StreamId) {
        if self.tunnels.len() >= MAX_TUNNELS {
            return;
        }
        let Some(Run {
            port: Some(port), ..
        }) = self.run_of(id, false)
        else {
            return;
        };
        // The connection may be gone again.
        let Ok(socket) = port.accept() else { return };
        self.last_tunnel.0 += 1;
        let tunnel = Tunnel::new(self.last_tunnel, id, socket);
        self.tell_tunnel(tunnel.id, TunnelFrame::Open { run: id });
        self.tunnels.push(tunnel);
    }

    /// A program takes something, or says something.
    pub(super) fn attend_tunnel(&mut self, id: TunnelId) {
        self.feed_tunnel(id);
        if !self.has_room() {
            return;
        }
        let Some(tunnel) = self.tunnels.iter_mut().find(|tunnel| tunnel.id == id) else {
            return;
        };
        match tunnel.read(&mut self.buffer[..]) {
            Said::Nothing => {}
            Said::Bytes(size) => {
                let bytes = self.buffer[..size].to_vec();
                self.tell_tunnel(id, TunnelFrame::Data { bytes });
            }
            Said::End => self.tell_tunnel(id, TunnelFrame::End),
            Said::Gone => self.close_tunnels(|tunnel| tunnel.id == id),
        }
    }

    fn feed_tunnel(&mut self, id: TunnelId) {
        let Some(tunnel) = self.tunnels.iter_mut().find(|tunnel| tunnel.id == id) else {
            return;
        };
        match tunnel.feed() {
            Ok(0) => {}
            Ok(bytes) => self.tell_tunnel(id, TunnelFrame::Credit { bytes }),
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

    fn close_tunnels(&mut self, which: impl Fn(&Tunnel) -> bool) {
        let mut closed = Vec::new();
        for tunnel in self.tunnels.iter_mut().filter(|tunnel| which(tunnel)) {
            if tunnel.is_open() {
                tunnel.close();
                closed.push(tunnel.id);
            }
        }
        self.tunnels.retain(|tunnel| !tunnel.is_over());
        for id in closed {
            // If the host has closed the tunnel before, it ignores this.
            self.tell_tunnel(id, TunnelFrame::Close);
        }
    }

    fn tell_tunnel(&mut self, id: TunnelId, frame: TunnelFrame) {
        self.tell(&GuestFrame::Tunnel { id, frame });
    }
}
