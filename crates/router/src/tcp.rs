//! TCP routes: a port, a backend, and bytes in both directions.

use crate::buffer::Buffer;
use crate::client::Client;
use crate::http1::tunnel::tunnel;
use crate::live::InFlight;
use crate::prepare::Entrance;
use crate::upstream;
use crate::worker::Guest;
use tokio::net::TcpStream;

pub async fn serve(guest: Guest, stream: TcpStream, entrance: Entrance) {
    let worker = &guest.worker;
    let watch = worker.watches.add();
    let table = worker.table();
    let port = entrance.route_port;
    let Some(route) = table.table().tcp_route(port) else {
        return;
    };
    let mut tried = Vec::new();
    // Nothing has been read from the client yet, so any backend that takes the connection will do.
    while tried.len() < routing::ATTEMPTS_MAX as usize {
        let load = table.load(worker.now_ms());
        let choose = |tried: &[_]| {
            let (routes, random) = (table.table(), worker.random());
            routing::choose(routes, route.service, route.is_leader_only, &load, random, tried)
        };
        let Some(backend) = choose(&tried) else { return };
        tried.push(backend);
        // One whose host is gone answers nothing at all; where another could, it is not waited for.
        let timeouts = &worker.config.timeouts;
        let limit = match choose(&tried) {
            Some(_) => timeouts.connect_first,
            None => timeouts.connect,
        };
        let Some(in_flight) = InFlight::begin(&table, &worker.shared, backend) else {
            continue;
        };
        let addr = table.table().backend(backend).addr;
        match watch.within(limit, upstream::connect(addr)).await {
            Ok(Ok(mut upstream)) => {
                table.accepted(backend);
                let mut client = Client::Plain(stream);
                let (mut from_client, mut from_backend) = (Buffer::take(), Buffer::take());
                Box::pin(tunnel(
                    &mut client,
                    &mut from_client,
                    &mut upstream.stream,
                    &mut from_backend,
                ))
                .await;
                drop(in_flight);
                return;
            }
            Ok(Err(_)) | Err(_) => table.refused(backend, worker.now_ms()),
        }
    }
}
