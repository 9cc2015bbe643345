//! How a node comes to be: by founding a network, joining one, or coming back.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use mycelium_identity::{Invitation, KnownMember, NetworkFile, NetworkId, NodeFolder};
use mycelium_ram_core::NodeId;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::book::Book;
use crate::clock::Clock;
use crate::config::{Handler, SporeConfig};
use crate::disk::{Disk, FILE, StateFile};
use crate::error::StartError;
use crate::limits;
use crate::links::Links;
use crate::member::{Member, random_id};
use crate::mesh::{JOIN_ALPN, Mesh};
use crate::raft::{RaftId, RaftNode, Timing};
use crate::spore::{Core, Spore};
use crate::state::{Command, Enrolment, NetworkState, NodeEntry, Outcome};
use crate::wire::{Ask, JoinReply, JoinRequest, Say, Welcome, decode, encode};

/// A node's socket and identity, before it is in a group.
struct Ground {
    settings: Settings,
    folder: Arc<NodeFolder>,
    me: NodeId,
    addrs: Vec<SocketAddr>,
    mesh: Arc<Mesh>,
    book: Arc<Book>,
}

/// The configuration without the folder and the addresses.
struct Settings {
    name: String,
    timing: Timing,
    liveness: Duration,
    report_every: Duration,
    reshape_every: Duration,
    patience: Duration,
    clock: Clock,
    handler: Handler,
}

impl Spore {
    /// Makes a network with this node as its first. Call inside a tokio runtime.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn found(config: SporeConfig) -> Result<Self, StartError> {
        let ground = Ground::prepare(config)?;
        ground.in_no_network()?;
        let network = NetworkId::generate()?;
        let now = ground.settings.clock.unix_s();
        let entry = NodeEntry {
            name: ground.settings.name.clone(),
            addrs: ground.addrs.clone(),
            raft_id: None,
            joined_at: now,
        };
        let nodes = BTreeMap::from([(ground.me, entry)]);
        ground.form(NetworkState { network: Some(network), nodes, ..NetworkState::default() }).await
    }

    /// Joins a network with an invitation's text. Returns when the network's state has been heard.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn join(config: SporeConfig, invitation: &str) -> Result<Self, StartError> {
        let invitation: Invitation = invitation.parse()?;
        let ground = Ground::prepare(config)?;
        ground.in_no_network()?;
        let raft_id = random_id()?;
        let welcome = ground.knock(&invitation, raft_id).await?;
        ground.enter(welcome, raft_id).await
    }

    /// Comes back after a stop. The only voter begins its group anew from its disk; any other node asks those it knows.
    ///
    /// # Errors
    /// [`StartError`]; [`StartError::Undecided`] when nobody answers for the network.
    pub async fn resume(mut config: SporeConfig) -> Result<Self, StartError> {
        let Some(known) = config.folder.network()? else { return Err(StartError::NoNetwork) };
        config.name.clone_from(&known.name);
        let kept: Option<StateFile> = config.folder.read(FILE)?;
        let ground = Ground::prepare(config)?;
        ground.book.set(known.members.iter().map(|m| (NodeId(m.key.0), m.addrs.clone())));
        let raft_id = random_id()?;
        let sole = kept.filter(|kept| kept.sole_voter);
        let deadline = Instant::now() + ground.settings.patience;
        loop {
            let why = match ground.ask_in(&known, raft_id).await? {
                Ok(welcome) => return ground.enter(welcome, raft_id).await,
                Err(why) => why,
            };
            if let Some(kept) = sole {
                return ground.form_anew(kept.state).await;
            }
            if Instant::now() >= deadline {
                return Err(StartError::Undecided(why));
            }
            sleep(limits::CONNECT).await;
        }
    }

    /// Begins the group anew from what this node last knew, on an operator's explicit order. What other voters decided and
    /// this node did not hear is lost, and two nodes that are both told to do this become two networks.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn recover(mut config: SporeConfig) -> Result<Self, StartError> {
        let Some(known) = config.folder.network()? else { return Err(StartError::NoNetwork) };
        let Some(kept) = config.folder.read::<StateFile>(FILE)? else { return Err(StartError::NoNetwork) };
        config.name = known.name;
        Ground::prepare(config)?.form_anew(kept.state).await
    }
}

impl Ground {
    fn prepare(config: SporeConfig) -> Result<Self, StartError> {
        let mesh = Mesh::bind(config.folder.identity(), config.listen)?;
        let bound = mesh.endpoint().local_addr();
        let bound = bound.map_err(|source| StartError::Bind { addr: config.listen, source })?;
        let addrs = config.reached_at(bound)?;
        let me = NodeId(config.folder.identity().peer_key().0);
        let settings = Settings {
            name: config.name,
            timing: config.timing,
            liveness: config.liveness,
            report_every: config.report_every,
            reshape_every: config.reshape_every,
            patience: config.resume_patience,
            clock: config.clock,
            handler: config.handler,
        };
        let (mesh, book) = (Arc::new(mesh), Arc::default());
        Ok(Self { settings, folder: Arc::new(config.folder), me, addrs, mesh, book })
    }

    fn in_no_network(&self) -> Result<(), StartError> {
        match self.folder.network()? {
            Some(file) => Err(StartError::InNetwork(file.network.short())),
            None => Ok(()),
        }
    }

    /// Shows the invitation to the inviter.
    async fn knock(&self, invitation: &Invitation, raft_id: RaftId) -> Result<Welcome, StartError> {
        let claims = invitation.claims();
        let request = JoinRequest {
            invitation: invitation.to_string(),
            name: self.settings.name.clone(),
            addrs: self.addrs.clone(),
            raft_id,
            wall_ns: self.settings.clock.wall_ns(),
        };
        let inviter = NodeId(claims.inviter.0);
        let answer = self.mesh.ask_once(inviter, &claims.addrs, JOIN_ALPN, &encode(&request)).await;
        match decode(&answer.map_err(StartError::NoInviter)?) {
            Ok(JoinReply::Welcome(welcome)) => Ok(welcome),
            Ok(JoinReply::Refused(why)) | Err(why) => Err(StartError::NotLetIn(why)),
        }
    }

    /// Asks each known member to enrol this process, once.
    async fn ask_in(
        &self,
        known: &NetworkFile,
        raft_id: RaftId,
    ) -> Result<Result<Welcome, String>, StartError> {
        let mut why = "no other member is known".to_owned();
        let enrolment =
            Enrolment { network: known.network, node: self.me, raft_id, addrs: self.addrs.clone() };
        let frame = encode(&Ask::Enrol(enrolment));
        let mut asked = tokio::task::JoinSet::new();
        for member in known.members.iter().filter(|m| m.key.0 != self.me.0) {
            let (mesh, frame, member) = (self.mesh.clone(), frame.clone(), member.clone());
            asked.spawn(async move {
                mesh.ask(NodeId(member.key.0), &member.addrs, &frame, limits::ANSWER + limits::CONNECT).await
            });
        }
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok(Ok(bytes)) => match decode(&bytes) {
                    Ok(Say::Welcome(welcome)) => return Ok(Ok(welcome)),
                    Ok(Say::Outcome(Outcome::Refused(refused))) => return Err(refused.into()),
                    Ok(Say::Trouble(trouble)) | Err(trouble) => why = trouble,
                    Ok(_) => {}
                },
                Ok(Err(error)) => why = error.to_string(),
                Err(_) => {}
            }
        }
        Ok(Err(why))
    }

    /// Runs as a member that a group has let in, and waits to hear from it.
    async fn enter(self, welcome: Welcome, raft_id: RaftId) -> Result<Spore, StartError> {
        let addr = self.addrs[0];
        no_sole_voter(&self.folder)?;
        self.remember(welcome.network, &welcome.members)?;
        let member = self.member(welcome.group, raft_id).await?;
        let mut state = member.state.clone();
        let me = self.me;
        let spore = self.begin(welcome.network, member);
        let heard = state.wait_for(|s| s.nodes.get(&me).is_some_and(|e| e.raft_id == Some(raft_id)));
        match tokio::time::timeout(limits::JOIN, heard).await {
            Ok(Ok(_)) => {}
            _ => return Err(StartError::Unheard(limits::JOIN.as_secs(), addr)),
        }
        Ok(spore)
    }

    /// Begins a group from the state of an earlier one: everybody else has to enrol again.
    async fn form_anew(self, mut state: NetworkState) -> Result<Spore, StartError> {
        state.nodes.values_mut().for_each(|entry| entry.raft_id = None);
        tracing::info!(
            nodes = state.nodes.len(),
            records = state.records.len(),
            "beginning the group anew from disk"
        );
        self.form(state).await
    }

    /// Begins a group of this node alone.
    async fn form(self, mut state: NetworkState) -> Result<Spore, StartError> {
        let Some(network) = state.network else { return Err(StartError::NoNetwork) };
        let raft_id = random_id()?;
        if let Some(entry) = state.nodes.get_mut(&self.me) {
            entry.raft_id = Some(raft_id);
            entry.addrs.clone_from(&self.addrs);
        }
        let members = crate::disk::known(&state.nodes);
        self.remember(network, &members)?;
        let member = self.member(random_id()?, raft_id).await?;
        let node = RaftNode { key: self.me, addr: self.addrs[0], name: self.settings.name.clone() };
        member.initialize(node).await?;
        let written = member.raft.0.client_write(Command::Form(Box::new(state))).await;
        match written.map_err(|error| StartError::Raft(error.to_string()))?.data {
            Outcome::Refused(refused) => Err(refused.into()),
            _ => Ok(self.begin(network, member)),
        }
    }

    fn remember(&self, network: NetworkId, members: &[KnownMember]) -> Result<(), StartError> {
        self.book.set(members.iter().map(|m| (NodeId(m.key.0), m.addrs.clone())));
        let file = NetworkFile { network, name: self.settings.name.clone(), members: members.to_vec() };
        Ok(self.folder.set_network(&file)?)
    }

    async fn member(&self, group: u64, raft_id: RaftId) -> Result<Member, StartError> {
        let disk = Disk::new(self.folder.clone(), raft_id, self.settings.name.clone(), self.book.clone());
        let links = Links { mesh: self.mesh.clone(), book: self.book.clone(), group };
        Member::start(links, raft_id, self.settings.timing, disk).await
    }

    fn begin(self, network: NetworkId, member: Member) -> Spore {
        let rest = self.settings;
        Spore::begin(Core {
            me: self.me,
            name: rest.name,
            addrs: self.addrs,
            network,
            timing: rest.timing,
            liveness: rest.liveness,
            report_every: rest.report_every,
            reshape_every: rest.reshape_every,
            clock: rest.clock,
            handler: rest.handler,
            folder: self.folder,
            mesh: self.mesh,
            book: self.book,
            member: RwLock::new(Arc::new(member)),
            own: Mutex::default(),
            pulse: Mutex::default(),
            nudge: Notify::new(),
        })
    }
}

impl Core {
    /// Becomes a new Raft member of the group that `leader` leads: this process's own is not known there, or gone.
    pub(crate) async fn enrol_again(&self, leader: NodeId) {
        if let Err(error) = self.try_enrol_again(leader).await {
            tracing::warn!(%error, "could not enrol with the leader; trying again");
        }
    }

    async fn try_enrol_again(&self, leader: NodeId) -> Result<(), StartError> {
        let raft_id = random_id()?;
        let enrolment =
            Enrolment { network: self.network, node: self.me, raft_id, addrs: self.addrs.clone() };
        let said = self.ask(leader, &Ask::Enrol(enrolment), limits::ANSWER + limits::CONNECT).await;
        let welcome = match said.map_err(StartError::NoInviter)? {
            Say::Welcome(welcome) => welcome,
            Say::Outcome(Outcome::Refused(refused)) => return Err(refused.into()),
            other => return Err(StartError::NotLetIn(format!("{other:?}"))),
        };
        tracing::info!(group = welcome.group, "enrolling as a new Raft member");
        self.member().stop().await;
        no_sole_voter(&self.folder)?;
        self.book.set(welcome.members.iter().map(|m| (NodeId(m.key.0), m.addrs.clone())));
        let disk = Disk::new(self.folder.clone(), raft_id, self.name.clone(), self.book.clone());
        let links = Links { mesh: self.mesh.clone(), book: self.book.clone(), group: welcome.group };
        let member = Member::start(links, raft_id, self.timing, disk).await?;
        *self.member.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(member);
        Ok(())
    }
}

/// Who enters another's group decides nothing alone any more, whatever its file says.
fn no_sole_voter(folder: &NodeFolder) -> Result<(), StartError> {
    if let Some(kept) = folder.read::<StateFile>(FILE)?.filter(|kept| kept.sole_voter) {
        folder.write(FILE, &StateFile { sole_voter: false, ..kept })?;
    }
    Ok(())
}
