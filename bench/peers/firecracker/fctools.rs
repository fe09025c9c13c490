//! The calls by fctools, on its layer of processes: what it starts is no Firecracker, which is there already.
use bytes::Bytes;
use fctools::{
    process_spawner::{DirectProcessSpawner, ProcessSpawner},
    runtime::{tokio::TokioRuntime, Runtime},
    vmm::{
        executor::{process_handle::ProcessHandle, VmmExecutor, VmmExecutorContext, VmmExecutorError},
        installation::VmmInstallation,
        ownership::VmmOwnershipModel,
        process::{HyperResponseExt, VmmProcess},
        resource::system::ResourceSystem,
    },
};
use http_body_util::Full;
use serde_json::{json, Value};
use std::{error::Error, ffi::OsString, path::PathBuf, time::Instant};

struct Running(PathBuf);

impl VmmExecutor for Running {
    fn get_socket_path(&self, _: &VmmInstallation) -> Option<PathBuf> {
        Some(self.0.clone())
    }
    fn resolve_effective_path(&self, _: &VmmInstallation, path: PathBuf) -> PathBuf {
        path
    }
    async fn prepare<S: ProcessSpawner, R: Runtime>(&self, _: VmmExecutorContext<'_, S, R>) -> Result<(), VmmExecutorError> {
        Ok(())
    }
    async fn invoke<S: ProcessSpawner, R: Runtime>(
        &self,
        context: VmmExecutorContext<'_, S, R>,
        _: Option<PathBuf>,
    ) -> Result<ProcessHandle<R>, VmmExecutorError> {
        let arguments = [OsString::from("60")];
        let spawned = context.process_spawner.spawn("sleep".as_ref(), &arguments, true, &context.runtime).await;
        Ok(ProcessHandle::from_child(spawned.map_err(VmmExecutorError::ProcessSpawnFailed)?, true))
    }
    async fn cleanup<S: ProcessSpawner, R: Runtime>(&self, _: VmmExecutorContext<'_, S, R>) -> Result<(), VmmExecutorError> {
        Ok(())
    }
}

type Vmm = VmmProcess<Running, DirectProcessSpawner, TokioRuntime>;
type Done<A> = Result<A, Box<dyn Error + Send + Sync>>;

async fn put(vmm: &mut Vmm, path: &str, body: &Value) -> Done<()> {
    let request = http::Request::builder()
        .method("PUT")
        .header("Content-Type", "application/json")
        .body(Full::new(Bytes::from(serde_json::to_vec(body)?)))?;
    let mut answer = vmm.send_api_request(path, request).await?;
    let said = answer.read_body_to_string().await?;
    if answer.status().is_success() { Ok(()) } else { Err(format!("{path}: {} {said}", answer.status()).into()) }
}

async fn run(vmm: &mut Vmm, directory: &str, starts: bool) -> Done<()> {
    let kernel = json!({"kernel_image_path": format!("{directory}/kernel"), "boot_args": "console=ttyS0 reboot=k panic=1"});
    let root = json!({
        "drive_id": "rootfs", "path_on_host": format!("{directory}/rootfs"), "is_root_device": true, "is_read_only": true
    });
    let machine = json!({"vcpu_count": 2, "mem_size_mib": 256, "smt": false, "track_dirty_pages": false});
    put(vmm, "/machine-config", &machine).await?;
    put(vmm, "/boot-source", &kernel).await?;
    put(vmm, "/drives/rootfs", &root).await?;
    put(vmm, "/vsock", &json!({"guest_cid": 3, "uds_path": format!("{directory}/v.sock")})).await?;
    if starts {
        put(vmm, "/actions", &json!({"action_type": "InstanceStart"})).await?;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Done<()> {
    for line in std::io::stdin().lines() {
        let line = line?;
        let mut words = line.split(' ');
        let starts = words.next() == Some("start");
        let mut vmms = Vec::new();
        for directory in words {
            let resources = ResourceSystem::new(DirectProcessSpawner, TokioRuntime, VmmOwnershipModel::Shared);
            let binaries = VmmInstallation::new("sleep", "sleep", "sleep");
            let mut vmm = VmmProcess::new(Running(format!("{directory}/api.sock").into()), resources, binaries);
            vmm.prepare().await?;
            vmm.invoke(None).await?;
            vmms.push((vmm, directory.to_owned()));
        }
        let begin = Instant::now();
        let mut all = tokio::task::JoinSet::new();
        for (mut vmm, directory) in vmms {
            all.spawn(async move { run(&mut vmm, &directory, starts).await.map(|()| vmm) });
        }
        let mut done = Vec::new();
        while let Some(one) = all.join_next().await {
            done.push(one??);
        }
        println!("{}", begin.elapsed().as_secs_f64() * 1000.0);
        for vmm in &mut done {
            vmm.send_sigkill()?;
            // An error when it has ended already.
            let _ = vmm.wait_for_exit().await;
        }
    }
    Ok(())
}
