//! Which requests go wrong, and how.

use std::time::Duration;

use crate::seed::Rng;

/// What can go wrong with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection closes before the server hears of the request.
    Refuse,
    /// The request waits, and reaches the server only when the proxy is healed.
    Hold,
    /// The status is answered in the server's place, with an error body; a 503 names a `retry-after` of one second.
    Status(u16),
    /// The server gets half of the request's body, then both connections close.
    CutUpload,
    /// The server does what was asked, but its answer is lost: the connection closes.
    LoseAnswer,
    /// One bit of the answer's body is another.
    Alter,
    /// The answer's body lacks its second half, and its headers agree.
    Truncate,
    /// The answer's body has its first half in place of the second.
    Repeat,
    /// The answer is of another range than the one asked for, and says otherwise; without a range like [`Fault::Repeat`].
    WrongRange,
    /// The answer pauses half-way.
    Stall(Duration),
    /// The connection closes half-way through the answer's body.
    Close,
    /// The server is told that the client speaks this interface version.
    AskAs(u32),
    /// The client is told that the server speaks this interface version.
    AnswerAs(u32),
}

/// Kinds of requests, by what they are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// `packs/ID`
    Packs,
    /// `segments/ID`
    Segments,
    /// `locators/ID`
    Locators,
    /// `manifests/ID` and its signature
    Manifests,
    /// `profiles/ID` and its signature
    Profiles,
    /// Which ids the server lacks.
    Missing,
    /// A new version of an image or desktop.
    Commit,
    /// Anything else.
    Other,
}

impl Class {
    /// Returns the class of a request.
    pub fn of(method: &str, path: &str) -> Self {
        let mut parts = path.split('?').next().unwrap_or_default().trim_matches('/').split('/').skip(1);
        match parts.next() {
            Some("data") => match parts.nth(2) {
                Some("packs") => Self::Packs,
                Some("segments") => Self::Segments,
                Some("locators") => Self::Locators,
                Some("manifests") => Self::Manifests,
                Some("profiles") => Self::Profiles,
                _ => Self::Other,
            },
            Some("missing") => Self::Missing,
            Some("images" | "desktops") if method == "POST" && parts.nth(1) == Some("versions") => {
                Self::Commit
            }
            _ => Self::Other,
        }
    }
}

/// A fault for the requests it matches: `Rule::new(Fault::Alter).on(Class::Packs).skip(2).times(1)` alters the answer to
/// the third request for a pack.
#[derive(Clone, Debug)]
pub struct Rule {
    fault: Fault,
    class: Option<Class>,
    method: Option<String>,
    skip: u64,
    times: u64,
}

impl Rule {
    /// Makes a rule that matches every request.
    pub fn new(fault: Fault) -> Self {
        Self { fault, class: None, method: None, skip: 0, times: u64::MAX }
    }

    /// Matches only requests of `class`.
    #[must_use]
    pub fn on(mut self, class: Class) -> Self {
        self.class = Some(class);
        self
    }

    /// Matches only requests with `method`, such as `PUT`.
    #[must_use]
    pub fn method(mut self, method: &str) -> Self {
        self.method = Some(method.to_owned());
        self
    }

    /// Leaves the first `count` matching requests alone.
    #[must_use]
    pub fn skip(mut self, count: u64) -> Self {
        self.skip = count;
        self
    }

    /// Ends after `count` faults.
    #[must_use]
    pub fn times(mut self, count: u64) -> Self {
        self.times = count;
        self
    }

    /// Counts a request; the fault when it is its turn.
    pub(super) fn apply(&mut self, method: &str, class: Class) -> Option<Fault> {
        let matches = self.class.is_none_or(|wanted| wanted == class)
            && self.method.as_deref().is_none_or(|wanted| wanted == method);
        if !matches || self.times == 0 {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        self.times -= 1;
        Some(self.fault)
    }
}

/// Faults at random, in the order of a seed: the same sequence of requests meets the same faults.
#[derive(Clone, Debug)]
pub struct Policy {
    rng: Rng,
    chances: Vec<(Fault, f64)>,
}

impl Policy {
    /// Makes a policy without faults.
    pub fn new(seed: u64) -> Self {
        Self { rng: Rng::new(seed), chances: Vec::new() }
    }

    /// Makes `fault` happen to the share `probability` (0 to 1) of requests that met no earlier one.
    #[must_use]
    pub fn chance(mut self, fault: Fault, probability: f64) -> Self {
        self.chances.push((fault, probability));
        self
    }

    pub(super) fn draw(&mut self) -> Option<Fault> {
        let Self { rng, chances } = self;
        chances.iter().find(|(_, probability)| rng.chance(*probability)).map(|(fault, _)| *fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_follow_the_routes() {
        for (method, path, class) in [
            ("GET", "/v1/data/image/debian/packs/00ff", Class::Packs),
            ("PUT", "/v1/data/user/alice/segments/00ff?also=image/debian", Class::Segments),
            ("GET", "/v1/data/image/debian/locators/00ff", Class::Locators),
            ("GET", "/v1/data/image/debian/manifests/00ff.sig", Class::Manifests),
            ("GET", "/v1/data/image/debian/profiles/00ff", Class::Profiles),
            ("POST", "/v1/missing/user/alice/chunks", Class::Missing),
            ("POST", "/v1/images/debian/versions?channel=stable", Class::Commit),
            ("POST", "/v1/desktops/work/versions", Class::Commit),
            ("GET", "/v1/desktops/work/versions", Class::Other),
            ("GET", "/v1/desktops", Class::Other),
            ("GET", "/healthz", Class::Other),
        ] {
            assert_eq!(Class::of(method, path), class, "{method} {path}");
        }
    }

    #[test]
    fn a_rule_counts_only_what_it_matches() {
        let mut rule = Rule::new(Fault::Alter).on(Class::Packs).method("GET").skip(1).times(2);
        let requests = [
            ("GET", Class::Packs, false),
            ("PUT", Class::Packs, false),
            ("GET", Class::Segments, false),
            ("GET", Class::Packs, true),
            ("GET", Class::Packs, true),
            ("GET", Class::Packs, false),
        ];
        for (number, (method, class, fails)) in requests.into_iter().enumerate() {
            assert_eq!(rule.apply(method, class).is_some(), fails, "request {number}");
        }
    }

    #[test]
    fn a_policy_repeats_itself_and_keeps_its_shares() {
        let policy = || Policy::new(11).chance(Fault::Alter, 0.2).chance(Fault::Status(503), 0.5);
        let draw = |mut policy: Policy| (0..10_000).map(|_| policy.draw()).collect::<Vec<_>>();
        let drawn = draw(policy());
        assert_eq!(drawn, draw(policy()));
        let count = |fault| drawn.iter().filter(|drawn| **drawn == fault).count();
        assert!((1_800..2_200).contains(&count(Some(Fault::Alter))));
        assert!((3_800..4_200).contains(&count(Some(Fault::Status(503)))), "half of the rest");
        assert!((3_800..4_200).contains(&count(None)));
    }
}
