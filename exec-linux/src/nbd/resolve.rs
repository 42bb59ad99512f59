//! Where a host and its port are.

use std::net::{SocketAddr, ToSocketAddrs};

/// Names of services and their ports. Source: services(5).
const SERVICES: &str = "/etc/services";

/// The addresses of a host, with a port that is a number or a service's name. May wait for the network.
///
/// # Errors
/// Why there are none, in words.
pub fn resolve(host: &str, port: &str) -> Result<Vec<SocketAddr>, String> {
    let failed = |why: &str| format!("address resolution failed for {host}:{port}: {why}");
    let Some(number) = port.parse().ok().or_else(|| port_of(&std::fs::read_to_string(SERVICES).ok()?, port))
    else {
        return Err(failed("Servname not supported for ai_socktype"));
    };
    let found = (host, number).to_socket_addrs().map_err(|error| {
        let text = error.to_string();
        failed(text.strip_prefix("failed to lookup address information: ").unwrap_or(&text))
    })?;
    Ok(found.collect())
}

/// The port of a service over TCP.
fn port_of(services: &str, name: &str) -> Option<u16> {
    services.lines().find_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let (first, place) = (words.next()?, words.next()?);
        let port = place.strip_suffix("/tcp")?;
        (first == name || words.any(|alias| alias == name)).then(|| port.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_have_names() {
        let services = "# services\nnbd\t10809/udp\nnbd 10809/tcp disk # a disk\n\nlate 99999/tcp\nodd 5";
        for (name, port) in [
            ("nbd", Some(10809)),
            ("disk", Some(10809)),
            ("a", None),
            ("late", None),
            ("odd", None),
            ("", None),
        ] {
            assert_eq!(port_of(services, name), port, "{name}");
        }
    }

    #[test]
    fn what_is_nowhere_is_told_in_plain_words() {
        let expected = "address resolution failed for ::1:no-such: Servname not supported for ai_socktype";
        assert_eq!(resolve("::1", "no-such"), Err(expected.into()));
        assert_eq!(resolve("::1", "7"), Ok(vec!["[::1]:7".parse().expect("an address")]));
    }
}
