//! What agents need of a Kubernetes API server: a client whose dead connections are noticed, and
//! a watch that tells everything, then changes, whatever happens to the server.

mod connect;
mod requests;

use std::{error::Error, fmt::Debug, path::PathBuf, str::FromStr, time::Duration};

use futures::StreamExt;
use kube::{
    Api, Client, Config, Resource,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::watcher::{self, watcher},
};
pub use requests::RequestMetrics;
use serde::de::DeserializeOwned;
use tokio::{sync::mpsc::Sender, time::sleep};

use crate::{
    reason::chain,
    watch::{Event, Trouble},
};

/// How the API server is reached.
#[derive(Clone, Debug)]
pub struct Access {
    pub kubeconfig: Option<PathBuf>,
    /// In place of the kubeconfig's, or of the address that a pod is told.
    pub url: Option<String>,
    pub flags: Flags,
    /// Where requests are counted.
    pub requests: RequestMetrics,
}

/// What an agent calls its flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flags {
    pub kubeconfig: &'static str,
    pub url: &'static str,
}

/// Why there is no client: something that another try does not change.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("{flag} {path}: {reason}")]
    Kubeconfig { flag: &'static str, path: PathBuf, reason: String },
    #[error("{flag}: {url:?} is no URL: {reason}")]
    Url { flag: &'static str, url: String, reason: String },
    #[error("no cluster is known; give {flag}: {reason}")]
    NoCluster { flag: &'static str, reason: String },
    #[error("{url}: cannot be reached through the proxy {proxy}; give none")]
    Proxy { url: String, proxy: String },
    #[error("{url}: {reason}")]
    Client { url: String, reason: String },
}

impl Access {
    /// A client, and the URL that it asks. Nobody is asked yet.
    pub async fn open(&self) -> Result<(Client, String), AccessError> {
        let config = self.config().await?;
        let url = config.cluster_url.to_string();
        if let Some(proxy) = &config.proxy_url {
            return Err(AccessError::Proxy { url, proxy: proxy.to_string() });
        }
        match connect::client(config, &self.requests) {
            Ok(client) => Ok((client, url)),
            Err(err) => Err(AccessError::Client { url, reason: err.to_string() }),
        }
    }

    async fn config(&self) -> Result<Config, AccessError> {
        let Some(path) = &self.kubeconfig else {
            return self.config_of_pod().await;
        };
        let refused = |reason: String| AccessError::Kubeconfig {
            flag: self.flags.kubeconfig,
            path: path.clone(),
            reason,
        };
        let file = Kubeconfig::read_from(path).map_err(|err| refused(chain(&err)))?;
        let options = KubeConfigOptions::default();
        let mut config = Config::from_custom_kubeconfig(file, &options)
            .await
            .map_err(|err| refused(chain(&err)))?;
        if let Some(url) = &self.url {
            config.cluster_url = self.parse(url)?;
        }
        Ok(config)
    }

    /// A pod's own account serves at another address as well, unless nothing would hide its token
    /// on the way there.
    async fn config_of_pod(&self) -> Result<Config, AccessError> {
        let Some(url) = &self.url else {
            return Config::infer().await.map_err(|err| AccessError::NoCluster {
                flag: self.flags.kubeconfig,
                reason: chain(&err),
            });
        };
        let plain = Config::new(self.parse(url)?);
        if plain.cluster_url.scheme_str() == Some("https")
            && let Ok(mut of_pod) = Config::incluster()
        {
            of_pod.cluster_url = plain.cluster_url;
            return Ok(of_pod);
        }
        Ok(plain)
    }

    fn parse<T: FromStr<Err: Error + 'static>>(&self, url: &str) -> Result<T, AccessError> {
        url.parse().map_err(|err| AccessError::Url {
            flag: self.flags.url,
            url: url.into(),
            reason: chain(&err),
        })
    }
}

/// A watch that was begun again and does not fail for so long is heard: of one on which nothing
/// happens there is no other sign, and a connection that cannot be made, or brings nothing across, is
/// given up earlier (`connect`).
const QUIET: Duration = Duration::from_secs(10);

/// Tells of all objects of a kind, at first all at once, until nobody listens. `kind` is what people
/// call them, and where; `read` makes of an object what is told, or `None` if it is none that
/// counts; `name` is what one that is gone is told by.
pub async fn follow<K, T>(
    api: Api<K>,
    config: watcher::Config,
    sender: &Sender<Event<T>>,
    kind: &str,
    mut read: impl FnMut(K) -> Option<T>,
    name: impl Fn(&K) -> String,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut events = watcher(api, config).boxed();
    let mut listed = Vec::new();
    let mut is_listing = true;
    let mut trouble = Trouble::default();
    while !sender.is_closed() {
        let event = tokio::select! {
            event = events.next() => event,
            () = sleep(QUIET), if trouble.is_told() && !is_listing => {
                trouble.over(sender).await;
                continue;
            }
            () = sender.closed() => return,
        };
        let event = match event {
            Some(Ok(event)) => event,
            Some(Err(err)) => {
                let reason = format!("the watch on {kind} broke: {}{}", chain(&err), hint(&err));
                trouble.wait(sender, &reason).await;
                continue;
            }
            None => return,
        };
        // That a list is about to be asked for is no sign yet that it can be.
        if !matches!(event, watcher::Event::Init) {
            trouble.over(sender).await;
        }
        let event = match event {
            watcher::Event::Init => {
                is_listing = true;
                listed.clear();
                continue;
            }
            watcher::Event::InitApply(object) => {
                listed.extend(read(object));
                continue;
            }
            watcher::Event::InitDone => {
                is_listing = false;
                Event::Listed(std::mem::take(&mut listed))
            }
            watcher::Event::Apply(object) => {
                let name = name(&object);
                read(object).map_or(Event::Gone(name), Event::Put)
            }
            watcher::Event::Delete(object) => Event::Gone(name(&object)),
        };
        if sender.send(event).await.is_err() {
            return;
        }
    }
}

/// What to do about it, where the server says it.
fn hint(err: &watcher::Error) -> &'static str {
    let code = match err {
        watcher::Error::WatchError(status)
        | watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => status.code,
        _ => return "",
    };
    match code {
        401 => "; the account is not known to the API server",
        403 => "; allow the account get, list and watch on them",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: Flags = Flags { kubeconfig: "--config-of-cluster", url: "--url-of-cluster" };

    async fn refusal(kubeconfig: Option<&str>, url: &str) -> String {
        let kubeconfig = kubeconfig.map(PathBuf::from);
        let (url, requests) = (Some(url.into()), RequestMetrics::default());
        let access = Access { kubeconfig, url, flags: FLAGS, requests };
        access.open().await.err().map(|err| err.to_string()).unwrap_or_default()
    }

    #[tokio::test]
    async fn what_is_wrong_is_told_by_its_flag() {
        let missing = refusal(Some("/nowhere/config"), "https://a").await;
        assert!(missing.starts_with("--config-of-cluster /nowhere/config: "), "{missing}");
        let strange = refusal(None, "https://a b").await;
        assert!(strange.starts_with("--url-of-cluster: \"https://a b\" is no URL: "), "{strange}");
        assert_eq!(refusal(None, "http://192.0.2.1:1").await, "");
    }
}
