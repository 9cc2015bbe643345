//! Events for containerd, in the order they happened.
//!
//! One task sends them one after the other; while containerd is away they wait.

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::ttrpc::{self, context};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};

use crate::limits;
use crate::process::now;

/// Where containerd takes events.
const ADDRESS: &str = "TTRPC_ADDRESS";

/// The way to containerd. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Publisher {
    queue: mpsc::Sender<Entry>,
    namespace: String,
}

#[derive(Debug)]
enum Entry {
    Event(Box<Envelope>),
    /// Answered once everything before it has gone.
    Mark(oneshot::Sender<()>),
}

impl Publisher {
    /// Starts the sender. Call inside the runtime.
    pub(crate) fn start(namespace: &str) -> Self {
        let (queue, waiting) = mpsc::channel(limits::EVENTS_WAITING);
        match std::env::var(ADDRESS) {
            Ok(address) if !address.is_empty() => drop(tokio::spawn(send_all(address, waiting))),
            _ => tracing::warn!("{ADDRESS} is not set: containerd will see no events"),
        }
        Self { queue, namespace: namespace.to_owned() }
    }

    /// Queues an event.
    pub(crate) fn publish(&self, topic: &str, event: &impl Message, name: &str) {
        let value = event.write_to_bytes().unwrap_or_default();
        let event = Any { type_url: format!("containerd.events.{name}"), value, ..Any::default() };
        let envelope = Envelope {
            timestamp: MessageField::some(now()),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: MessageField::some(event),
            ..Envelope::default()
        };
        if self.queue.try_send(Entry::Event(Box::new(envelope))).is_err() {
            tracing::warn!(topic, "an event is lost: nobody takes events, or too many wait");
        }
    }

    /// Waits until what was published has gone, or some time has passed.
    pub(crate) async fn flush(&self) {
        let (mark, passed) = oneshot::channel();
        if self.queue.try_send(Entry::Mark(mark)).is_ok() {
            let _ = timeout(limits::FAREWELL, passed).await;
        }
    }
}

async fn send_all(address: String, mut waiting: mpsc::Receiver<Entry>) {
    let address = format!("unix://{}", address.trim_start_matches("unix://"));
    let mut client = None;
    while let Some(entry) = waiting.recv().await {
        match entry {
            Entry::Event(envelope) => insist(&address, &mut client, *envelope).await,
            Entry::Mark(passed) => drop(passed.send(())),
        }
    }
}

/// Sends an event, again and again if need be.
async fn insist(address: &str, client: &mut Option<EventsClient>, envelope: Envelope) {
    let topic = envelope.topic.clone();
    let request = ForwardRequest { envelope: MessageField::some(envelope), ..ForwardRequest::default() };
    let deadline = Instant::now() + limits::EVENT_PATIENCE;
    while let Err(error) = send(address, client, &request).await {
        *client = None;
        if Instant::now() > deadline {
            tracing::warn!(%topic, %error, "an event is given up");
            return;
        }
        sleep(limits::EVENT_RETRY).await;
    }
}

async fn send(
    address: &str,
    client: &mut Option<EventsClient>,
    request: &ForwardRequest,
) -> Result<(), ttrpc::Error> {
    let client = match client {
        Some(client) => client,
        None => client.insert(EventsClient::new(Client::connect(address).await?)),
    };
    client.forward(context::with_duration(limits::EVENT_CALL), request).await.map(drop)
}
