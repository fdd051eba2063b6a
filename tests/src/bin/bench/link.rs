//! What the shaped link itself carries, so that the other numbers can be believed.

use std::fs::File;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::Instant;

use satchel_tests::{Link, StaticHttps};

use crate::report::{Report, Table};
use crate::selection::LinkShape;
use crate::time;

/// How long each transfer would take on an exact link, seconds.
const TRANSFER_S: u64 = 3;
const LINKS: [LinkShape; 4] =
    [LinkShape::new(25, 40), LinkShape::new(100, 150), LinkShape::new(1000, 2), LinkShape::new(10_000, 0)];

/// Sends bytes over plain TCP and over HTTPS.
pub(crate) fn alone(report: &mut Report) {
    let sender = sender();
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let files = StaticHttps::start(directory.path());
    let mut table = Table::new(&["link", "plain TCP", "HTTPS (curl)"]);
    for link in report.selection.links(&LINKS) {
        let bytes = link.rate_bps / 8 * TRANSFER_S;
        let share = |seconds: f64| format!("{:.1} %", 100.0 * link.seconds_for(bytes) / seconds);
        let plain = share(receive(&Link::start(sender, link.shape()), bytes));
        let file = directory.path().join("file");
        // What is read is nothing but holes: the disk has no part in this.
        File::create(&file).and_then(|file| file.set_len(bytes)).expect("a file can be made");
        let net = Link::start(files.address(), link.shape());
        let mut curl = Command::new("curl");
        curl.args([
            "--silent",
            "--fail",
            "--insecure",
            "--output",
            "/dev/null",
            &format!("{}/file", net.url()),
        ]);
        let secure = share(time(&mut curl).as_secs_f64());
        println!("link {link}: plain {plain}, https {secure}");
        table.row([link.to_string(), plain, secure]);
    }
    let text = format!(
        "What one connection gets of the rate, its opening included, with sender, link and receiver on this machine: {TRANSFER_S} s \
         worth of bytes.\n\n{table}"
    );
    report.write("The link", &text);
}

/// Listens for connections that are sent bytes until they close.
fn sender() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port can be had");
    let address = listener.local_addr().expect("a bound socket has an address");
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            // Ends when the receiver has enough.
            thread::spawn(move || io::copy(&mut io::repeat(7), &mut &connection));
        }
    });
    address
}

/// How long `bytes` take, seconds.
fn receive(link: &Link, bytes: u64) -> f64 {
    let began = Instant::now();
    let connection = TcpStream::connect(link.address()).expect("the link accepts connections");
    let mut left = bytes;
    let mut buffer = vec![0; 256 << 10];
    while left > 0 {
        let len = (&connection).read(&mut buffer).expect("the link carries bytes");
        assert!(len > 0, "the connection ended early");
        left = left.saturating_sub(len as u64);
    }
    began.elapsed().as_secs_f64()
}
