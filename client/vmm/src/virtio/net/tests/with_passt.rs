//! Against the real `passt(1)`.

use std::process::{Child, Command, Stdio};

use super::*;

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A DHCP DISCOVER in UDP in IPv4 in Ethernet, to everybody (RFC 2131, section 4.4.1).
fn discover() -> Vec<u8> {
    let mut dhcp = vec![1, 1, 6, 0, 0x12, 0x34, 0x56, 0x78];
    dhcp.resize(28, 0);
    dhcp.extend(MAC);
    dhcp.resize(236, 0);
    // The magic cookie, the message type DISCOVER, the end.
    dhcp.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 1, 255]);
    dhcp.resize(300, 0);
    let udp_length = u16::try_from(8 + dhcp.len()).unwrap();
    let mut udp = vec![0, 68, 0, 67];
    udp.extend(udp_length.to_be_bytes());
    // No checksum, as IPv4 allows.
    udp.extend([0, 0]);
    udp.extend(dhcp);
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp_length).to_be_bytes());
    ip.extend([0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]);
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    [&[0xff; 6][..], &MAC, &[8, 0], &ip, &udp].concat()
}

/// Whether this is a DHCP OFFER to us: the options, in any order, have the message type OFFER.
fn is_offer(frame: &[u8]) -> bool {
    if frame.len() < 282
        || frame[23] != 17
        || frame[36..38] != [0, 68]
        || frame[46..50] != [0x12, 0x34, 0x56, 0x78]
    {
        return false;
    }
    let mut options = &frame[282..];
    while let [code, length, rest @ ..] = options {
        let (value, rest) = rest.split_at_checked(usize::from(*length)).unwrap_or_default();
        if *code == 53 {
            return value == [2];
        }
        options = rest;
    }
    false
}

#[test]
fn passt_offers_an_address() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut passt = Command::new("passt");
    passt
        .args(["--foreground", "--quiet", "--fd", "0"])
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
    let child = match passt.stdout(Stdio::null()).stderr(Stdio::null()).spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("SKIPPED: passt is not installed");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    // The socket's other end must be open nowhere but in passt.
    drop(passt);
    let killed = Killed(child);
    let mut net = Net::new(MAC, None, Box::new(Stream::new(ours.into())));
    let mut driver = Driver::start(&mut net);
    let mut answers: Vec<_> = (0..64).map(|_| driver.send(RX, &[], &[2048])).collect();
    driver.send(TX, &[&NO_HEADER, &discover()], &[]);
    answers.reverse();
    loop {
        let (head, written) = driver.used(RX);
        let answer = answers.pop().unwrap();
        assert_eq!(answer.head, head);
        if is_offer(&driver.read(answer.address, written)[HEADER_BYTES..]) {
            break;
        }
    }
    assert!(net.link().is_up());
    drop(killed);
    wait_for("the link goes down with passt", || !net.link().is_up());
}
