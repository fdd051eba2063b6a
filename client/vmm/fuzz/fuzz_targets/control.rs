//! A client of the control socket that sends whatever it likes: what comes back are lines of JSON, one a request.

#![no_main]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use libfuzzer_sys::fuzz_target;
use satchel_vmm::control::server::{Server, Socket};

fn hear(client: &mut UnixStream, heard: &mut Vec<u8>) {
    let mut part = [0; 4096];
    while let Ok(length) = client.read(&mut part)
        && length > 0
    {
        heard.extend_from_slice(&part[..length]);
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((shape, data)) = data.split_first() else { return };
    let (ours, mut client) = UnixStream::pair().expect("a pair of sockets");
    client.set_nonblocking(true).expect("a socket");
    let mut server = Server::new(Some(Socket::Stream(ours))).expect("a server");
    let mut heard = Vec::new();
    let mut asked = 0;
    // Lines come in pieces of any length; the client listens now or at the end.
    for piece in data.chunks(1 + usize::from(shape >> 1) * 16) {
        if client.write_all(piece).is_err() {
            break;
        }
        server.serve(|command| {
            asked += 1;
            serde_json::to_value(command).expect("a command")
        });
        if shape & 1 == 0 {
            hear(&mut client, &mut heard);
        }
    }
    server.tell(&serde_json::json!({ "event": "ended" }));
    hear(&mut client, &mut heard);
    let lines = data.iter().filter(|byte| **byte == b'\n').count();
    assert!(asked <= lines);
    let mut answers = 0;
    for line in heard.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
        serde_json::from_slice::<serde_json::Value>(line).expect("a line of JSON");
        answers += 1;
    }
    // Its greeting, an answer a line, and the end.
    assert!(answers <= lines + 2);
});
