//! Settings as JSON, as the API takes them, and as user data in TOML or JSON.

use serde_json::{Value, json};
use settings::{LARGEST_USER_DATA, Mistakes, Settings, UserData, changed, flatten, from_json, read_json};

use crate::{examples, keys};

/// Between two documents, for the laws of putting one over another. Neither JSON nor TOML has this byte.
const SEPARATOR: u8 = 0x1e;
/// What a person is told at once.
const LONGEST_ANSWER: usize = 8192;

pub(crate) fn json(input: &[u8]) {
    let documents = input.split(|byte| *byte == SEPARATOR).take(3);
    let read: Vec<Settings> = documents.filter_map(read_one).collect();
    if let [a, b, rest @ ..] = read.as_slice() {
        merging_has_its_laws(a, b, rest.first().unwrap_or(a));
    }
}

fn read_one(text: &[u8]) -> Option<Settings> {
    let value = match read_json(text) {
        Ok(value) => value,
        Err(error) => {
            assert!(!error.is_empty() && error.len() < 1024, "{error}");
            return None;
        }
    };
    match from_json(&value) {
        Ok(settings) => {
            is_the_same_after_writing(&settings);
            keys::name_their_values(&settings);
            // Whatever it says, it does not panic.
            let _ = settings.check();
            Some(settings)
        }
        Err(mistakes) => {
            are_told(&mistakes);
            None
        }
    }
}

pub(crate) fn toml(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match UserData::read(text) {
        Ok(read) => {
            is_the_same_after_writing(&read.settings);
            let lines = text.split('\n').count();
            for key in flatten(&read.settings).into_keys().take(64) {
                let (line, names) = read.line_of(&key).unwrap_or_else(|| panic!("{key} stands in no line"));
                assert!((1..=lines).contains(&line) && names >= 1, "{key} in line {line} of {lines}");
            }
        }
        Err(mistakes) => {
            are_told(&mistakes);
            say_where(text, &mistakes);
        }
    }
}

/// Bounded, whatever the input, and never of nothing.
fn are_told(mistakes: &Mistakes) {
    let told = mistakes.to_string();
    assert!(!told.is_empty() && told.len() < LONGEST_ANSWER, "{} bytes: {told}", told.len());
    assert!(mistakes.0.iter().all(|mistake| !mistake.reason.is_empty()), "{told}");
}

/// Each has a line of the text, or is about all of it.
fn say_where(text: &str, mistakes: &Mistakes) {
    let lines = text.split('\n').count();
    for mistake in &mistakes.0 {
        let of_whole = [
            "bytes are more than",
            "cloud-init",
            "this is a script",
            "expected a table",
            "there are more than these",
            "this is not JSON: more than",
            "a key has more parts than can be read",
        ];
        match mistake.line {
            Some(line) => assert!((1..=lines).contains(&line), "{mistake} of {lines} lines"),
            None => {
                let told = mistake.to_string();
                assert!(of_whole.iter().any(|reason| told.contains(reason)), "{told}");
            }
        }
    }
}

/// What is valid is written as JSON and TOML, and is itself when it is read again.
fn is_the_same_after_writing(settings: &Settings) {
    let text = settings.to_json().to_string();
    let read = read_json(text.as_bytes()).and_then(|value| from_json(&value).map_err(|m| m.to_string()));
    assert_eq!(read.as_ref(), Ok(settings), "{text}");
    // The store's form.
    let stored = toml::to_string(settings).unwrap_or_else(|error| panic!("{error}: {text}"));
    let read: Result<Settings, _> = toml::from_str(&stored);
    assert_eq!(read.as_ref(), Ok(settings), "{stored}");
    let user_data = toml::to_string(&json!({"settings": settings})).unwrap_or_default();
    if user_data.len() <= LARGEST_USER_DATA {
        assert_eq!(settings::from_user_data(&user_data).as_ref(), Ok(settings), "{user_data}");
    }
}

fn merging_has_its_laws(a: &Settings, b: &Settings, c: &Settings) {
    let nothing = Settings::default();
    assert_eq!(flatten(&a.with(&nothing)), flatten(a));
    assert_eq!(flatten(&nothing.with(a)), flatten(a));
    assert_eq!(a.with(a), *a);
    assert_eq!(a.with(b).with(c), a.with(&b.with(c)));
    let (after, said) = (flatten(&a.with(b)), flatten(b));
    assert!(said.iter().all(|(key, value)| after.get(key) == Some(value)));
    assert!(changed(a, &a.with(b)).iter().all(|key| said.contains_key(key)));
    assert_eq!(changed(a, b).is_empty(), flatten(a) == flatten(b));
    assert_eq!(changed(a, b), changed(b, a));
    // With a difference undone and done again, all is as it was.
    let mut change = settings::Change::default();
    change.remove(&changed(a, b));
    change.patch(b);
    assert_eq!(flatten(&change.over(a)), flatten(b));
}

pub(crate) fn json_seeds() -> Vec<Vec<u8>> {
    let of_toml = |text: &String| settings::from_user_data(text).ok().map(|settings| settings.to_json());
    let values: Vec<Value> = examples::toml().iter().filter_map(of_toml).collect();
    let mut seeds: Vec<Vec<u8>> = values.iter().map(|value| value.to_string().into_bytes()).collect();
    // Two and three, one over the other.
    seeds.extend(seeds.clone().windows(3).map(|three| three.join(&SEPARATOR)));
    let bad =
        examples::requests().into_iter().filter(|request| request.request.starts_with("PATCH /settings"));
    seeds.extend(bad.map(|request| request.body.into_bytes()));
    seeds.retain(|seed| seed.len() < 8 << 10);
    seeds
}

pub(crate) fn toml_seeds() -> Vec<Vec<u8>> {
    examples::toml().into_iter().chain(examples::json()).map(String::into_bytes).collect()
}
