//! What a registry says of an image (OCI Image Specification 1.1, manifest.md and image-index.md; Docker's second schema is the same in
//! all that matters here). Hostile until it is checked. Pure.

use oci_client::client::current_platform_resolver;
use oci_client::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE, OciImageIndex, OciImageManifest,
};
use serde::Deserialize;
use serde::de::IgnoredAny;
use sha2::{Digest, Sha256};

use crate::container::image::LARGEST_CONFIG;

/// Bytes of a manifest: what every registry takes at least (OCI Distribution Specification 1.1, "Pushing manifests"), and few take more.
pub const LARGEST: usize = 4 << 20;
const MOST_LAYERS: usize = 128;
pub const LARGEST_LAYER: i64 = 8 << 30;

/// What stands in a registry by the name of an image.
#[derive(Debug, Clone)]
pub enum Manifest {
    /// Within the bounds of what a node takes.
    Image(Box<OciImageManifest>),
    /// Several: by this digest the one for this node.
    Index(String),
}

/// What tells one kind from the other.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kind {
    schema_version: u64,
    media_type: Option<String>,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    manifests: Option<IgnoredAny>,
}

/// Reads it; why it is of no use, if so.
pub fn read(body: &[u8]) -> Result<Manifest, String> {
    if body.len() > LARGEST {
        return Err(too_large());
    }
    let wrong = |error: serde_json::Error| format!("its manifest cannot be read: {error}");
    let kind: Kind = serde_json::from_slice(body).map_err(wrong)?;
    if kind.schema_version != 2 {
        return Err(format!("its manifest is of schema {}: 2 is known", kind.schema_version));
    }
    let media_type = kind.media_type.as_deref();
    let says = |wanted: [&str; 2]| media_type.is_none_or(|said| wanted.contains(&said));
    let is_image = kind.config.is_some() || kind.layers.is_some();
    match (is_image, kind.manifests.is_some()) {
        (true, false) if says([IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE]) => {
            let image: OciImageManifest = serde_json::from_slice(body).map_err(wrong)?;
            check(&image)?;
            Ok(Manifest::Image(Box::new(image)))
        }
        (false, true) if says([IMAGE_MANIFEST_LIST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE]) => {
            let index: OciImageIndex = serde_json::from_slice(body).map_err(wrong)?;
            let digest = current_platform_resolver(&index.manifests)
                .ok_or_else(|| format!("it has nothing for linux and {}", std::env::consts::ARCH))?;
            match is_digest(&digest) {
                true => Ok(Manifest::Index(digest)),
                false => Err(no_digest("the digest of its manifest", &digest)),
            }
        }
        // Others may take it for what this one does not (CVE-2021-41190).
        (true, true) => Err("its manifest is that of an image and that of several at once".to_owned()),
        _ => {
            let said: String = media_type.unwrap_or_default().chars().take(80).collect();
            Err(format!("its manifest is of the media type {said:?}, and has not what such a one has"))
        }
    }
}

pub fn too_large() -> String {
    format!("its manifest has more than {LARGEST} bytes")
}

/// Of what was read. One that was asked for has to be the same.
pub fn digest(body: &[u8], asked: Option<&str>) -> Result<String, String> {
    let hex: String = Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
    let found = format!("sha256:{hex}");
    match asked {
        Some(asked) if !is_digest(asked) => Err(no_digest("the digest by which it is named", asked)),
        Some(asked) if asked != found => {
            Err(format!("what was sent is not what its digest says: {asked} is {found}"))
        }
        _ => Ok(found),
    }
}

fn no_digest(what: &str, text: &str) -> String {
    let shown: String = text.chars().take(80).collect();
    format!("{what} is no SHA-256: {shown:?}")
}

pub(super) fn is_digest(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").unwrap_or_default();
    hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn check(manifest: &OciImageManifest) -> Result<(), String> {
    if manifest.layers.len() > MOST_LAYERS {
        return Err(format!("it has {} layers, more than {MOST_LAYERS}", manifest.layers.len()));
    }
    if let Some(layer) = manifest.layers.iter().find(|layer| !(0..=LARGEST_LAYER).contains(&layer.size)) {
        return Err(format!("a layer says that it has {} bytes", layer.size));
    }
    if let Some(layer) = manifest.layers.iter().find(|layer| !is_digest(&layer.digest)) {
        return Err(no_digest("a layer's digest", &layer.digest));
    }
    if !is_digest(&manifest.config.digest) {
        return Err(no_digest("the digest of its configuration", &manifest.config.digest));
    }
    let config = manifest.config.size;
    if u64::try_from(config).is_ok_and(|size| size <= LARGEST_CONFIG) {
        Ok(())
    } else {
        Err(format!("its configuration says that it has {config} bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn hex(digit: char) -> String {
        format!("sha256:{}", digit.to_string().repeat(64))
    }

    fn image(config: i64, layers: &[i64]) -> Value {
        let layer = |size: &i64| json!({"mediaType": "x", "digest": hex('a'), "size": size});
        json!({
            "schemaVersion": 2, "mediaType": OCI_IMAGE_MEDIA_TYPE,
            "config": {"mediaType": "x", "digest": hex('c'), "size": config},
            "layers": layers.iter().map(layer).collect::<Vec<_>>(),
        })
    }

    fn index(digest: &str, architecture: &str) -> Value {
        let one = |digest: &str, architecture: &str| json!({"mediaType": OCI_IMAGE_MEDIA_TYPE, "digest": digest, "size": 3, "platform": {"os": "linux", "architecture": architecture}});
        json!({"schemaVersion": 2, "manifests": [one(&hex('1'), "s390x"), one(digest, architecture)]})
    }

    fn of(value: &Value) -> Result<Manifest, String> {
        read(value.to_string().as_bytes())
    }

    #[test]
    fn sizes_that_a_node_does_not_take_are_refused_before_anything_is_fetched() {
        assert!(matches!(of(&image(2, &[0, LARGEST_LAYER])), Ok(Manifest::Image(_))));
        for (config, layers) in
            [(2, &[-1][..]), (2, &[LARGEST_LAYER + 1]), (-1, &[]), (5 << 20, &[]), (2, &[1; 129])]
        {
            assert!(of(&image(config, layers)).is_err(), "{config} {layers:?}");
        }
    }

    #[test]
    fn of_several_the_one_for_this_node_is_taken() {
        let Ok(Manifest::Index(digest)) = of(&index(&hex('2'), "amd64")) else { panic!() };
        assert_eq!(digest, hex('2'));
        assert!(of(&index(&hex('2'), "riscv64")).unwrap_err().contains("nothing for linux"));
        // It becomes part of a URL.
        assert!(of(&index("../../../v2/other", "amd64")).unwrap_err().contains("no SHA-256"));
    }

    #[test]
    fn what_is_not_what_it_says_is_refused() {
        let mut both = image(2, &[]);
        both["manifests"] = json!([]);
        let mut lies = image(2, &[]);
        lies["mediaType"] = json!(OCI_IMAGE_INDEX_MEDIA_TYPE);
        let mut old = image(2, &[]);
        old["schemaVersion"] = json!(1);
        let mut layer = image(2, &[1]);
        layer["layers"][0]["digest"] = json!("sha256:../../etc");
        for (value, expected) in [
            (both, "at once"),
            (lies, "media type"),
            (old, "of schema 1"),
            (layer, "a layer's digest is no SHA-256"),
            (json!({"schemaVersion": 2}), "media type"),
            (json!([]), "cannot be read"),
        ] {
            let error = of(&value).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        assert!(read(&vec![b' '; LARGEST + 1]).unwrap_err().contains("more than 4194304"));
    }

    #[test]
    fn what_was_asked_for_by_its_digest_is_that() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest(b"", None).unwrap(), empty);
        assert_eq!(digest(b"", Some(empty)).unwrap(), empty);
        assert!(digest(b"x", Some(empty)).unwrap_err().contains("is not what its digest says"));
        assert!(digest(b"", Some("sha512:00")).unwrap_err().contains("no SHA-256"));
    }
}
