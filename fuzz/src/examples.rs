//! The examples in the documents, as inputs.

use serde::Deserialize;

const SETTINGS: &str = include_str!("../../docs/settings.md");
const USER_DATA: &str = include_str!("../../docs/user-data.md");
const BAD_INPUTS: &str = include_str!("../../apiserver/tests/bad-inputs.toml");

/// Blocks of the documents in one language.
fn blocks(language: &str) -> impl Iterator<Item = String> {
    let start = format!("```{language}\n");
    let split = move |document: &'static str| {
        let blocks = document.split(&start).skip(1).filter_map(|rest| rest.split("```").next());
        blocks.map(str::to_owned).collect::<Vec<_>>()
    };
    [SETTINGS, USER_DATA].into_iter().flat_map(split)
}

/// Every setting with its example: `settings.containers.web.pids` and `200`, in TOML.
pub(crate) fn settings() -> Vec<(String, &'static str)> {
    let row = |line: &'static str| match line.split(" | ").collect::<Vec<_>>().as_slice() {
        // Items of lists are in the example of their list.
        [key, _, _, example, _] if key.starts_with("| `settings.") && !key.contains("[]") => {
            let key = key.trim_start_matches("| ").trim_matches('`');
            let name = if key.contains("resource-limits") { "max-open-files" } else { "web" };
            let key = key.replace("<name>", name);
            Some((key, example.trim_matches('`')))
        }
        _ => None,
    };
    SETTINGS.lines().filter_map(row).collect()
}

/// User data in TOML: what the documents show, and each setting by itself.
pub(crate) fn toml() -> Vec<String> {
    let each = settings().into_iter().map(|(key, example)| format!("{key} = {example}\n"));
    blocks("toml").chain(each).collect()
}

/// User data in JSON.
pub(crate) fn json() -> Vec<String> {
    blocks("json").collect()
}

/// Who sends what to the API by mistake.
#[derive(Deserialize)]
pub(crate) struct Request {
    /// Method and URI.
    pub(crate) request: String,
    #[serde(default)]
    pub(crate) body: String,
}

pub(crate) fn requests() -> Vec<Request> {
    #[derive(Deserialize)]
    struct Table {
        input: Vec<Request>,
    }
    toml::from_str::<Table>(BAD_INPUTS).map(|table| table.input).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_documents_have_examples() {
        assert!(super::settings().len() >= 20 && super::requests().len() >= 60);
        for text in super::toml() {
            settings::from_user_data(&text).unwrap_or_else(|mistakes| panic!("{text}: {mistakes}"));
        }
    }
}
