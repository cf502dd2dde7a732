//! What a plain client needs to fetch all that proxy-agent watches: the same lists from the same
//! API server, by the same selectors, in pages of the same size and all kinds at once, read into
//! Kubernetes' own types and held. `cargo xtask bench service --peers` compares the agent's start
//! with it. By hand: `cargo run --release -p proxy-agent --example list -- KUBECONFIG NODE`.

use std::{env, fmt::Debug, time::Instant};

use agent_kit::kubernetes::{Access, Flags};
use anyhow::{Context, Result};
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
};
use kube::{Api, Client, api::ListParams};
use serde::de::DeserializeOwned;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// As proxy-agent's watches have them, and kube-proxy's.
const NOT_OURS: &str = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";
const NOT_HEADLESS: &str = "spec.clusterIP!=None";
/// As kube's watcher asks for them.
const PAGE: u32 = 500;

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = env::args();
    let usage = "give a kubeconfig and the name of a node";
    let (kubeconfig, node) = (arguments.nth(1).context(usage)?, arguments.next().context(usage)?);
    let began = Instant::now();
    let flags = Flags { kubeconfig: "kubeconfig", url: "URL" };
    let access = Access { kubeconfig: Some(kubeconfig.into()), url: None, flags };
    let (client, _) = access.open().await?;
    let all = ListParams::default().limit(PAGE);
    let ours = all.clone().labels(NOT_OURS);
    let services = tokio::spawn(list::<Service>(client.clone(), ours.clone().fields(NOT_HEADLESS)));
    let slices = tokio::spawn(list::<EndpointSlice>(client.clone(), ours));
    let name = format!("metadata.name={node}");
    let nodes = tokio::spawn(list::<Node>(client.clone(), all.clone().fields(&name)));
    let cidrs = tokio::spawn(list::<ServiceCIDR>(client, all));
    let (services, slices) = (services.await??, slices.await??);
    let (nodes, cidrs) = (nodes.await??, cidrs.await??);
    let endpoints: usize = slices.iter().map(|slice| slice.endpoints.len()).sum();
    println!(
        "{} Services, {} EndpointSlices with {endpoints} endpoints, {} Nodes and {} ServiceCIDRs \
         in {} ms",
        services.len(),
        slices.len(),
        nodes.len(),
        cidrs.len(),
        began.elapsed().as_millis()
    );
    Ok(())
}

/// All objects of a kind, page by page.
async fn list<K>(client: Client, mut asked: ListParams) -> Result<Vec<K>>
where
    K: kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let api: Api<K> = Api::all(client);
    let mut listed = Vec::new();
    loop {
        let page = api.list(&asked).await?;
        listed.extend(page.items);
        match page.metadata.continue_.filter(|next| !next.is_empty()) {
            Some(next) => asked.continue_token = Some(next),
            None => return Ok(listed),
        }
    }
}
