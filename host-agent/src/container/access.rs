//! How registries are reached: what settings say of proxies. Pure.

use oci_client::client::{Client, ClientConfig, ClientProtocol};
use settings::{Network, Settings};
use std::time::Duration;

/// Never asked of a proxy.
const LOCAL: [&str; 2] = ["localhost", "127.0.0.1"];

/// What a pull needs of the settings, beside the image's name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// With its scheme.
    proxy: Option<String>,
    no_proxy: String,
}

impl Access {
    pub fn of(settings: &Settings) -> Self {
        let Network { https_proxy, no_proxy, .. } = settings.network.clone().unwrap_or_default();
        let proxy =
            https_proxy.map(|proxy| format!("{}://{}", proxy.scheme().unwrap_or("http"), proxy.authority()));
        let no_proxy: Vec<&str> = no_proxy.iter().flatten().map(|item| item.as_str()).chain(LOCAL).collect();
        Self { proxy, no_proxy: no_proxy.join(",") }
    }

    /// A client that speaks HTTP to these servers, and HTTPS to all others.
    pub(super) fn client(&self, plain: Vec<String>) -> Result<Client, String> {
        let config = ClientConfig {
            protocol: ClientProtocol::HttpsExcept(plain),
            connect_timeout: Some(Duration::from_secs(20)),
            read_timeout: Some(Duration::from_secs(60)),
            user_agent: "caisson",
            https_proxy: self.proxy.clone(),
            no_proxy: Some(self.no_proxy.clone()),
            ..ClientConfig::default()
        };
        // Not `Client::new`: where these settings cannot be used, it takes others in silence.
        Client::try_from(config)
            .map_err(|error| format!("the settings for registries cannot be used: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::TcpListener;

    fn access(tree: serde_json::Value) -> Access {
        Access::of(&settings::from_json(&tree).unwrap())
    }

    #[test]
    fn what_is_local_needs_no_proxy() {
        let access =
            access(json!({"network": {"https-proxy": "proxy.example:3128", "no-proxy": [".internal"]}}));
        assert_eq!(access.proxy.as_deref(), Some("http://proxy.example:3128"));
        assert_eq!(access.no_proxy, ".internal,localhost,127.0.0.1");
    }

    /// What a proxy is asked for when an image is pulled; nothing when it is not asked.
    async fn asked_of_proxy(image: &str, more: serde_json::Value) -> Option<String> {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = format!("http://{}", listener.local_addr().unwrap());
        let mut tree = json!({"network": {"https-proxy": proxy}});
        tree["network"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let access = access(tree);
        let proxy = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut line = String::new();
            BufReader::new(&mut stream).read_line(&mut line).await.unwrap();
            stream.write_all(b"HTTP/1.1 502 no\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            line
        };
        tokio::select! {
            asked = proxy => Some(asked),
            _ = crate::container::pull::pull(image, &access) => None,
        }
    }

    #[tokio::test]
    async fn a_pull_goes_through_the_proxy_unless_its_registry_is_exempt() {
        // Names below .invalid are nobody's (RFC 2606).
        let asked = asked_of_proxy("registry.invalid/app:1", json!({})).await;
        assert!(asked.is_some_and(|asked| asked.starts_with("CONNECT registry.invalid:443 ")));
        let exempt = json!({"no-proxy": ["registry.invalid"]});
        assert_eq!(asked_of_proxy("registry.invalid/app:1", exempt).await, None);
    }
}
