//! Orders of version strings: as the Boot Loader Specification and as Debian have them.

use std::cmp::Ordering;

/// Compares as UAPI.10, Version Format Specification, says: what boot loaders sort entries by.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        (a, b) = (skip_separators(a), skip_separators(b));
        // A tilde is older than anything, the end included: 1.0~rc1 comes before 1.0.
        match (a.split_first(), b.split_first()) {
            (Some((b'~', rest_a)), Some((b'~', rest_b))) => {
                (a, b) = (rest_a, rest_b);
                continue;
            }
            (Some((b'~', _)), _) => return Ordering::Less,
            (_, Some((b'~', _))) => return Ordering::Greater,
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => return Ordering::Less,
            (Some(_), None) => return Ordering::Greater,
            (Some((first_a, rest_a)), Some((first_b, rest_b))) => {
                // These are older than what may stand in their place, the first one most.
                let rank = |byte: &u8| b"-^.".iter().position(|mark| mark == byte).unwrap_or(3);
                match (rank(first_a), rank(first_b)) {
                    (3, 3) => {}
                    (x, y) if x == y => {
                        (a, b) = (rest_a, rest_b);
                        continue;
                    }
                    (x, y) => return x.cmp(&y),
                }
                let order = if first_a.is_ascii_digit() || first_b.is_ascii_digit() {
                    let (number_a, number_b) =
                        (take(&mut a, u8::is_ascii_digit), take(&mut b, u8::is_ascii_digit));
                    // A number is newer than none, even zero.
                    number_a
                        .is_empty()
                        .cmp(&number_b.is_empty())
                        .reverse()
                        .then(compare_numbers(number_a, number_b))
                } else {
                    take(&mut a, u8::is_ascii_alphabetic).cmp(take(&mut b, u8::is_ascii_alphabetic))
                };
                if order.is_ne() {
                    return order;
                }
            }
        }
    }
}

/// Compares as Debian policy, section 5.6.12, says of an upstream version: how kernels are sorted in a `grub.cfg`.
pub fn compare_debian(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    while !a.is_empty() || !b.is_empty() {
        let is_text = |byte: &u8| !byte.is_ascii_digit();
        let (text_a, text_b) = (take(&mut a, is_text), take(&mut b, is_text));
        for at in 0..text_a.len().max(text_b.len()) {
            let order = debian_rank(text_a.get(at)).cmp(&debian_rank(text_b.get(at)));
            if order.is_ne() {
                return order;
            }
        }
        let order = compare_numbers(take(&mut a, u8::is_ascii_digit), take(&mut b, u8::is_ascii_digit));
        if order.is_ne() {
            return order;
        }
    }
    Ordering::Equal
}

/// A tilde before the end, the end before letters, letters before the rest.
fn debian_rank(byte: Option<&u8>) -> u16 {
    match byte {
        Some(b'~') => 0,
        None => 1,
        Some(letter) if letter.is_ascii_alphabetic() => 2 + u16::from(*letter),
        Some(other) => 300 + u16::from(*other),
    }
}

/// Compares numbers of any length.
fn compare_numbers(a: &[u8], b: &[u8]) -> Ordering {
    let significant = |digits: &[u8]| digits.iter().position(|digit| *digit != b'0').unwrap_or(digits.len());
    let a = a.get(significant(a)..).unwrap_or_default();
    let b = b.get(significant(b)..).unwrap_or_default();
    a.len().cmp(&b.len()).then(a.cmp(b))
}

fn skip_separators(text: &[u8]) -> &[u8] {
    let is_meant = |byte: &u8| byte.is_ascii_alphanumeric() || b"-.~^".contains(byte);
    text.iter().position(is_meant).and_then(|start| text.get(start..)).unwrap_or_default()
}

/// Takes the bytes off the front that are of a kind.
fn take<'a>(text: &mut &'a [u8], is_of_kind: impl Fn(&u8) -> bool) -> &'a [u8] {
    let end = text.iter().position(|byte| !is_of_kind(byte)).unwrap_or(text.len());
    let (front, rest) = text.split_at(end);
    *text = rest;
    front
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_examples_of_the_specification_hold() {
        for (a, b) in [
            ("1.1", "1.2"),
            ("1.9", "1.10"),
            ("122", "123"),
            ("123-3", "123.1-1"),
            ("123~rc1-1", "123"),
            ("123-a", "123-a.1"),
            ("6.8.5-301.fc40.x86_64", "6.8.10-300.fc40.x86_64"),
            ("6.1.0-9-amd64", "6.1.0-18-amd64"),
            ("a", "1"),
            ("", "1"),
            ("1.0^git", "1.0.1"),
        ] {
            assert_eq!(compare(a, b), Ordering::Less, "{a} {b}");
            assert_eq!(compare(b, a), Ordering::Greater, "{b} {a}");
        }
        assert_eq!(compare("1_2", "1+2"), Ordering::Equal);
        assert_eq!(compare("1.001", "1.1"), Ordering::Equal);
    }

    #[test]
    fn debian_sorts_kernels_as_its_policy_says() {
        for (a, b) in [
            ("6.1.0-9-amd64", "6.1.0-18-amd64"),
            ("6.1.0~rc1", "6.1.0"),
            ("6.1.0", "6.1.0-1"),
            ("5.10.0-28-amd64", "6.1.0-1-amd64"),
            ("1.0a", "1.0+"),
            ("6.5.0-9-generic", "6.5.0-10-generic"),
        ] {
            assert_eq!(compare_debian(a, b), Ordering::Less, "{a} {b}");
            assert_eq!(compare_debian(b, a), Ordering::Greater, "{b} {a}");
        }
        assert_eq!(compare_debian("6.01", "6.1"), Ordering::Equal);
    }

    proptest! {
        #[test]
        fn both_are_orders(a in "[0-9a-c~.^+-]{0,8}", b in "[0-9a-c~.^+-]{0,8}", c in "[0-9a-c~.^+-]{0,8}") {
            for order in [compare, compare_debian] {
                prop_assert_eq!(order(&a, &a), Ordering::Equal);
                prop_assert_eq!(order(&a, &b), order(&b, &a).reverse());
                if order(&a, &b).is_le() && order(&b, &c).is_le() {
                    prop_assert!(order(&a, &c).is_le());
                }
            }
        }
    }
}
