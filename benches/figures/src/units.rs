//! Values as people read them.

/// A value with its unit, in about three digits: `14.9 ms`, `7.0 MiB`, `62,500/s`.
#[must_use]
pub fn human(value: f64, unit: &str) -> String {
    match unit {
        "us" if value >= 1e6 => format!("{:.2} s", value / 1e6),
        "us" if value >= 1e3 => format!("{} ms", digits(value / 1e3)),
        "bytes" if value >= 1024.0 * 1024.0 => format!("{:.1} MiB", value / 1024.0 / 1024.0),
        "bytes" => format!("{:.1} KiB", value / 1024.0),
        "1/s" => format!("{}/s", grouped(value)),
        _ => format!("{} {unit}", digits(value)),
    }
}

fn digits(value: f64) -> String {
    let places = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.places$}")
}

/// Whole, with a comma between thousands.
fn grouped(value: f64) -> String {
    let plain = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in plain.chars().enumerate() {
        if place > 0 && (plain.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::human;

    #[test]
    fn values_are_read_in_three_digits() {
        assert_eq!(human(14_912.0, "us"), "14.9 ms");
        assert_eq!(human(126_000.0, "us"), "126 ms");
        assert_eq!(human(2_500_000.0, "us"), "2.50 s");
        assert_eq!(human(37.44, "us"), "37.4 us");
        assert_eq!(human(7_340_032.0, "bytes"), "7.0 MiB");
        assert_eq!(human(2048.0, "bytes"), "2.0 KiB");
        assert_eq!(human(62_499.6, "1/s"), "62,500/s");
        assert_eq!(human(999.0, "1/s"), "999/s");
        assert_eq!(human(1_234_567.0, "1/s"), "1,234,567/s");
        assert_eq!(human(0.69, "ms"), "0.69 ms");
    }
}
