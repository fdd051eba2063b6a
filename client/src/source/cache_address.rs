//! The address of a cache that another machine serves: where it is, how it is known, and the secret that opens it.

use std::fmt;
use std::str::FromStr;

use super::BadSource;
use crate::remote::Fingerprint;

/// The port of a cache whose address names none.
pub const DEFAULT_PORT: u16 = 7443;

const SCHEME: &str = "cache://";
const TOKEN_BYTES: usize = 32;

/// What opens a cache. Shown by no formatting: see [`CacheToken::reveal`].
#[derive(Clone, PartialEq, Eq)]
pub struct CacheToken([u8; TOKEN_BYTES]);

impl CacheToken {
    /// Makes a token of 256 random bits.
    ///
    /// # Errors
    /// When the operating system gives no randomness.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; TOKEN_BYTES];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The token in 64 hex digits.
    pub fn reveal(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl FromStr for CacheToken {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        if text.len() != TOKEN_BYTES * 2 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err("its token is not 64 hex digits");
        }
        let mut bytes = [0; TOKEN_BYTES];
        for (at, byte) in bytes.iter_mut().enumerate() {
            let digits = text.get(at * 2..at * 2 + 2).unwrap_or_default();
            *byte = u8::from_str_radix(digits, 16).map_err(|_| "its token is not hex digits")?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Debug for CacheToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CacheToken(…)")
    }
}

/// `cache://HOST:PORT/#FINGERPRINT.TOKEN`: the SHA-256 of the certificate and the token, 64 hex digits each. It is shown as
/// `cache://HOST:PORT`, which names it but opens nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheAddress {
    /// `HOST:PORT`; an IPv6 address in brackets.
    host: String,
    /// The certificate it shows.
    pub fingerprint: Fingerprint,
    /// What opens it.
    pub token: CacheToken,
}

impl CacheAddress {
    /// Puts an address together.
    ///
    /// # Errors
    /// [`BadSource`], when the host is none.
    pub fn new(host: &str, fingerprint: Fingerprint, token: CacheToken) -> Result<Self, BadSource> {
        Ok(Self { host: checked_host(host)?, fingerprint, token })
    }

    /// Where it is: `HOST:PORT`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The whole address, secret included: for the one file it is kept in, and for whoever it is made for.
    pub fn reveal(&self) -> String {
        let fingerprint = self.fingerprint.to_string();
        let fingerprint = fingerprint.trim_start_matches("SHA256:");
        format!("{SCHEME}{}/#{fingerprint}.{}", self.host, self.token.reveal())
    }

    /// Whether a text is meant as such an address, and so may hold a secret.
    pub fn is_meant(text: &str) -> bool {
        text.trim_start().to_ascii_lowercase().starts_with("cache")
    }

    /// The machine that a text names as such an address, secret or not, and as it is shown; `None` when it names none.
    pub fn shown_of(text: &str) -> Option<String> {
        let text = text.trim();
        let (scheme, rest) = text.split_at_checked(SCHEME.len())?;
        let host = rest.split(['/', '#', '?']).next().unwrap_or_default();
        let host = scheme.eq_ignore_ascii_case(SCHEME).then(|| checked_host(host).ok())??;
        Some(format!("{SCHEME}{host}"))
    }
}

/// Hex digits in a row from which on they are taken for a secret, or a part of one.
const SECRET_DIGITS: usize = 16;

/// A text as it may be shown, which a person wrote and which may hold a secret: long rows of hex digits are left out, and of
/// what is meant as the address of a cache all that follows the host.
pub(super) fn without_secret(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for row in text.split_inclusive(|letter: char| !letter.is_ascii_hexdigit()) {
        let digits = row.trim_end_matches(|letter: char| !letter.is_ascii_hexdigit());
        match digits.len() >= SECRET_DIGITS {
            true => shown.extend(["…", row.get(digits.len()..).unwrap_or_default()]),
            false => shown.push_str(row),
        }
    }
    if CacheAddress::is_meant(text) {
        let host_at = shown.find("://").map_or(0, |at| at + "://".len());
        let host_len = shown.get(host_at..).and_then(|rest| rest.find(['/', '#', '?']));
        if let Some(host_len) = host_len {
            shown.truncate(host_at + host_len);
        }
    }
    shown
}

impl FromStr for CacheAddress {
    type Err = BadSource;

    fn from_str(text: &str) -> Result<Self, BadSource> {
        let bad = |reason: &str| BadSource::new(text, reason);
        let form = "write the whole address as `satchel cache serve` prints it: cache://HOST:PORT/#FINGERPRINT.TOKEN";
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| bad(form))?;
        let (host, secret) = rest.split_once('#').ok_or_else(|| bad(form))?;
        let (fingerprint, token) = secret.split_once('.').ok_or_else(|| bad(form))?;
        let fingerprint =
            fingerprint.parse().map_err(|_: String| bad("its fingerprint is not 64 hex digits"))?;
        let token = token.parse().map_err(bad)?;
        Self::new(host.strip_suffix('/').unwrap_or(host), fingerprint, token)
    }
}

impl fmt::Display for CacheAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.host)
    }
}

/// `HOST:PORT` as it is kept, from `HOST` or `HOST:PORT`.
fn checked_host(text: &str) -> Result<String, BadSource> {
    let bad = || BadSource::new(&format!("{SCHEME}{text}"), "its host is not HOST or HOST:PORT");
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|digit| digit.is_ascii_digit());
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if is_port(port) => (host, port.parse().map_err(|_| bad())?),
        _ => (text, DEFAULT_PORT),
    };
    let url = reqwest::Url::parse(&format!("https://{host}")).map_err(|_| bad())?;
    let is_host = url.path() == "/"
        && url.port().is_none()
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none()
        && !host.ends_with(['/', ':']);
    match url.host_str() {
        Some(host) if is_host && port != 0 => Ok(format!("{host}:{port}")),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret() -> String {
        format!("{}.{}", "ab".repeat(32), "cd".repeat(32))
    }

    #[test]
    fn an_address_is_kept_whole_and_shown_without_its_secret() {
        for (host, kept) in [
            ("192.168.1.5:7443", "192.168.1.5:7443"),
            ("office:443", "office:443"),
            ("office", "office:7443"),
            ("[fe80::1]:7000", "[fe80::1]:7000"),
            ("[::1]", "[::1]:7443"),
        ] {
            for slash in ["/", ""] {
                let address: CacheAddress = format!("cache://{host}{slash}#{}", secret()).parse().unwrap();
                assert_eq!(address.to_string(), format!("cache://{kept}"));
                assert_eq!(address.reveal(), format!("cache://{kept}/#{}", secret()));
                assert_eq!(address.reveal().parse::<CacheAddress>().unwrap(), address);
                assert!(!format!("{address:?}").contains("cdcd"), "{address:?}");
            }
        }
    }

    #[test]
    fn what_is_no_address_is_refused_without_its_secret() {
        let secret = secret();
        for bad in [
            format!("cache://#{secret}"),
            format!("cache://a:0#{secret}"),
            format!("cache://a:70000#{secret}"),
            format!("cache://a/b#{secret}"),
            format!("cache://u:p@a#{secret}"),
            format!("cache://a b#{secret}"),
            format!("cache://a#{}", &secret[1..]),
            format!("cache://a#{secret}0"),
            format!("cache:a#{secret}"),
            format!("cache//a#{secret}"),
            format!("CACHE://a#{secret}"),
            format!("cache://a/{secret}"),
            format!("cache://a?{secret}"),
            format!("cache://a%23{secret}"),
            format!("cache://a#{}x{}", &secret[..100], &secret[101..]),
            "cache://a".to_owned(),
            "cache://a#".to_owned(),
        ] {
            let said = bad.parse::<CacheAddress>().unwrap_err().to_string();
            assert!(!said.contains("cdcd") && said.contains("is no source"), "{said}");
        }
    }

    #[test]
    fn what_was_nearly_an_address_is_refused_without_its_secret_too() {
        let secret = secret();
        for bad in [
            format!("https://office:7443/#{secret}"),
            format!("https://office:7443/#SHA256:{secret}"),
            format!("\"cache://office:7443/#{secret}\""),
            format!("“cache://office:7443/#{secret}”"),
            format!("office:7443/#{secret}"),
            format!("ache://office:7443/#{secret}"),
            secret.clone(),
        ] {
            let said = bad.parse::<crate::source::SourceAddress>().unwrap_err().to_string();
            assert!(!said.contains("cdcd") && said.contains("is no source"), "{said}");
        }
        assert_eq!(
            without_secret("https://mirror.example.org/deadbeef/x"),
            "https://mirror.example.org/deadbeef/x"
        );
    }

    #[test]
    fn a_machine_is_named_without_its_secret() {
        for text in
            ["cache://office", "cache://Office:7443/", "CACHE://office#x", "cache://office:7443/#ab.cd"]
        {
            assert_eq!(CacheAddress::shown_of(text).as_deref(), Some("cache://office:7443"), "{text}");
        }
        for text in ["office", "cache:", "cache://", "https://office", "file:/a"] {
            assert_eq!(CacheAddress::shown_of(text), None, "{text}");
        }
    }
}
