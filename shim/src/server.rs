//! The pod's shim: serves its tasks until the last is gone.

use std::collections::HashMap;
use std::os::fd::IntoRawFd;
use std::sync::Arc;

use anyhow::{Context, Result};
use containerd_shim_protos::shim_async::create_task;
use containerd_shim_protos::ttrpc::asynchronous::{Server, Service as TtrpcService};

use crate::args::Args;
use crate::events::Publisher;
use crate::limits;
use crate::service::Service;
use crate::start;

const V2: &str = "containerd.task.v2.Task";

/// Serves the socket that is this process's standard input.
pub(crate) fn run(args: Args) -> Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_max_level(if args.debug { tracing::Level::DEBUG } else { tracing::Level::INFO })
        .init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(args))
}

async fn serve(args: Args) -> Result<()> {
    let socket = start::socket_path(&args.namespace, &args.address, &args.id);
    let listener = rustix::io::dup(std::io::stdin()).context("there is no socket to serve")?;
    let service = Arc::new(Service::new(args.clone(), Publisher::start(&args.namespace)));
    let done = service.done.clone();
    // SAFETY: the descriptor is a duplicate made above and given away here; `start` made it a listening Unix socket.
    let server = unsafe { Server::new().add_unix_listener(listener.into_raw_fd()) };
    let server = server.context("standard input is not a listening socket")?;
    let mut server = server.register_service(both_versions(service));
    server.start().await?;
    done.notified().await;
    // New connections find nobody from here on, so that containerd starts another shim rather than talk to this one.
    let _ = std::fs::remove_file(&socket);
    let _ = tokio::time::timeout(limits::FAREWELL, server.shutdown()).await;
    Ok(())
}

/// The same calls under the names of both versions: containerd before 2.0 asks for the older one.
fn both_versions(service: Arc<Service>) -> HashMap<String, TtrpcService> {
    let mut names = create_task(service.clone());
    names.extend(create_task(service).into_values().map(|same| (V2.to_owned(), same)));
    names
}
