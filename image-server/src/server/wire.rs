//! A TCP connection that is ended without losing what was sent last.
//!
//! A socket that is closed while something that came is unread, such as a client's word of what it has taken, is reset by the
//! kernel, and with it goes what was not sent yet. So its sending side is closed first, and what still comes is read until
//! the client has closed its own.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::Shutdown;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a client has to take what was sent last, and to close its side.
const LINGER: Duration = Duration::from_secs(5);

/// The connection as its protocol sees it, which drops it when it is through.
#[derive(Debug)]
pub(super) struct Wire(Arc<TcpStream>);

/// The same connection, to be ended after that.
#[derive(Debug)]
pub(super) struct End(Arc<TcpStream>);

impl Wire {
    pub(super) fn new(stream: TcpStream) -> (Self, End) {
        let stream = Arc::new(stream);
        (Self(stream.clone()), End(stream))
    }
}

impl End {
    /// Closes the sending side and waits, for a while, until the client has closed its own.
    pub(super) async fn linger(self) {
        if close_sending(&self.0).is_err() {
            // The client is gone.
            return;
        }
        let drained = async {
            let mut unread = vec![0; 16 << 10];
            while self.0.readable().await.is_ok() {
                match self.0.try_read(&mut unread) {
                    Ok(0) => return,
                    Err(error) if error.kind() != ErrorKind::WouldBlock => return,
                    // Else one who sends as fast as this reads would have it go on for good.
                    _ => tokio::task::yield_now().await,
                }
            }
        };
        // Whoever takes longer has had its time.
        let _ = timeout(LINGER, drained).await;
    }
}

fn close_sending(stream: &TcpStream) -> io::Result<()> {
    Ok(rustix::net::shutdown(stream, Shutdown::Write)?)
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(context))?;
            match self.0.try_read_buf(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read.map(drop)),
            }
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match self.0.try_write_vectored(parts) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(close_sending(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn what_was_sent_last_arrives_though_the_client_goes_on_to_say_something() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut wire, end) = Wire::new(listener.accept().await.unwrap().0);
        client.write_all(b"hello").await.unwrap();
        let mut hello = [0; 5];
        wire.read_exact(&mut hello).await.unwrap();
        // More than sockets hold, so that some of it is sent only once the client reads, and what it says is never read.
        let sent = vec![7; 32 << 20];
        let len = sent.len();
        let server = tokio::spawn(async move {
            wire.write_all(&sent).await.unwrap();
            drop(wire);
            end.linger().await;
        });
        client.write_all(&[1; 64 << 10]).await.unwrap();
        let mut received = Vec::new();
        client.read_to_end(&mut received).await.unwrap();
        assert_eq!(received.len(), len);
        drop(client);
        server.await.unwrap();
    }
}
