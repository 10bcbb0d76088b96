//! `GET /settings` of everything: asked again and again by whoever watches a node.

use bytes::Bytes;
use settings::Settings;

/// The last answer, kept for as long as the same is committed: putting settings over the defaults and writing them as JSON takes
/// longer than the rest of a request.
#[derive(Debug, Default)]
pub(crate) struct WholeSettings(Option<(Settings, Bytes)>);

impl WholeSettings {
    pub(crate) fn kept(&self, committed: &Settings) -> Option<Bytes> {
        self.0.as_ref().filter(|(of, _)| of == committed).map(|(_, answer)| answer.clone())
    }

    pub(crate) fn keep(&mut self, committed: Settings, answer: Bytes) {
        self.0 = Some((committed, answer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_of_what_is_committed() {
        let mut whole = WholeSettings::default();
        let motd = |text: &str| settings::from_json(&serde_json::json!({"motd": text})).unwrap();
        assert_eq!(whole.kept(&motd("a")), None);
        whole.keep(motd("a"), Bytes::from_static(b"a"));
        assert_eq!(whole.kept(&motd("a")), Some(Bytes::from_static(b"a")));
        assert_eq!(whole.kept(&motd("b")), None);
    }
}
