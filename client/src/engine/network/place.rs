//! What of this host decides which passt is of use: the families it reaches the network by, and who resolves names there.

use std::fs;
use std::net::IpAddr;

/// Lists of name servers behind a resolver of this host's own (systemd-resolved(8); NetworkManager.conf(5), `rc-manager`).
const UPSTREAM: [&str; 2] = ["/run/systemd/resolve/resolv.conf", "/run/NetworkManager/no-stub-resolv.conf"];
/// The most name servers passt takes of a family.
const MAX_SERVERS: usize = 3;
/// Flags of a route (`linux/route.h`): it is in use; it refuses.
const RTF_UP: u32 = 1;
const RTF_REJECT: u32 = 0x200;

/// Where this host is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    has_ipv4: bool,
    has_ipv6: bool,
    /// Whether it asks a server of its own, which nobody else reaches.
    asks_itself: bool,
    /// The name servers that a guest can ask.
    servers: Vec<String>,
}

/// How a guest comes to its name servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Resolver {
    /// passt tells it those of `/etc/resolv.conf`.
    Plain,
    /// It is told these, behind this host's own.
    Given(Vec<IpAddr>),
    /// This host's only one is its own, which guests do not reach.
    OutOfReach,
}

impl Place {
    /// Looks around.
    pub(super) fn here() -> Place {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let upstream =
            || UPSTREAM.iter().map(|path| servers_in(&read(path))).find(|servers| !servers.is_empty());
        Place::told(
            &read("/proc/net/route"),
            &read("/proc/net/ipv6_route"),
            &read("/etc/resolv.conf"),
            upstream,
        )
    }

    /// From the kernel's routes, and `resolv.conf(5)`; `upstream` has the servers behind one of this host's own.
    fn told(
        route: &str,
        route6: &str,
        resolv: &str,
        upstream: impl FnOnce() -> Option<Vec<String>>,
    ) -> Place {
        let plain = servers_in(resolv);
        let asks_itself = plain.is_empty() && resolv.lines().any(|line| server_in(line).is_some());
        Place {
            has_ipv4: route.lines().any(is_default),
            has_ipv6: route6.lines().any(is_default6),
            asks_itself,
            servers: if asks_itself { upstream().unwrap_or_default() } else { plain },
        }
    }

    pub(super) fn has_network(&self) -> bool {
        self.has_ipv4 || self.has_ipv6
    }

    pub(super) fn resolver(&self) -> Resolver {
        if !self.asks_itself {
            return Resolver::Plain;
        }
        let servers = self.servers.iter().filter_map(|server| server.parse::<IpAddr>().ok());
        let (four, six): (Vec<_>, Vec<_>) = servers.partition(IpAddr::is_ipv4);
        let given: Vec<_> =
            four.into_iter().take(MAX_SERVERS).chain(six.into_iter().take(MAX_SERVERS)).collect();
        if given.is_empty() { Resolver::OutOfReach } else { Resolver::Given(given) }
    }

    /// Whether a passt that was started here is of use there: it has a family in common with it, and a name server. Where there is no
    /// network, nothing is of more use.
    pub(super) fn serves(&self, there: &Place) -> bool {
        if !there.has_network() {
            return true;
        }
        let has_family = self.has_ipv4 && there.has_ipv4 || self.has_ipv6 && there.has_ipv6;
        let has_server =
            there.servers.is_empty() || there.servers.iter().any(|server| self.servers.contains(server));
        has_family && has_server
    }
}

/// The servers of a `resolv.conf(5)` that are not this host itself.
fn servers_in(resolv: &str) -> Vec<String> {
    let is_own = |server: &&str| server.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    resolv.lines().filter_map(server_in).filter(|server| !is_own(server)).map(str::to_owned).collect()
}

fn server_in(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    (words.next()? == "nameserver").then(|| words.next()).flatten()
}

/// Whether a line of `/proc/net/route` is a way to everywhere.
fn is_default(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [_, destination, _, flags, _, _, _, mask, ..] = words[..] else { return false };
    destination == "00000000" && mask == "00000000" && is_usable(flags)
}

/// Whether a line of `/proc/net/ipv6_route` is one.
fn is_default6(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [destination, length, _, _, _, _, _, _, flags, interface] = words[..] else { return false };
    destination.bytes().all(|digit| digit == b'0') && length == "00" && interface != "lo" && is_usable(flags)
}

fn is_usable(flags: &str) -> bool {
    u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & (RTF_UP | RTF_REJECT) == RTF_UP)
}

#[cfg(test)]
impl Place {
    /// One with IPv4 or nothing, and this `resolv.conf(5)`.
    pub(super) fn with(has_ipv4: bool, resolv: &str) -> Place {
        Place { has_ipv4, ..Place::told("", "", resolv, || None) }
    }

    /// One with a server of its own, and these behind it.
    pub(super) fn behind(resolv: &str, upstream: &[&str]) -> Place {
        let upstream = upstream.iter().map(|server| (*server).to_owned()).collect();
        Place { has_ipv4: true, ..Place::told("", "", resolv, || Some(upstream)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTE: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
wlan0\t0001A8C0\t00000000\t0001\t0\t0\t600\t00FFFFFF\t0\t0\t0
";
    const ROUTE6: &str = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003    wlan0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo
";

    fn place(route: &str, route6: &str, resolv: &str) -> Place {
        Place::told(route, route6, resolv, || Some(vec!["10.1.1.1".to_owned(), "fd00::1".to_owned()]))
    }

    #[test]
    fn a_network_is_a_way_to_everywhere() {
        assert!(place(ROUTE, "", "").has_ipv4);
        assert!(place("", ROUTE6, "").has_ipv6);
        let refused = ROUTE6.lines().last().unwrap();
        let near = ROUTE.lines().last().unwrap();
        assert!(!place(near, refused, "").has_network());
        assert!(!place("", "00 \n\u{0}", "").has_network());
    }

    #[test]
    fn a_guest_is_told_servers_it_reaches() {
        let resolver = |resolv| place(ROUTE, "", resolv).resolver();
        assert_eq!(resolver("search a\nnameserver 192.168.1.1\n"), Resolver::Plain);
        assert_eq!(resolver("nameserver 127.0.0.1\nnameserver fe80::1%wlan0\n"), Resolver::Plain);
        let given = Resolver::Given(vec!["10.1.1.1".parse().unwrap(), "fd00::1".parse().unwrap()]);
        assert_eq!(resolver("nameserver 127.0.0.53\noptions edns0\n"), given);
        assert_eq!(resolver("nameserver ::1\n"), given);
        let alone = Place::told(ROUTE, "", "nameserver 127.0.0.1\n", || None);
        assert_eq!(alone.resolver(), Resolver::OutOfReach);
        // Nobody resolves names here.
        assert_eq!(resolver("# nameserver 1.1.1.1\n"), Resolver::Plain);
    }

    #[test]
    fn what_has_a_family_and_a_server_in_common_is_of_use() {
        let home = place(ROUTE, "", "nameserver 192.168.1.1\nnameserver 9.9.9.9\n");
        let both = place(ROUTE, ROUTE6, "nameserver 9.9.9.9\n");
        let office = place(ROUTE, "", "nameserver 10.0.0.2\n");
        let only_six = place("", ROUTE6, "nameserver 9.9.9.9\n");
        let nowhere = place("", "", "");
        let no_names = place(ROUTE, "", "");
        assert!(home.serves(&home) && home.serves(&both) && both.serves(&only_six));
        assert!(!home.serves(&office) && !home.serves(&only_six));
        // A network that is gone for a moment, or names that are, are no reason.
        assert!(home.serves(&nowhere) && home.serves(&no_names));
        assert!(!no_names.serves(&home));
    }
}
