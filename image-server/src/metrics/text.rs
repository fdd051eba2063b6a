//! The numbers as Prometheus reads them.

use std::fmt::{Display, Write};
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use super::Numbers;
use crate::database::packs;

/// Families of values, each described once.
#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing into a string does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        let _ = writeln!(self.0, "{name} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.one(&format!("satchel_server_{name}"), "gauge", help, value);
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.one(&format!("satchel_server_{name}"), "counter", help, value);
    }
}

/// All numbers there are at this moment: one question to the database, one to the file system. What cannot be told is left out.
pub(super) async fn of(numbers: &Numbers) -> String {
    let Numbers { app, tls, root, .. } = numbers;
    let counters = &app.counters;
    let mut text = Text::default();
    let requests = "satchel_server_requests_total";
    text.family(
        requests,
        "counter",
        "Requests whose answer is gone, by method (get has HEAD) and status (none: given up).",
    );
    for (method, status, count) in counters.requests() {
        let _ = writeln!(text.0, "{requests}{{method=\"{method}\",status=\"{status}\"}} {count}");
    }
    text.gauge("requests_in_flight", "Requests under way.", counters.in_flight());
    text.counter("received_bytes_total", "Bytes of bodies received.", counters.received_bytes());
    text.counter("sent_bytes_total", "Bytes of bodies sent.", counters.sent_bytes());
    text.gauge("connections", "Connections open.", counters.connections());
    let (uploads, waiting) = app.uploads();
    text.gauge("uploads", "Packs being received and checked.", uploads);
    text.gauge("uploads_waiting", "Packs that wait to be received.", waiting);
    if let Some(bytes) = free_bytes(root.clone()).await {
        text.gauge("free_bytes", "Bytes free on the file system of the server's directory.", bytes);
    }
    let stored = packs::totals(app.database.readers()).await;
    text.gauge("database_up", "Whether the database answers.", u8::from(stored.is_ok()));
    if let Ok((packs, bytes)) = stored {
        text.gauge("packs", "Packs stored, without those that gc has condemned.", packs);
        text.gauge("pack_bytes", "Bytes in them.", bytes);
    }
    if let Some(until_ms) = tls.get().certificate.valid_until_ms {
        let help = "When the certificate in use ends, seconds since 1970 UTC.";
        text.gauge("certificate_end_seconds", help, until_ms.div_euclid(1000));
    }
    let started = counters.started().duration_since(UNIX_EPOCH).unwrap_or_default();
    let help = "When the server was started, seconds since 1970 UTC.";
    text.one("process_start_time_seconds", "gauge", help, started.as_secs_f64());
    text.0
}

async fn free_bytes(root: PathBuf) -> Option<u64> {
    let asked = tokio::task::spawn_blocking(move || rustix::fs::statvfs(&root)).await;
    let found = asked.ok()?.ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}
