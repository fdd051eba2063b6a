//! The machine's end of the control socket.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::event::{PollFd, PollFlags};
use rustix::net::{RecvFlags, SendFlags};
use serde::Serialize;

use super::{Command, Greeting, MAX_LINE_BYTES, Request, VERSION};

/// How many may speak to a machine at once.
const MAX_CLIENTS: usize = 8;
/// What may wait for a client that does not read.
const MAX_UNSENT_BYTES: usize = 256 << 10;

/// What is at the far end of a descriptor.
pub enum Socket {
    /// Clients come and go.
    Listener(UnixListener),
    /// One client is there from the start.
    Stream(UnixStream),
}

impl Socket {
    /// Finds out which of the two a descriptor is.
    ///
    /// # Errors
    /// It is neither.
    pub fn from_descriptor(descriptor: OwnedFd) -> io::Result<Socket> {
        Ok(match rustix::net::sockopt::socket_acceptconn(&descriptor)? {
            true => Socket::Listener(descriptor.into()),
            false => Socket::Stream(descriptor.into()),
        })
    }
}

struct Client {
    stream: UnixStream,
    received: Vec<u8>,
    unsent: Vec<u8>,
    is_gone: bool,
}

/// Serves clients without ever waiting for one.
#[derive(Default)]
pub struct Server {
    listener: Option<UnixListener>,
    clients: Vec<Client>,
    /// One client was there from the start, and no other comes.
    has_one: bool,
}

impl Server {
    /// Serves a socket.
    ///
    /// # Errors
    /// It cannot be made non-blocking.
    pub fn new(socket: Option<Socket>) -> io::Result<Server> {
        let mut server = Server::default();
        match socket {
            Some(Socket::Listener(listener)) => {
                listener.set_nonblocking(true)?;
                server.listener = Some(listener);
            }
            Some(Socket::Stream(stream)) => {
                server.has_one = true;
                server.add(stream)?;
            }
            None => {}
        }
        Ok(server)
    }

    fn add(&mut self, stream: UnixStream) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let mut client = Client { stream, received: Vec::new(), unsent: Vec::new(), is_gone: false };
        let program = format!("satchel-vmm {}", env!("CARGO_PKG_VERSION"));
        client.say(&Greeting { version: VERSION, program });
        self.clients.push(client);
        Ok(())
    }

    /// Whether the one client is gone, for good. Where clients come and go, or never were, nobody is missed.
    pub fn is_deserted(&self) -> bool {
        self.has_one && self.clients.is_empty()
    }

    /// What to wait for before there is something to [`serve`](Self::serve).
    pub fn polled(&self) -> impl Iterator<Item = PollFd<'_>> {
        let listener = self.listener.iter().map(|listener| PollFd::new(listener, PollFlags::IN));
        let clients = self.clients.iter().map(|client| {
            let has_unsent = !client.unsent.is_empty();
            let flags = if has_unsent { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            PollFd::new(&client.stream, flags)
        });
        listener.chain(clients)
    }

    /// Takes new clients and what clients ask; each command is answered by `answer`.
    pub fn serve(&mut self, mut answer: impl FnMut(Command) -> serde_json::Value) {
        while let Some(Ok((stream, _))) = self.listener.as_ref().map(UnixListener::accept) {
            if self.clients.len() < MAX_CLIENTS {
                // A client that cannot be served is hung up on.
                let _ = self.add(stream);
            }
        }
        for client in &mut self.clients {
            client.flush();
            while let Some(line) = client.next_line() {
                let reply = match serde_json::from_slice::<Request>(&line) {
                    Ok(request) => answer(request.command),
                    Err(error) => serde_json::json!({ "error": format!("this is no request: {error}") }),
                };
                client.say(&reply);
            }
        }
        self.clients.retain(|client| !client.is_gone);
    }

    /// Tells all clients.
    pub fn tell(&mut self, event: &impl Serialize) {
        self.clients.iter_mut().for_each(|client| client.say(event));
        self.clients.retain(|client| !client.is_gone);
    }
}

impl Client {
    fn say(&mut self, message: &impl Serialize) {
        match serde_json::to_vec(message) {
            Ok(mut line) if self.unsent.len() + line.len() < MAX_UNSENT_BYTES => {
                line.push(b'\n');
                self.unsent.extend_from_slice(&line);
                self.flush();
            }
            _ => self.is_gone = true,
        }
    }

    fn flush(&mut self) {
        while !self.unsent.is_empty() && !self.is_gone {
            match rustix::net::send(&self.stream, &self.unsent, SendFlags::NOSIGNAL) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(rustix::io::Errno::AGAIN) => return,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => self.is_gone = true,
            }
        }
    }

    /// A whole line, if one has come.
    fn next_line(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let rest = self.received.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.received, rest);
                line.pop();
                return Some(line);
            }
            if self.received.len() > MAX_LINE_BYTES {
                self.is_gone = true;
            }
            if self.is_gone {
                return None;
            }
            let mut buffer = [0; 1024];
            match rustix::net::recv(&self.stream, &mut buffer, RecvFlags::empty()) {
                Ok((0, _)) => self.is_gone = true,
                Ok((received, _)) => self.received.extend_from_slice(&buffer[..received]),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return None,
                Err(_) => self.is_gone = true,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};

    use super::*;

    fn served() -> (Server, BufReader<UnixStream>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let socket = Socket::from_descriptor(ours.into()).unwrap();
        (Server::new(Some(socket)).unwrap(), BufReader::new(theirs))
    }

    fn line(client: &mut BufReader<UnixStream>) -> serde_json::Value {
        let mut line = String::new();
        client.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    #[test]
    fn a_client_is_greeted_answered_and_told() {
        let (mut server, mut client) = served();
        assert_eq!(line(&mut client)["version"], 1);
        client.get_mut().write_all(b"{\"command\":\"status\"}\n{\"command\":\"fly\"}\n{\"comm").unwrap();
        let mut asked = Vec::new();
        server.serve(|command| {
            asked.push(command);
            serde_json::json!({"state": "running"})
        });
        assert_eq!(asked, [Command::Status]);
        assert_eq!(line(&mut client)["state"], "running");
        assert!(line(&mut client)["error"].as_str().unwrap().contains("no request"));
        client.get_mut().write_all(b"and\":\"power-button\"}\n").unwrap();
        server.serve(|command| serde_json::to_value(command).unwrap());
        assert_eq!(line(&mut client), "power-button");
        server.tell(&super::super::Event::Ended { end: crate::machine::End::PoweredOff });
        assert_eq!(line(&mut client), serde_json::json!({"event": "ended", "end": "powered-off"}));
    }

    #[test]
    fn who_sends_no_lines_or_does_not_read_is_hung_up_on() {
        let (mut server, mut client) = served();
        client.get_mut().write_all(&[b'x'; 6000]).unwrap();
        server.serve(|_| serde_json::Value::Null);
        assert!(server.clients.is_empty());
        let (mut server, _client) = served();
        for _ in 0..20_000 {
            server.tell(&serde_json::json!({"event": "x".repeat(100)}));
        }
        assert!(server.clients.is_empty());
    }

    #[test]
    fn the_one_client_is_missed_when_it_is_gone() {
        let (mut server, client) = served();
        server.serve(|_| serde_json::Value::Null);
        assert!(!server.is_deserted());
        drop(client);
        server.serve(|_| serde_json::Value::Null);
        assert!(server.is_deserted());
        assert!(!Server::new(None).unwrap().is_deserted());
    }

    #[test]
    fn clients_of_a_listener_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let listener = UnixListener::bind(&path).unwrap();
        let mut server = Server::new(Some(Socket::from_descriptor(listener.into()).unwrap())).unwrap();
        let clients: Vec<_> = (0..10).map(|_| UnixStream::connect(&path).unwrap()).collect();
        server.serve(|_| serde_json::Value::Null);
        assert_eq!(server.clients.len(), MAX_CLIENTS);
        drop(clients);
        server.serve(|_| serde_json::Value::Null);
        assert!(server.clients.is_empty());
        assert!(!server.is_deserted());
    }
}
