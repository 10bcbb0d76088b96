//! What an image's reference means: the server, the repository there, and what of it.

use oci_client::Reference;
use settings::{ImageParts, ImageReference};

const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_BEFORE: &str = "index.docker.io";

/// As `docker pull` reads it: without a server Docker Hub is meant, and there what has no folder is in `library`. `Reference`'s own `parse`
/// means the same (the fuzz target `image-reference` compares them), by a regular expression that takes nearly 8 MiB from then on. An error
/// for what settings would refuse.
pub fn parse(text: &str) -> Result<Reference, String> {
    let reference: ImageReference = text.parse()?;
    let ImageParts { name, tag, digest } = reference.parts();
    let is_server = |part: &str| part.contains(['.', ':']) || part == "localhost";
    let (server, repository) = match name.split_once('/').filter(|(first, _)| is_server(first)) {
        Some((DOCKER_HUB_BEFORE, rest)) => (DOCKER_HUB, rest),
        Some((server, rest)) => (server, rest),
        None => (DOCKER_HUB, name),
    };
    let is_official = server == DOCKER_HUB && !repository.contains('/');
    let repository = if is_official { format!("library/{repository}") } else { repository.to_owned() };
    let server = server.to_owned();
    Ok(match (tag, digest) {
        (Some(tag), Some(digest)) => {
            Reference::with_tag_and_digest(server, repository, tag.to_owned(), digest.to_owned())
        }
        (None, Some(digest)) => Reference::with_digest(server, repository, digest.to_owned()),
        (tag, None) => Reference::with_tag(server, repository, tag.unwrap_or("latest").to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_means_what_the_client_of_registries_means() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for name in [
            "busybox",
            "busybox:1.37",
            "team/app",
            "localhost/busybox",
            "localhost:5000/a/b:1",
            "localhost:5000",
            "docker.io/nginx",
            "index.docker.io/nginx:1",
            "index.docker.io/team/nginx",
            "Registry.example:5000/team/app:V1.2_3-",
            "127.0.0.1:5000/a",
            "a.b/c/d",
        ] {
            for text in [name.to_owned(), format!("{name}@{digest}")] {
                assert_eq!(parse(&text), Ok(text.parse::<Reference>().unwrap()), "{text}");
            }
        }
        for wrong in ["", "a b", "../a", "a@sha256:12", "Busybox", "a.b:/c"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
