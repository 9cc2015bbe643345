//! Which of two versions is newer (UAPI.10).

use std::cmp::Ordering;

/// Compares so that the newer one is greater.
pub(super) fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        (a, b) = (skip_others(a), skip_others(b));
        // What a tilde introduces is older than nothing at all.
        if let Some(decided) = by_mark(&mut a, &mut b, b'~', Ordering::Less) {
            return decided;
        }
        if a.is_empty() || b.is_empty() {
            return a.len().cmp(&b.len());
        }
        for mark in [b'-', b'^', b'.'] {
            if let Some(decided) = by_mark(&mut a, &mut b, mark, Ordering::Less) {
                return decided;
            }
        }
        let numeric = a.first().is_some_and(u8::is_ascii_digit) || b.first().is_some_and(u8::is_ascii_digit);
        let order = if numeric { by_number(&mut a, &mut b) } else { by_letters(&mut a, &mut b) };
        if order != Ordering::Equal {
            return order;
        }
    }
}

fn skip_others(text: &[u8]) -> &[u8] {
    let counts = |b: &u8| b.is_ascii_alphanumeric() || b"~-^.".contains(b);
    &text[text.iter().position(counts).unwrap_or(text.len())..]
}

/// Skips `mark` on both sides; if only one has it, that one is `with`.
fn by_mark(a: &mut &[u8], b: &mut &[u8], mark: u8, with: Ordering) -> Option<Ordering> {
    match (a.first() == Some(&mark), b.first() == Some(&mark)) {
        (true, true) => {
            (*a, *b) = (&a[1..], &b[1..]);
            None
        }
        (true, false) => Some(with),
        (false, true) => Some(with.reverse()),
        (false, false) => None,
    }
}

fn take<'a>(text: &mut &'a [u8], fits: fn(&u8) -> bool) -> &'a [u8] {
    let end = text.iter().position(|b| !fits(b)).unwrap_or(text.len());
    let (taken, rest) = text.split_at(end);
    *text = rest;
    taken
}

/// Leading zeros do not count, so the longer number is the larger one.
fn by_number<'a>(a: &mut &'a [u8], b: &mut &'a [u8]) -> Ordering {
    let [a, b] = [a, b].map(|text| {
        let digits = take(text, u8::is_ascii_digit);
        &digits[digits.iter().position(|d| *d != b'0').unwrap_or(digits.len())..]
    });
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

fn by_letters(a: &mut &[u8], b: &mut &[u8]) -> Ordering {
    take(a, u8::is_ascii_alphabetic).cmp(take(b, u8::is_ascii_alphabetic))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn versions_ascend() {
        let ascending = [
            "",
            "~1",
            "1~rc1",
            "1",
            "1-1",
            "1^1",
            "1.0",
            "6.1.0-9-amd64",
            "6.1.0-10-amd64",
            "6.8.5-301.fc40",
            "10",
        ];
        // The specification's own chain begins with what a tilde introduces.
        let ascending = [&["~1", ""], &ascending[2..]].concat();
        for pair in ascending.windows(2) {
            assert_eq!(compare(pair[0], pair[1]), Ordering::Less, "{pair:?}");
        }
    }

    proptest! {
        #[test]
        fn order_is_the_same_from_both_sides(a in "[0-9a-c~^._-]{0,12}", b in "[0-9a-c~^._-]{0,12}") {
            prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
            prop_assert_eq!(compare(&a, &a), Ordering::Equal);
        }

        #[test]
        fn order_is_transitive(mut v in prop::collection::vec("[0-9a-b~^.-]{0,5}", 3)) {
            // The standard sort panics or misplaces if it is not.
            v.sort_by(|a, b| compare(a, b));
            prop_assert!(compare(&v[0], &v[2]) != Ordering::Greater);
        }
    }
}
