//! Many machines that start at once, from one server.

use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt, TryStreamExt};
use satchel_tests::{Access, Link};

use crate::report::{Report, Table};
use crate::selection::LinkShape;
use crate::stage::Kind;

const CLIENTS: usize = 50;
const LINK: LinkShape = LinkShape::new(1000, 2);
/// What a client has under way: that many requests of that length, as its window of rate and distance comes to here.
const REQUESTS: usize = 4;
const REQUEST_BYTES: u64 = 256 << 10;

/// An object of the boot stream.
#[derive(Clone, Debug)]
struct Object {
    path: String,
    len: u64,
}

/// Fetches the boot stream of the plain image by many clients, each with a connection of its own.
pub(crate) fn booting_at_once(report: &mut Report) {
    let stage = report.stage(Kind::Plain);
    let image = Kind::Plain.name();
    let streams = stage.server.objects(&format!("image/{image}/streams"));
    let Ok(files) = std::fs::read_dir(streams) else { return };
    let objects: Vec<Object> = files
        .flatten()
        .map(|file| Object {
            path: format!("/v1/data/image/{image}/streams/{}", file.file_name().to_string_lossy()),
            len: file.metadata().map_or(0, |metadata| metadata.len()),
        })
        .collect();
    let link = Link::start(stage.server.address(), LINK.shape());
    let access = stage.server.access("crowd", "user").through(&link);
    let runtime = tokio::runtime::Runtime::new().expect("threads can be had");
    let began = Instant::now();
    let mut finished: Vec<f64> = runtime.block_on(async {
        let clients = (0..CLIENTS).map(|_| {
            let (access, objects) = (access.clone(), objects.clone());
            tokio::spawn(async move { fetch(&access, &objects).await.map(|()| began.elapsed()) })
        });
        let mut finished = Vec::new();
        for client in clients.collect::<Vec<_>>() {
            let took = client.await.expect("a client does not panic").expect("the server serves all");
            finished.push(took.as_secs_f64());
        }
        finished
    });
    finished.sort_by(f64::total_cmp);
    let each: u64 = objects.iter().map(|object| object.len).sum();
    let bound = LINK.seconds_for(each * CLIENTS as u64);
    let last = finished.last().copied().unwrap_or_default();
    let memory = stage.server.peak_memory_bytes() as f64 / 1e6;
    println!(
        "crowd: the last of {CLIENTS} after {last:.1} s, link-bound {bound:.1} s, server {memory:.0} MB"
    );
    let mut table = Table::new(&[
        "clients",
        "each fetches",
        "link",
        "link-bound",
        "first done",
        "last done",
        "times link-bound",
        "goal",
        "server's memory",
        "goal",
    ]);
    table.row([
        CLIENTS.to_string(),
        format!("{:.1} MB", each as f64 / 1e6),
        LINK.to_string(),
        format!("{bound:.1} s"),
        format!("{:.1} s", finished.first().copied().unwrap_or_default()),
        format!("{last:.1} s"),
        format!("**{:.2}**", last / bound),
        "1.5".to_owned(),
        format!("{memory:.0} MB"),
        "300 MB".to_owned(),
    ]);
    let text = format!(
        "Each client opens a connection of its own and fetches the boot stream of {} in pieces of {} KiB, {REQUESTS} under way. \
         Clients, link and server share this machine's processors. The memory is the most the server had since it was started, \
         publishing included.\n\n{table}",
        Kind::Plain.title(),
        REQUEST_BYTES >> 10
    );
    report.write("Fifty machines at once", &text);
}

async fn fetch(access: &Access, objects: &[Object]) -> Result<(), reqwest::Error> {
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(access.tls())
        .connect_timeout(Duration::from_secs(30))
        .build()?;
    let pieces = objects.iter().flat_map(|object| {
        let starts = (0..object.len).step_by(usize::try_from(REQUEST_BYTES).unwrap_or(1));
        starts.map(move |start| (object, start..object.len.min(start + REQUEST_BYTES)))
    });
    let requests = pieces.map(|(object, range)| {
        let request = client
            .get(format!("{}{}", access.url, object.path))
            .bearer_auth(&access.token)
            .header("range", format!("bytes={}-{}", range.start, range.end - 1));
        async move { request.send().await?.error_for_status()?.bytes().await }
    });
    let requests: Vec<_> = requests.collect();
    stream::iter(requests).buffered(REQUESTS).try_for_each(|_| std::future::ready(Ok(()))).await
}
