//! Options of the NBD client, and its names: `nbd:HOST:PORT`, `nbd:unix:PATH`, and URIs. Source: the NBD project's
//! `doc/uri.md`; the older names are the reference's.

use std::time::Duration;

use super::refused;
use super::values::Options;
use crate::error::Result;
use crate::intent::Location;
use crate::protocol::nbd::limits::CONNECTIONS_MAX;
use crate::protocol::nbd::{NbdAddress, NbdLocation, NbdTls};

/// The port where none is said.
const PORT: &str = "10809";

/// Beginnings of URIs: whether the server is a socket in the file system, and whether the connection is encrypted.
const SCHEMES: [(&str, bool, bool); 5] = [
    ("nbd", false, false),
    ("nbd+tcp", false, false),
    ("nbd+unix", true, false),
    ("nbds", false, true),
    ("nbds+unix", true, true),
];

/// Whether a name is one of this protocol.
pub(super) fn is_named(name: &str) -> bool {
    name.split_once(':').is_some_and(|(scheme, _)| SCHEMES.iter().any(|(known, ..)| *known == scheme))
}

/// The export that options, or a name, mean.
pub(super) fn location(options: &mut Options, name: Option<&str>) -> Result<Location> {
    let mut encrypted = false;
    if let Some(name) = name {
        if ["host", "port", "path"].iter().any(|key| options.has(key)) || options.has_below("server") {
            return Err(refused(
                "host/port/path and file names may not be specified at the same time".into(),
            ));
        }
        encrypted = put_name(options, name)?;
    }
    let server = address(options)?;
    let export = options.text("export").unwrap_or_default();
    if export.len() > crate::protocol::nbd::limits::STRING_MAX {
        return Err(refused("export name too long to send to server".into()));
    }
    let tls = tls(options, &server)?;
    if encrypted && tls.is_none() {
        let text = "an encrypted connection needs credentials; say 'tls-creds', the id of an object";
        return Err(refused(text.into()));
    }
    let mut location = NbdLocation { tls, ..NbdLocation::new(server, export) };
    location.reconnect_delay = seconds(options, "reconnect-delay")?;
    location.open_timeout = seconds(options, "open-timeout")?;
    if let Some(number) = options.number("connections")? {
        let number = usize::try_from(number).ok().filter(|number| (1..=CONNECTIONS_MAX).contains(number));
        let text = || format!("Parameter 'connections' expects a number from 1 to {CONNECTIONS_MAX}");
        location.connections = number.ok_or_else(|| refused(text()))?;
    }
    location.context = options.text("x-dirty-bitmap");
    Ok(Location::Nbd(Box::new(location)))
}

fn seconds(options: &mut Options, key: &str) -> Result<Duration> {
    let number = options.number(key)?.unwrap_or(0);
    match u32::try_from(number) {
        Ok(number) => Ok(Duration::from_secs(number.into())),
        Err(_) => Err(refused(format!("Parameter '{key}' expects a number of seconds below 2^32"))),
    }
}

fn tls(options: &mut Options, server: &NbdAddress) -> Result<Option<NbdTls>> {
    let hostname = options.text("tls-hostname");
    let Some(credentials) = options.text("tls-creds") else {
        return match hostname {
            None => Ok(None),
            Some(_) => Err(refused("tls-hostname needs 'tls-creds'".into())),
        };
    };
    let hostname = hostname.or_else(|| match server {
        NbdAddress::Inet { host, .. } => Some(host.clone()),
        NbdAddress::Unix { .. } | NbdAddress::Fd { .. } => None,
    });
    Ok(Some(NbdTls { credentials, hostname }))
}

/// Where the server is: `server.*`, or the older `path`, `host` and `port`.
fn address(options: &mut Options) -> Result<NbdAddress> {
    let (path, host, port) = (options.text("path"), options.text("host"), options.text("port"));
    match (path, host, port) {
        (Some(_), Some(_), _) => Err(refused("path and host may not be used at the same time".into())),
        (Some(_), None, Some(_)) => Err(refused("port may not be used without host".into())),
        (Some(path), None, None) => Ok(NbdAddress::Unix { path }),
        (None, Some(host), port) => Ok(NbdAddress::Inet { host, port: port.unwrap_or_else(|| PORT.into()) }),
        (None, None, Some(_)) => Err(refused("port may not be used without host".into())),
        (None, None, None) if !options.has_below("server") => {
            Err(refused("NBD server address missing".into()))
        }
        (None, None, None) => {
            let mut server = options.below("server");
            let missing = |key: &str| refused(format!("Parameter '{key}' is missing"));
            let kind = server.text("type").ok_or_else(|| missing("type"))?;
            let mut take = |key: &str| server.text(key).ok_or_else(|| missing(key));
            let address = match kind.as_str() {
                "unix" => NbdAddress::Unix { path: take("path")? },
                "inet" => NbdAddress::Inet { host: take("host")?, port: take("port")? },
                "fd" => {
                    let text = take("str")?;
                    let unknown = |_| refused(format!("Unable to parse FD number {text}"));
                    NbdAddress::Fd { number: text.parse().map_err(unknown)? }
                }
                "vsock" => {
                    let text = "server.type=vsock is not supported; unix, inet, and fd with a socket that is connected, are";
                    return Err(refused(text.into()));
                }
                other => {
                    return Err(refused(format!("Parameter 'type' does not accept value '{other}'")));
                }
            };
            match server.into_texts().first() {
                None => Ok(address),
                Some((key, _)) => Err(refused(format!("Parameter '{key}' is unexpected"))),
            }
        }
    }
}

/// Puts what a name says in the place of options; tells whether it asks for encryption.
fn put_name(options: &mut Options, name: &str) -> Result<bool> {
    let invalid = || refused("No valid URL specified".into());
    let (scheme, rest) = name.split_once(':').ok_or_else(invalid)?;
    let Some(rest) = rest.strip_prefix("//") else {
        put_old_name(options, rest)?;
        return Ok(false);
    };
    let known = SCHEMES.iter().find(|(known, ..)| *known == scheme);
    let &(_, unix, encrypted) = known.ok_or_else(invalid)?;
    let (rest, query) = rest.split_once('?').map_or((rest, ""), |(rest, query)| (rest, query));
    let (authority, path) = rest.split_once('/').map_or((rest, ""), |(host, path)| (host, path));
    let export = decoded(path).ok_or_else(invalid)?;
    if !export.is_empty() {
        options.put("export", &export);
    }
    if unix {
        // Of several, the last one counts.
        let sockets: Option<Vec<_>> = query.split('&').map(|part| part.strip_prefix("socket=")).collect();
        let socket = sockets.and_then(|sockets| sockets.last().copied());
        let socket = socket.and_then(decoded).filter(|_| authority.is_empty()).ok_or_else(invalid)?;
        options.put("path", &socket);
        return Ok(encrypted);
    }
    let (host, port) = host_and_port(authority).filter(|_| query.is_empty()).ok_or_else(invalid)?;
    options.put("host", &decoded(host).ok_or_else(invalid)?);
    options.put("port", port);
    Ok(encrypted)
}

/// `HOST[:PORT]`, where a number with colons stands in brackets.
fn host_and_port(authority: &str) -> Option<(&str, &str)> {
    let (host, rest) = match authority.strip_prefix('[') {
        Some(inner) => inner.split_once(']')?,
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let port = if rest.is_empty() { PORT } else { rest.strip_prefix(':')? };
    let legal = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    // A host's number may stand behind a user's name, which means nothing here.
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    (legal && !host.is_empty()).then_some((host, port))
}

/// `unix:PATH[:exportname=NAME]` or `HOST:PORT[:exportname=NAME]`.
fn put_old_name(options: &mut Options, rest: &str) -> Result<()> {
    const EXPORT: &str = ":exportname=";
    let (rest, export) = match rest.find(EXPORT) {
        Some(at) => (&rest[..at], Some(&rest[at + EXPORT.len()..])),
        None => (rest, None),
    };
    if let Some(export) = export {
        options.put("export", export);
    }
    if rest.is_empty() {
        return Err(refused("NBD server address missing".into()));
    }
    if let Some(path) = rest.strip_prefix("unix:") {
        options.put("path", path);
        return Ok(());
    }
    let Some((host, port)) = host_and_text(rest) else {
        return Err(refused(format!("error parsing address '{rest}'")));
    };
    options.put("host", host);
    options.put("port", port);
    Ok(())
}

fn host_and_text(text: &str) -> Option<(&str, &str)> {
    match text.strip_prefix('[') {
        Some(inner) => inner.split_once("]:"),
        None => text.split_once(':'),
    }
}

/// Bytes written as `%20`.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, tail) = rest.split_at_checked(2)?;
        let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?;
        bytes.push(u8::from_str_radix(digits, 16).ok().filter(|byte| *byte != 0)?);
        rest = tail;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use crate::graph::open::{DriverSpec, OpenMode};
    use crate::graph::options::from_filename;

    #[track_caller]
    fn shown(name: &str) -> String {
        let spec = from_filename(name, Some("nbd"), OpenMode::default()).expect(name);
        let DriverSpec::Leaf(location) = spec.driver else { panic!("a leaf was asked for") };
        location.to_string()
    }

    #[track_caller]
    fn refusal(name: &str) -> String {
        from_filename(name, Some("raw"), OpenMode::default()).expect_err(name).to_string()
    }

    #[test]
    fn names_mean_what_they_mean_to_the_reference() {
        for (name, expected) in [
            ("nbd+unix:///exp?socket=/s", "nbd+unix:///exp?socket=/s"),
            ("nbd+unix://?socket=/s", "nbd+unix://?socket=/s"),
            ("nbd+unix:///exp?socket=/r&socket=/s", "nbd+unix:///exp?socket=/s"),
            ("nbd:unix:/s:exportname=exp", "nbd+unix:///exp?socket=/s"),
            ("nbd:unix:/s", "nbd+unix://?socket=/s"),
            ("nbd://h", "nbd://h:10809"),
            ("nbd://h:1/a%20b", "nbd://h:1/a b"),
            ("nbd://[::1]:1/x", "nbd://::1:1/x"),
            ("nbd+tcp://h/x", "nbd://h:10809/x"),
            ("nbd:h:1:exportname=x", "nbd://h:1/x"),
        ] {
            assert_eq!(shown(name), expected, "{name}");
        }
        let options = r#"json:{"server":{"type":"unix","path":"/s"},"export":"e","reconnect-delay":3}"#;
        assert_eq!(shown(options), "nbd+unix:///e?socket=/s");
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for (name, expected) in [
            ("nbd+unix://h/exp?socket=/s", "No valid URL specified"),
            ("nbd+unix:///exp", "No valid URL specified"),
            ("nbd+unix:///exp?socket=/s&foo=1", "No valid URL specified"),
            ("nbd://h/?socket=x", "No valid URL specified"),
            ("nbd://h:x", "No valid URL specified"),
            ("nbd://h/%zz", "No valid URL specified"),
            ("nbd://h/%00", "No valid URL specified"),
            ("nbd:", "NBD server address missing"),
            ("nbd:h", "error parsing address 'h'"),
            (r#"json:{"driver":"raw","file":{"driver":"nbd"}}"#, "NBD server address missing"),
            (
                r#"json:{"driver":"raw","file":{"driver":"nbd","path":"a","host":"b"}}"#,
                "path and host may not be used at the same time",
            ),
            (
                r#"json:{"driver":"raw","file":{"driver":"nbd","server.path":"a"}}"#,
                "Parameter 'type' is missing",
            ),
            (
                r#"json:{"driver":"raw","file":{"driver":"nbd","path":"a","connections":17}}"#,
                "Parameter 'connections' expects a number from 1 to 16",
            ),
            (
                r#"json:{"driver":"raw","file":{"driver":"nbd","server.type":"fd","server.str":"5x"}}"#,
                "Unable to parse FD number 5x",
            ),
            (
                r#"json:{"driver":"raw","file":{"driver":"nbd","server.type":"fd"}}"#,
                "Parameter 'str' is missing",
            ),
            (
                r#"json:{"driver":"raw","file":{"driver":"nbd","path":"a","foo":1}}"#,
                "Block protocol 'nbd' doesn't support the option 'foo'",
            ),
        ] {
            assert_eq!(refusal(name), expected, "{name}");
        }
        assert!(refusal("nbds://h").contains("tls-creds"));
    }
}
