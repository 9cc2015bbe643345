//! VMs that are made and begun by the API, on real KVM and inside the sandbox.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use endophyte_api::{
    AttachDiskRequest, BootRequest, CreateRequest, InfoRequest, MetricsRequest, PauseRequest,
    SetReplicasRequest, SnapshotRequest, StopRequest, VmClient, VmInfo,
};
use system_tests::process::{Running, reach};
use system_tests::vm::console_until;
use system_tests::{has_kvm, program, threads_of};
use tokio::time::timeout;
use tonic::{Code, Status};

/// Bounds a test that fails; guests share two busy cores.
const PATIENCE: Duration = Duration::from_secs(60);

struct Lab {
    dir: tempfile::TempDir,
    guest: PathBuf,
}

struct Vm {
    process: Running,
    api: VmClient,
}

impl Lab {
    fn new() -> Option<Self> {
        let guest = program("native-guest")?;
        has_kvm().then(|| Self { dir: tempfile::tempdir().unwrap(), guest })
    }

    fn spec(&self, kernel: &str) -> String {
        format!(
            "name = \"made\"\nvcpus = 1\nram_mib = 64\nkernel = {kernel:?}\ncmdline = \"heartbeat=20 plug=follow\"\nserial = \"null\"\n"
        )
    }

    async fn start(&self, rest: &[&str]) -> Vm {
        let socket = self.dir.path().join("api.sock");
        let mut command = Command::new(program("endophyte").unwrap());
        command.args(["run", "--die-with-parent", "--api"]).arg(&socket).args(rest);
        let mut process = Running(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
        let api = reach(&mut process, &socket).await;
        Vm { process, api }
    }
}

impl Vm {
    async fn info(&mut self) -> VmInfo {
        self.api.info(InfoRequest {}).await.unwrap().into_inner()
    }

    async fn create(&mut self, spec: String, folder: &str) -> Result<(), Status> {
        let ask = CreateRequest { spec, folder: folder.to_owned() };
        self.api.create(ask).await.map(drop)
    }

    async fn says(&mut self, wanted: &str) {
        console_until(&mut self.api, 0, PATIENCE, wanted, |text| text.contains(wanted)).await;
    }

    async fn stop(mut self) {
        self.api.stop(StopRequest {}).await.unwrap();
        assert!(self.process.wait().unwrap().success());
    }
}

fn is_too_early<T>(answer: Result<T, Status>) {
    let refused = answer.err().expect("there is no machine");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("no machine yet: Create first"), "{refused}");
}

#[tokio::test]
async fn a_machine_is_made_looked_at_and_begun_by_the_api() {
    let Some(lab) = Lab::new() else { return };
    let reach = lab.dir.path().to_str().unwrap().to_owned();
    let mut vm = lab.start(&["--wait", "--reach", &reach]).await;
    assert_eq!(vm.info().await.state, "waiting for create");
    assert_eq!(threads_of(vm.process.id()).len(), 1, "nobody runs outside the sandbox but who will enter it");
    is_too_early(vm.api.boot(BootRequest {}).await);
    is_too_early(vm.api.pause(PauseRequest {}).await);
    is_too_early(vm.api.metrics(MetricsRequest {}).await);
    is_too_early(vm.api.set_replicas(SetReplicasRequest::default()).await);
    is_too_early(vm.api.attach_disk(AttachDiskRequest::default()).await);
    is_too_early(vm.api.snapshot(SnapshotRequest { path: "/x".to_owned(), stop: false }).await);

    let wrong = vm.create(lab.spec("native-guest"), "").await.unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument);
    assert!(wrong.message().contains("kernel = \"native-guest\" is relative"), "{wrong}");
    let wrong = vm.create("name = 1".to_owned(), "").await.unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument, "{wrong}");
    let folder = lab.guest.parent().unwrap().to_str().unwrap();
    vm.create(lab.spec("native-guest"), folder).await.unwrap();

    let made = vm.info().await;
    assert_eq!((made.state.as_str(), made.paused, made.console_bytes), ("created", true, 0));
    assert_eq!((made.name.as_str(), made.ram_bytes, made.vcpus), ("made", 64 << 20, 1));
    for thread in threads_of(vm.process.id()) {
        assert!(thread.filtered && thread.no_new_privileges, "{thread:?}");
    }
    let again = vm.create(lab.spec("native-guest"), folder).await.unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition, "{again}");
    // Attached before it begins: it is there when the guest looks.
    let disk = lab.dir.path().join("disk");
    fs::File::create_new(&disk).unwrap().set_len(1 << 20).unwrap();
    let table = format!("path = {disk:?}\nserial = \"early\"");
    assert_eq!(vm.api.attach_disk(AttachDiskRequest { table }).await.unwrap().into_inner().slot, 1);
    vm.api.boot(BootRequest {}).await.unwrap();
    vm.says("tick 3").await;
    let running = vm.info().await;
    assert_eq!((running.state.as_str(), running.paused), ("running", false));
    assert_eq!(vm.api.boot(BootRequest {}).await.unwrap_err().code(), Code::FailedPrecondition);
    vm.stop().await;
}

#[tokio::test]
async fn a_machine_that_cannot_be_made_says_why_and_its_process_ends() {
    let Some(lab) = Lab::new() else { return };
    let mut vm = lab.start(&["--wait"]).await;
    let spec = lab.spec(lab.guest.to_str().unwrap()) + "[[disk]]\npath = \"/no/such/disk\"\n";
    let refused = vm.create(spec, "").await.unwrap_err();
    assert!(refused.message().contains("/no/such/disk"), "{refused}");
    assert_eq!(vm.process.wait().unwrap().code(), Some(4));
    let vm = lab.start(&["--wait"]).await;
    vm.stop().await;
}

#[tokio::test]
async fn a_machine_of_a_spec_is_held_until_it_is_let() {
    let Some(lab) = Lab::new() else { return };
    let spec = lab.dir.path().join("vm.toml");
    fs::write(&spec, lab.spec(lab.guest.to_str().unwrap())).unwrap();
    let mut vm = lab.start(&["--hold", "--spec", spec.to_str().unwrap()]).await;
    let held = async {
        while vm.info().await.state != "created" {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, held).await.expect("it is made");
    assert_eq!(vm.info().await.console_bytes, 0);
    vm.api.boot(BootRequest {}).await.unwrap();
    vm.says("ready").await;
    vm.stop().await;
}
