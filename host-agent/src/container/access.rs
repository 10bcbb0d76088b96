//! How registries are reached: what settings say of proxies, mirrors, logins and authorities. No I/O.

use oci_client::Reference;
use oci_client::client::{Certificate, CertificateEncoding, Client, ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use rustls::RootCertStore;
use settings::{ContainerRegistry, Credential, Mirror, Network, Settings};
use std::collections::BTreeMap;
use std::time::Duration;

/// Never asked of a proxy.
const LOCAL: [&str; 2] = ["localhost", "127.0.0.1"];
const CONNECT: Duration = Duration::from_secs(20);
/// A server that sends nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(60);
/// Names of one registry: what images say, and where it is.
const DOCKER_HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// What a pull needs of the settings, beside the image's name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// With its scheme.
    proxy: Option<String>,
    no_proxy: String,
    mirrors: Vec<Mirror>,
    credentials: Vec<Credential>,
    /// Certificates of authorities, as DER, by the name of their setting.
    authorities: BTreeMap<String, Vec<Vec<u8>>>,
}

/// A server that may have an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) reference: Reference,
    /// Host and port.
    pub(super) server: String,
    /// Whether it is spoken to without TLS, if somebody said.
    plain: Option<bool>,
}

impl Source {
    /// Whether it is spoken to without TLS: as settings say, else if it is one of `insecure`.
    pub(super) fn is_plain(&self, insecure: &[String]) -> bool {
        self.plain.unwrap_or_else(|| insecure.contains(&self.server))
    }
}

impl Access {
    pub fn of(settings: &Settings) -> Self {
        let Network { https_proxy, no_proxy, .. } = settings.network.clone().unwrap_or_default();
        let proxy =
            https_proxy.map(|proxy| format!("{}://{}", proxy.scheme().unwrap_or("http"), proxy.authority()));
        let no_proxy: Vec<&str> = no_proxy.iter().flatten().map(|item| item.as_str()).chain(LOCAL).collect();
        let registry = settings.container_registry.clone().unwrap_or_default();
        let ContainerRegistry { mirrors, credentials } = registry;
        let trusted = settings.pki.iter().flatten().filter(|(_, pki)| pki.trusted == Some(true));
        let authorities =
            trusted.filter_map(|(name, pki)| Some((name.to_string(), pki.data.as_ref()?.der().to_vec())));
        Self {
            proxy,
            no_proxy: no_proxy.join(","),
            mirrors: mirrors.unwrap_or_default(),
            credentials: credentials.unwrap_or_default(),
            authorities: authorities.collect(),
        }
    }

    /// What the TLS library cannot use as an authority, by name. The others hold.
    pub fn check(&self) -> Result<(), String> {
        let wrong = self.authorities.iter().filter(|(_, all)| !all.iter().all(|der| is_authority(der)));
        let wrong: Vec<String> = wrong.map(|(name, _)| format!("settings.pki.{name}")).collect();
        if wrong.is_empty() {
            return Ok(());
        }
        Err(format!("{}: a certificate in it cannot be that of an authority", wrong.join(", ")))
    }

    /// The servers that are asked for an image, in their order: its registry's mirrors, then the registry.
    pub(super) fn sources(&self, image: &Reference) -> Vec<Source> {
        let of = |name: &str| self.mirrors.iter().find(|mirror| same_registry(&mirror.registry, name));
        let mirrors = of(image.registry()).or_else(|| of("*"));
        let mirrors = mirrors.into_iter().flat_map(|mirror| &mirror.endpoint).map(|endpoint| {
            let mut reference = image.clone();
            reference.set_mirror_registry(endpoint.authority().to_owned());
            let plain = endpoint.scheme().map(|scheme| scheme == "http");
            Source { reference, server: endpoint.authority().to_owned(), plain }
        });
        let server = image.resolve_registry().to_owned();
        mirrors.chain([Source { reference: image.clone(), server, plain: None }]).collect()
    }

    /// As whom a server is asked. A login is for the server that it names and no other.
    pub(super) fn login(&self, server: &str) -> RegistryAuth {
        let known = self.credentials.iter().find(|credential| same_registry(&credential.registry, server));
        match known.and_then(Credential::login) {
            Some((user, password)) => RegistryAuth::Basic(user.to_string(), password.reveal().to_owned()),
            None => RegistryAuth::Anonymous,
        }
    }

    /// The same proxy and authorities, for what else is got over HTTP.
    pub(crate) fn configure(
        &self,
        client: reqwest::ClientBuilder,
    ) -> reqwest::Result<reqwest::ClientBuilder> {
        let authorities = self.authorities.values().flatten().filter(|der| is_authority(der));
        let certificates: Vec<_> =
            authorities.map(|der| reqwest::Certificate::from_der(der)).collect::<Result<_, _>>()?;
        let client = client.tls_certs_merge(certificates);
        let Some(proxy) = &self.proxy else { return Ok(client) };
        let proxy = reqwest::Proxy::https(proxy)?.no_proxy(reqwest::NoProxy::from_string(&self.no_proxy));
        Ok(client.proxy(proxy))
    }

    /// The same for one that asks registries for manifests.
    pub(super) fn http(&self) -> Result<reqwest::Client, String> {
        let client = reqwest::Client::builder()
            .user_agent("caisson")
            .no_proxy()
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE);
        let client = self.configure(client).and_then(reqwest::ClientBuilder::build);
        client.map_err(|error| format!("the settings for registries cannot be used: {error}"))
    }

    /// A client for one server.
    pub(super) fn client(&self, source: &Source, insecure: &[String]) -> Result<Client, String> {
        let plain = source.is_plain(insecure);
        let authorities = self.authorities.values().flatten().filter(|der| is_authority(der));
        let certificate =
            |der: &Vec<u8>| Certificate { encoding: CertificateEncoding::Der, data: der.clone() };
        let config = ClientConfig {
            protocol: ClientProtocol::HttpsExcept(plain.then(|| source.server.clone()).into_iter().collect()),
            connect_timeout: Some(CONNECT),
            read_timeout: Some(SILENCE),
            user_agent: "caisson",
            https_proxy: self.proxy.clone(),
            no_proxy: Some(self.no_proxy.clone()),
            extra_root_certificates: authorities.map(certificate).collect(),
            ..ClientConfig::default()
        };
        // Not `Client::new`: where these settings cannot be used, it takes others in silence.
        Client::try_from(config)
            .map_err(|error| format!("the settings for registries cannot be used: {error}"))
    }
}

fn same_registry(a: &str, b: &str) -> bool {
    a == b || (DOCKER_HUB.contains(&a) && DOCKER_HUB.contains(&b))
}

fn is_authority(der: &[u8]) -> bool {
    RootCertStore::empty().add(der.to_vec().into()).is_ok()
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

    fn image(name: &str) -> Reference {
        name.parse().unwrap()
    }

    #[test]
    fn mirrors_come_in_their_order_and_the_registry_last() {
        let access = access(json!({"container-registry": {"mirrors": [
            {"registry": "docker.io", "endpoint": ["http://a:5000", "https://b"]},
            {"registry": "*", "endpoint": ["c"]},
        ]}}));
        let servers = |name: &str| {
            let sources = access.sources(&image(name));
            sources.into_iter().map(|source| (source.server, source.plain)).collect::<Vec<_>>()
        };
        let a = ("a:5000".to_owned(), Some(true));
        let b = ("b".to_owned(), Some(false));
        let hub = (image("docker.io/library/x").resolve_registry().to_owned(), None);
        assert_eq!(servers("busybox:1"), [a, b, hub]);
        assert_eq!(
            servers("other.example/app:1"),
            [("c".to_owned(), None), ("other.example".to_owned(), None)]
        );
    }

    #[test]
    fn a_login_is_for_its_server_alone() {
        let credentials = json!([{"registry": "docker.io", "username": "u", "password": "p"},
            {"registry": "a:5000", "auth": "bm9kZTpzZWNyZXQ="}]);
        let access = access(json!({"container-registry": {"credentials": credentials}}));
        assert!(matches!(access.login("index.docker.io"), RegistryAuth::Basic(user, _) if user == "u"));
        assert!(matches!(access.login("a:5000"), RegistryAuth::Basic(_, password) if password == "secret"));
        for other in ["a", "a:5001", "b.docker.io"] {
            assert!(matches!(access.login(other), RegistryAuth::Anonymous), "{other}");
        }
    }

    /// Answers each request with this, and tells what was asked.
    async fn registry(answer: &'static str) -> (String, tokio::sync::mpsc::UnboundedReceiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (tell, told) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut lines = BufReader::new(&mut stream).lines();
                let mut asked = String::new();
                while let Ok(Some(line)) = lines.next_line().await {
                    if line.is_empty() {
                        break;
                    }
                    asked.push_str(&line);
                    asked.push('\n');
                }
                let _ = tell.send(asked);
                let text = format!("HTTP/1.1 {answer}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
                let _ = stream.write_all(text.as_bytes()).await;
            }
        });
        (address, told)
    }

    #[tokio::test]
    async fn a_pull_asks_mirrors_with_their_login_and_then_the_registry_without() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let (mirror, mut of_mirror) = registry("401 no\r\nwww-authenticate: Basic realm=\"x\"").await;
        let (last, mut of_last) = registry("404 none").await;
        let access = access(json!({"container-registry": {
            "mirrors": [{"registry": "a.invalid", "endpoint": [format!("http://{mirror}"), format!("http://{last}")]}],
            "credentials": [{"registry": mirror, "auth": "bm9kZTpzZWNyZXQ="}],
        }}));
        let error = crate::container::pull::pull("a.invalid/app:1", &access).await.unwrap_err();
        assert!(error.message.contains(&mirror) && error.message.contains("a.invalid:"), "{}", error.message);
        let asked = |told: &mut tokio::sync::mpsc::UnboundedReceiver<String>| {
            std::iter::from_fn(|| told.try_recv().ok()).collect::<Vec<_>>().join("\n").to_lowercase()
        };
        let (of_mirror, of_last) = (asked(&mut of_mirror), asked(&mut of_last));
        assert!(of_mirror.contains("/v2/app/manifests/1?ns=a.invalid"), "{of_mirror}");
        assert!(of_mirror.contains("authorization: basic bm9kztpzzwnyzxq="), "{of_mirror}");
        assert!(of_last.contains("/v2/app/manifests/1") && !of_last.contains("authorization"), "{of_last}");
    }

    #[test]
    fn what_is_no_authority_is_told_and_stops_nothing() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let data = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCk1BQT0KLS0tLS1FTkQgQ0VSVElGSUNBVEUtLS0tLQo=";
        let trusted = |trusted: bool| access(json!({"pki": {"ours": {"data": data, "trusted": trusted}}}));
        assert!(trusted(true).check().unwrap_err().starts_with("settings.pki.ours: "));
        assert_eq!(trusted(false).check(), Ok(()));
        let source = trusted(true).sources(&image("a.example/app:1")).remove(0);
        assert!(trusted(true).client(&source, &[]).is_ok());
    }

    /// A server on 127.0.0.1 whose certificate comes from the authority beside it. It answers one handshake; the error is what
    /// the client made of it.
    fn tls_server() -> (String, std::thread::JoinHandle<Result<(), std::io::Error>>) {
        let certificate = include_bytes!("testdata/server.der").to_vec().into();
        let key =
            rustls::pki_types::PrivatePkcs8KeyDer::from(include_bytes!("testdata/server-key.der").to_vec());
        let config = rustls::ServerConfig::builder().with_no_client_auth();
        let config = config.with_single_cert(vec![certificate], key.into()).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept()?;
            let mut tls = rustls::ServerConnection::new(config.into()).map_err(std::io::Error::other)?;
            while tls.is_handshaking() {
                tls.complete_io(&mut stream)?;
            }
            Ok(())
        });
        (address, server)
    }

    #[tokio::test]
    async fn a_registry_is_trusted_when_its_authority_is() {
        use base64::Engine;
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let encode = |data: &[u8]| base64::engine::general_purpose::STANDARD.encode(data);
        let authority = encode(include_bytes!("testdata/authority.der"));
        let pem = format!("-----BEGIN CERTIFICATE-----\n{authority}\n-----END CERTIFICATE-----\n");
        for trusted in [true, false] {
            let access =
                access(json!({"pki": {"ours": {"data": encode(pem.as_bytes()), "trusted": trusted}}}));
            assert_eq!(access.check(), Ok(()));
            let (address, server) = tls_server();
            let pulled = crate::container::pull::pull(&format!("{address}/app:1"), &access).await;
            let error = pulled.unwrap_err().message;
            let shaken = server.join().unwrap();
            assert_eq!(shaken.is_ok(), trusted, "{shaken:?} {error}");
        }
    }
}
