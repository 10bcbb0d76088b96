//! What IPv6 routers advertise of names, as the kernel hands it on: into the servers and domains that come out of it.

use host_agent::network::{Names, read_advertised};

/// Names of servers, and domains, that come of one option.
const MOST: usize = 8;

/// The first byte says what the rest is: messages of the kernel, or the options in one.
pub(crate) fn check(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    let messages = if kind % 2 == 0 { rest.to_vec() } else { message(rest) };
    let all = read_advertised(&messages);
    // The least message has a header of 16 bytes, one of 16, and an option of 8.
    assert!(all.len() <= messages.len() / 8, "{} of {} bytes", all.len(), messages.len());
    for advertised in all {
        match advertised.names {
            Names::Servers(servers) => {
                assert!(servers.len() <= MOST, "{servers:?}");
                assert!(
                    servers.iter().all(|server| !server.is_multicast() && !server.is_loopback()),
                    "{servers:?}"
                );
            }
            Names::Search(search) => {
                assert!(search.len() <= MOST, "{search:?}");
                let is_plain =
                    |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
                assert!(
                    search.iter().all(|name| name.len() <= 253 && name.bytes().all(is_plain)),
                    "{search:?}"
                );
            }
        }
    }
}

/// RTM_NEWNDUSEROPT with options of an advertisement (linux/rtnetlink.h).
fn message(options: &[u8]) -> Vec<u8> {
    let length = u16::try_from(options.len()).unwrap_or(u16::MAX);
    let all = (u32::from(length) + 32).to_ne_bytes();
    let header = [&all[..], &68u16.to_ne_bytes(), &[0; 10]].concat();
    let head =
        [&[10, 0][..], &length.to_ne_bytes(), &2u32.to_ne_bytes(), &[134, 0, 0, 0, 0, 0, 0, 0]].concat();
    [&header, &head, options].concat()
}

/// Options as routers send them (RFC 8106, 5).
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let lifetime = [0, 0, 14, 16];
    let server = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x53];
    let on_link = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let servers = [&[25, 5, 0, 0][..], &lifetime, &server, &on_link].concat();
    let search = [&[31, 4, 0, 0][..], &lifetime, b"\x03lan\x07example\0\x05other\0\0\0\0\0"].concat();
    let withdrawn = [&[25, 3, 0, 0, 0, 0, 0, 0][..], &server].concat();
    let compressed = [&[31, 2, 0, 0][..], &lifetime, b"\x03lan\0\xc0\x08\0"].concat();
    let options = [servers.clone(), search.clone(), withdrawn, compressed, [servers, search].concat()];
    let whole = options.iter().map(|options| [&[0], message(options).as_slice()].concat());
    whole.chain(options.iter().map(|options| [&[1], options.as_slice()].concat())).collect()
}
