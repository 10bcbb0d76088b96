//! A generation as a TOML document. Its last line is a hash of the rest.

use serde::{Deserialize, Serialize};
use settings::Settings;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::io;
use toml::Table;

use super::foreign;
use super::migrations::{FORMAT, bring_to};

pub(crate) const SUM: &str = "# sha256 ";

/// Who asks, where the connection tells it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Peer {
    pub uid: Option<u32>,
    pub pid: Option<i32>,
}

/// What is known of a generation beside its settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Head {
    pub number: u64,
    /// RFC 3339, UTC, by the node's clock.
    pub time: String,
    /// Name of the transaction that was committed.
    pub transaction: String,
    /// User and process of who asked, where the connection tells them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    pub os_version: String,
    /// It is taken back unless it is confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<Trial>,
}

/// The terms of a trial, as they were when it began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Trial {
    pub seconds: u32,
    /// The boot that it began in, and when it ends by that boot's CLOCK_BOOTTIME.
    pub boot: String,
    pub deadline_ms: u64,
}

/// All settings of a generation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Content {
    pub settings: Settings,
    /// What a newer version of the OS set and this one does not know.
    pub foreign: Table,
}

/// One committed state of all settings (without the defaults).
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    pub head: Head,
    pub content: Content,
}

/// Why a document is not used.
pub(crate) enum Unusable {
    /// A power cut or the disk has spoilt it.
    Damaged(String),
    /// It could not be read now, or not by this version.
    Unread(String),
}

/// The head comes first: a list of a hundred generations must not read a hundred times all settings.
#[derive(Serialize)]
struct Written<'a> {
    format: i64,
    #[serde(flatten)]
    head: &'a Head,
}

pub(crate) fn write(generation: &Generation) -> Result<String, toml::ser::Error> {
    let mut text = toml::to_string(&Written { format: FORMAT, head: &generation.head })?;
    let Content { settings, foreign } = &generation.content;
    let mut settings_table = Table::new();
    settings_table.insert("settings".to_owned(), foreign::together(settings, foreign)?.into());
    text.push_str(&toml::to_string(&settings_table)?);
    let sum = sum(&text);
    let _ = writeln!(text, "{SUM}{sum}");
    Ok(text)
}

pub(crate) fn read(data: io::Result<Vec<u8>>) -> Result<Generation, Unusable> {
    let mut document = parse(&body(data)?)?;
    bring_to(FORMAT, &mut document);
    let settings = match document.remove("settings") {
        Some(toml::Value::Table(settings)) => settings,
        _ => return Err(unknown("it has no settings")),
    };
    let head = document.try_into::<Head>().map_err(|error| unknown(error.message()))?;
    let (settings, foreign) = foreign::understand(settings).map_err(|reason| unknown(&reason))?;
    Ok(Generation { head, content: Content { settings, foreign } })
}

pub(crate) fn read_head(data: io::Result<Vec<u8>>) -> Result<Head, Unusable> {
    let body = body(data)?;
    // No value before it has a line of its own.
    let end = body.find("\n[settings").unwrap_or(body.len());
    let mut head = parse(body.get(..end).unwrap_or_default())?;
    bring_to(FORMAT, &mut head);
    head.try_into::<Head>().map_err(|error| unknown(error.message()))
}

fn unknown(reason: &str) -> Unusable {
    Unusable::Unread(format!("this version of Caisson does not know it: {reason}"))
}

fn parse(text: &str) -> Result<Table, Unusable> {
    text.parse::<Table>().map_err(|error| unknown(error.message()))
}

/// The document without its last line, whose hash it has been held against.
fn body(data: io::Result<Vec<u8>>) -> Result<String, Unusable> {
    let damaged = |reason: &str| Unusable::Damaged(reason.to_owned());
    let data = data.map_err(|error| Unusable::Unread(error.to_string()))?;
    let text = String::from_utf8(data).map_err(|_| damaged("it is not text"))?;
    let (body, last) = text
        .strip_suffix('\n')
        .and_then(|text| text.rsplit_once('\n'))
        .ok_or_else(|| damaged("it is cut short"))?;
    let body = format!("{body}\n");
    match last.strip_prefix(SUM) {
        Some(expected) if expected == sum(&body) => Ok(body),
        Some(_) => Err(damaged("its checksum does not match")),
        None => Err(damaged("it is cut short")),
    }
}

pub(crate) fn sum(text: &str) -> String {
    Sha256::digest(text).iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
