//! Options of the NBD client, and its names: `nbd:HOST:PORT`, `nbd:unix:PATH`, and URIs. Source: the NBD project's
//! `doc/uri.md`; the older names are the reference's.

use std::time::Duration;

use super::refused;
use super::values::Options;
use crate::error::Result;
use crate::intent::Location;
use crate::protocol::nbd::limits::CONNECTIONS_MAX;
use crate::protocol::nbd::{InetFamily, InetHow, NbdAddress, NbdLocation, NbdTls};

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
    // Without credentials a name means nothing, and is no mistake in the reference.
    let Some(credentials) = options.text("tls-creds") else { return Ok(None) };
    let hostname = hostname.or_else(|| server.host().map(str::to_owned));
    Ok(Some(NbdTls { credentials, hostname }))
}

/// Where the server is: `server.*`, or the older `path`, `host` and `port`.
fn address(options: &mut Options) -> Result<NbdAddress> {
    let (path, host, port) = (options.text("path"), options.text("host"), options.text("port"));
    match (path, host, port) {
        (Some(_), Some(_), _) => Err(refused("path and host may not be used at the same time".into())),
        (Some(_), None, Some(_)) => Err(refused("port may not be used without host".into())),
        (Some(path), None, None) => Ok(NbdAddress::Unix { path }),
        (None, Some(host), port) => Ok(NbdAddress::inet(host, port.unwrap_or_else(|| PORT.into()))),
        (None, None, Some(_)) => Err(refused("port may not be used without host".into())),
        (None, None, None) if !options.has_below("server") => {
            Err(refused("NBD server address missing".into()))
        }
        (None, None, None) => {
            let mut server = options.below("server");
            let address = typed_address(&mut server)?;
            match server.into_texts().first() {
                None => Ok(address),
                Some((key, _)) => Err(refused(format!("Parameter '{key}' is unexpected"))),
            }
        }
    }
}

/// What the options of `server` mean, each kind of address with its own.
fn typed_address(server: &mut Options) -> Result<NbdAddress> {
    let kind = taken(server, "type")?;
    match kind.as_str() {
        "unix" => {
            let path = taken(server, "path")?;
            let (hidden, tight) = (server.switch("abstract")?, server.switch("tight")?.unwrap_or(true));
            Ok(match hidden {
                Some(true) => NbdAddress::Abstract { name: path, tight },
                _ => NbdAddress::Unix { path },
            })
        }
        "inet" => {
            let (host, port) = (taken(server, "host")?, taken(server, "port")?);
            Ok(NbdAddress::Inet { host, port, how: how(server)? })
        }
        "fd" => {
            let text = taken(server, "str")?;
            let unknown = |_| refused(format!("Unable to parse FD number {text}"));
            Ok(NbdAddress::Fd { number: text.parse().map_err(unknown)? })
        }
        "vsock" => {
            let (cid, port) = (taken(server, "cid")?, taken(server, "port")?);
            let number = |what: &str, text: &str| {
                text.parse().map_err(|_| refused(format!("Failed to parse {what} '{text}'")))
            };
            Ok(NbdAddress::Vsock { cid: number("cid", &cid)?, port: number("port", &port)? })
        }
        other => Err(refused(format!("Parameter 'type' does not accept value '{other}'"))),
    }
}

fn taken(server: &mut Options, key: &str) -> Result<String> {
    server.text(key).ok_or_else(|| refused(format!("Parameter '{key}' is missing")))
}

/// What is said of the way to a host. `numeric`, and `to`, which is about listening, mean nothing to a client, here as in
/// the reference.
fn how(server: &mut Options) -> Result<InetHow> {
    server.switch("numeric")?;
    if let Some(text) = server.text("to")
        && text.parse::<u16>().is_err()
    {
        let kind = if text.parse::<i128>().is_ok() { "uint16_t" } else { "integer" };
        return Err(refused(format!("Parameter 'to' expects {kind}")));
    }
    let family = match (server.switch("ipv4")?, server.switch("ipv6")?) {
        (Some(false), Some(false)) => {
            return Err(refused("Cannot disable IPv4 and IPv6 at same time".into()));
        }
        (None, None) | (Some(true), Some(true)) => None,
        (Some(false), _) | (None, Some(true)) => Some(InetFamily::V6),
        (Some(true), _) | (None, Some(false)) => Some(InetFamily::V4),
    };
    let (keep_alive, multipath) = (server.switch("keep-alive")?, server.switch("mptcp")?);
    Ok(InetHow { family, keep_alive: keep_alive.unwrap_or(false), multipath: multipath.unwrap_or(false) })
}

/// Puts what a name says in the place of options; tells whether it asks for encryption.
fn put_name(options: &mut Options, name: &str) -> Result<bool> {
    let invalid = || refused("No valid URL specified".into());
    let (scheme, rest) = name.split_once(':').ok_or_else(invalid)?;
    let Some(rest) = rest.strip_prefix("//") else {
        put_old_name(options, rest)?;
        return Ok(false);
    };
    // A fragment is for who reads a document, and there is none.
    let rest = rest.split_once('#').map_or(rest, |(rest, _)| rest);
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
            ("nbd://h/x#part", "nbd://h:10809/x"),
            ("nbd:h:1:exportname=x", "nbd://h:1/x"),
        ] {
            assert_eq!(shown(name), expected, "{name}");
        }
        for (server, expected) in [
            (r#""type":"unix","path":"/s","abstract":true"#, "nbd+unix:///e?socket=@/s"),
            (r#""type":"unix","path":"/s","abstract":false,"tight":false"#, "nbd+unix:///e?socket=/s"),
            (r#""type":"vsock","cid":"2","port":"10809""#, "nbd+vsock://2:10809/e"),
            (r#""type":"inet","host":"h","port":"1","ipv4":true,"to":2,"mptcp":true"#, "nbd://h:1/e"),
        ] {
            assert_eq!(shown(&format!(r#"json:{{"server":{{{server}}},"export":"e"}}"#)), expected);
            let named = format!(r#"json:{{"server":{{{server}}},"export":"e","tls-hostname":"h"}}"#);
            assert_eq!(shown(&named), expected, "a name to compare a certificate with, and no certificate");
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
