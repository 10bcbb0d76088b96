//! `apiclient image`: what images a node has, and pulling and removing them by hand.

use clap::Subcommand;
use hyper::Method;
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use crate::agent::{ImageDetails, ImageState, ImageStatus, RemovedImage};
use crate::cli::{Api, Failure, encode, pretty};
use crate::cli_container::bytes;
use crate::cli_progress::show;
use crate::cli_pull::{Log, pulled};

/// Between two looks at an image that is being pulled.
const LOOK: Duration = Duration::from_millis(500);
/// Of a digest, behind `sha256:`.
const SHOWN_DIGITS: usize = 12;

#[derive(Subcommand)]
pub(crate) enum Image {
    /// All images: digest, size on the disk, when they were pulled, who uses them
    List {
        /// As the node tells it
        #[arg(long)]
        json: bool,
    },
    /// One image, with what its maker says of it: command, environment, ports, layers
    Inspect {
        #[arg(value_name = "REFERENCE")]
        reference: String,
        /// As the node tells it
        #[arg(long)]
        json: bool,
    },
    /// Pull an image ahead of its use; it is kept until it is removed. A tag that is there already is looked up again
    Pull {
        /// As settings name it, such as registry.example.com/team/app:1
        #[arg(value_name = "REFERENCE")]
        reference: String,
    },
    /// Remove an image that no container has
    Remove {
        #[arg(value_name = "REFERENCE")]
        reference: String,
    },
    /// Remove all that no setting names, and what broken pulls have left
    Prune {
        /// Images that were pulled by hand as well
        #[arg(long)]
        all: bool,
    },
}

pub(crate) fn execute(api: &Api, image: &Image) -> Result<String, Failure> {
    match image {
        Image::List { json } => {
            let value = api.get("/images")?;
            if *json { Ok(pretty(&value)) } else { Ok(table(&api.read::<Vec<ImageStatus>>(value)?)) }
        }
        Image::Inspect { reference, json } => {
            let value = api.get(&format!("/images/inspect?reference={}", encode(reference)))?;
            if *json { Ok(pretty(&value)) } else { Ok(describe(&api.read::<ImageDetails>(value)?)) }
        }
        Image::Pull { reference } => pull(api, reference),
        Image::Remove { reference } => {
            let uri = format!("/images?reference={}", encode(reference));
            let removed: Vec<RemovedImage> = removed(api, Method::DELETE, &uri)?;
            let freed = freed(&removed);
            let is_it =
                |image: &RemovedImage| image.references.contains(reference) || image.digest == *reference;
            let is_gone = removed.iter().any(is_it);
            Ok(match is_gone {
                true => format!("{freed}removed {reference}"),
                false => format!(
                    "{freed}removed {reference}; no files went with it: there were none, or something else has them"
                ),
            })
        }
        Image::Prune { all } => {
            let removed = removed(api, Method::POST, &format!("/images/prune?all={all}"))?;
            let list: Vec<ImageStatus> = api.read(api.get("/images")?)?;
            let kept = list.iter().filter(|image| image.pinned && image.used_by.is_empty()).count();
            let hint = match kept {
                0 => String::new(),
                _ if *all => String::new(),
                kept => format!(
                    "; {kept} pulled by hand and used by no container are kept: apiclient image prune --all removes them too"
                ),
            };
            let total = removed.iter().fold(0, |total: u64, image| total.saturating_add(image.bytes));
            Ok(format!("{}{} freed{hint}", freed(&removed), bytes(total)))
        }
    }
}

fn removed(api: &Api, method: Method, uri: &str) -> Result<Vec<RemovedImage>, Failure> {
    let answer = api.send(method, uri, None)?;
    let value: Value = serde_json::from_slice(&answer.body)
        .map_err(|error| Failure::Failed(format!("the answer to {uri} is not JSON: {error}")))?;
    api.read(value)
}

/// A line for each thing that is gone.
fn freed(removed: &[RemovedImage]) -> String {
    let line = |image: &RemovedImage| {
        let what = match (image.is_whole, image.references.as_slice()) {
            (false, _) => format!("what a broken pull of {} had left", short(&image.digest)),
            (true, []) => short(&image.digest),
            (true, names) => names.join(", "),
        };
        format!("{what}: {}\n", bytes(image.bytes))
    };
    removed.iter().map(line).collect()
}

/// Begins a pull, and waits for its end, however long the node goes on with it.
fn pull(api: &Api, reference: &str) -> Result<String, Failure> {
    let pulled = wait_for_pull(api, reference);
    // Of the line that was written over and over.
    show("");
    pulled
}

fn wait_for_pull(api: &Api, reference: &str) -> Result<String, Failure> {
    api.send(Method::POST, &format!("/images/pull?reference={}", encode(reference)), None)?;
    let (begun, is_watched) = (Instant::now(), std::io::stderr().is_terminal());
    let (mut answered, mut log) = (begun, Log::begin(begun));
    loop {
        let list = api.get("/images").and_then(|list| api.read::<Vec<ImageStatus>>(list));
        let image = list.map(|list| list.into_iter().find(|image| image.reference == reference));
        match image {
            Ok(Some(image)) => match (image.state, image.error) {
                (ImageState::Pulling, error) => {
                    answered = Instant::now();
                    // What went wrong is tried again: that is told while nothing comes.
                    let far = image.pull.as_ref().map(pulled).or(error).unwrap_or_default();
                    if is_watched {
                        show(&format!("pulling, {} s · {far}", begun.elapsed().as_secs()));
                    } else if let Some(line) = image.pull.and_then(|pull| log.line(answered, &pull)) {
                        eprintln!("{reference}: {line}");
                    }
                }
                (ImageState::Pulled | ImageState::Preloaded, None) => {
                    let size = image.bytes.map_or(String::new(), |size| format!(", {}", bytes(size)));
                    let digest = image.digest.unwrap_or_default();
                    return Ok(format!("pulled {reference}: {digest}{size}"));
                }
                (_, error) => {
                    let error = error.unwrap_or_else(|| "the node does not say why".to_owned());
                    return Err(Failure::Failed(format!("{reference} was not pulled: {error}")));
                }
            },
            Ok(None) => {
                return Err(Failure::Failed(format!(
                    "{reference} was removed by somebody while it was pulled: apiclient image list shows what there is"
                )));
            }
            // The agent is started again.
            Err(failure) if answered.elapsed() >= api.timeout => return Err(failure),
            Err(_) => {}
        }
        std::thread::sleep(LOOK);
    }
}

fn short(digest: &str) -> String {
    match digest.split_once(':') {
        Some((kind, hex)) => format!("{kind}:{}", hex.chars().take(SHOWN_DIGITS).collect::<String>()),
        None => digest.to_owned(),
    }
}

fn state(image: &ImageStatus) -> &'static str {
    match image.state {
        ImageState::Preloaded => "preloaded",
        ImageState::Pulling => "pulling",
        ImageState::Failed => "failed",
        ImageState::Unused => "unused",
        ImageState::Pulled if image.pinned => "kept",
        ImageState::Pulled => "pulled",
    }
}

fn table(images: &[ImageStatus]) -> String {
    if images.is_empty() {
        return "no images: apiclient image pull brings one".to_owned();
    }
    let width = images.iter().map(|image| image.reference.len()).max().unwrap_or(0).max(24);
    let mut text = format!(
        "{:<width$} {:<19} {:>10} {:<9} {:<20}  USED BY\n",
        "REFERENCE", "DIGEST", "SIZE", "STATE", "PULLED"
    );
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    for image in images {
        let users = Some(image.used_by.join(", ")).filter(|users| !users.is_empty());
        let error = image.error.as_ref().map(|error| format!("  {error}")).unwrap_or_default();
        text.push_str(&format!(
            "{:<width$} {:<19} {:>10} {:<9} {:<20}  {}{error}\n",
            image.reference,
            or_none(image.digest.as_deref().map(short)),
            or_none(image.bytes.map(bytes)),
            state(image),
            or_none(image.pulled_at.clone()),
            or_none(users),
        ));
    }
    text
}

fn describe(details: &ImageDetails) -> String {
    let ImageDetails { image, .. } = details;
    let list = |items: &[String]| json!(items).to_string();
    let platform = [&details.os, &details.architecture].map(|part| part.as_deref().unwrap_or("?")).join("/");
    let mut rows = vec![
        ("reference", image.reference.clone()),
        ("digest", image.digest.clone().unwrap_or_default()),
        ("state", state(image).to_owned()),
        ("size", image.bytes.map(bytes).unwrap_or_default()),
        ("pulled", image.pulled_at.clone().unwrap_or_default()),
        ("used by", image.used_by.join(", ")),
        ("error", image.error.clone().unwrap_or_default()),
        ("created", details.created.clone().unwrap_or_default()),
        ("platform", platform),
        ("entrypoint", list(&details.entrypoint)),
        ("command", list(&details.command)),
        ("user", details.user.clone().unwrap_or_default()),
        ("folder", details.working_dir.clone().unwrap_or_default()),
        ("stop signal", details.stop_signal.clone().unwrap_or_default()),
        ("ports", details.ports.join(", ")),
        ("volumes", details.volumes.join(", ")),
    ];
    rows.extend(details.env.iter().map(|variable| ("env", variable.clone())));
    rows.extend(details.labels.iter().map(|(name, value)| ("label", format!("{name}={value}"))));
    rows.extend(details.layers.iter().map(|layer| ("layer", layer.clone())));
    // An image's maker is not to move the cursor of who looks at it.
    let plain = |text: &str| text.chars().map(|c| if c.is_control() { '?' } else { c }).collect::<String>();
    let shown = rows.iter().filter(|(_, value)| !value.is_empty() && value != "[]");
    shown.map(|(name, value)| format!("{name:<11} {}\n", plain(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(reference: &str, state: ImageState) -> ImageStatus {
        ImageStatus {
            reference: reference.to_owned(),
            state,
            digest: Some(format!("sha256:{}", "0123456789abcdef".repeat(4))),
            bytes: Some(3 << 19),
            pulled_at: Some("2026-01-31T12:00:00Z".to_owned()),
            pinned: false,
            pull: None,
            used_by: Vec::new(),
            error: None,
        }
    }

    #[test]
    fn images_are_a_table() {
        let web = ImageStatus {
            used_by: vec!["again".to_owned(), "web".to_owned()],
            ..image("r/web:1", ImageState::Pulled)
        };
        let kept = ImageStatus { pinned: true, ..image("r/db:1", ImageState::Pulled) };
        let none = ImageStatus {
            digest: None,
            bytes: None,
            pulled_at: None,
            error: Some("no such image".to_owned()),
            ..image("r/none:1", ImageState::Failed)
        };
        let shown = table(&[web, kept, none]);
        let rows: Vec<String> =
            shown.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            rows,
            [
                "r/web:1 sha256:0123456789ab 1.5 MiB pulled 2026-01-31T12:00:00Z again, web",
                "r/db:1 sha256:0123456789ab 1.5 MiB kept 2026-01-31T12:00:00Z -",
                "r/none:1 - - failed - - no such image",
            ]
        );
    }

    #[test]
    fn what_an_images_maker_says_is_shown_without_what_moves_the_cursor() {
        let details = ImageDetails {
            image: image("r/web:1", ImageState::Pulled),
            created: None,
            architecture: Some("amd64".to_owned()),
            os: Some("linux".to_owned()),
            entrypoint: Vec::new(),
            command: vec!["serve".to_owned(), "a b".to_owned()],
            env: vec!["A=\u{1b}[2Jb\nlayer x".to_owned()],
            user: None,
            working_dir: None,
            stop_signal: None,
            ports: vec!["80/tcp".to_owned()],
            volumes: Vec::new(),
            labels: [("x".to_owned(), "y".to_owned())].into(),
            layers: vec!["sha256:7".to_owned()],
        };
        let shown = describe(&details);
        for line in [
            "command     [\"serve\",\"a b\"]",
            "platform    linux/amd64",
            "env         A=?[2Jb?layer x",
            "label       x=y",
            "layer       sha256:7",
        ] {
            assert!(shown.lines().any(|shown| shown == line), "{line} is not in:\n{shown}");
        }
        assert!(!shown.contains("entrypoint") && !shown.contains("stop signal"), "{shown}");
    }
}
