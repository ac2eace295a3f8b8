//! Chinese numerals: 37 is 三十七, and 2 of something is 两.

const DIGITS: [&str; 10] = ["零", "一", "二", "三", "四", "五", "六", "七", "八", "九"];

/// Writes `number` (0 to 9999) as it is read aloud: 12 is 十二, 110 is 一百一十, 1005 is 一千零五.
///
/// Larger numbers keep counting thousands; the corpus has none.
pub fn numeral(number: u32) -> String {
    match number {
        0 => DIGITS[0].into(),
        // 十二, but 一百一十二: the leading 一 is dropped only where nothing stands before it.
        10..=19 => format!("十{}", ones(number % 10)),
        _ => read(number),
    }
}

/// Writes `number` before a measure word: 两天, 两个, but 十二天.
pub fn count(number: u32) -> String {
    if number == 2 {
        "两".into()
    } else {
        numeral(number)
    }
}

fn ones(digit: u32) -> &'static str {
    if digit == 0 {
        ""
    } else {
        DIGITS[digit as usize]
    }
}

fn read(number: u32) -> String {
    for (unit, name) in [(1000, "千"), (100, "百"), (10, "十")] {
        if number >= unit {
            let rest = number % unit;
            let gap = if rest > 0 && rest < unit / 10 {
                "零"
            } else {
                ""
            };
            return format!("{}{name}{gap}{}", read(number / unit), read(rest));
        }
    }
    ones(number).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a numeral left to right, knowing nothing of how it was written.
    fn parse(text: &str) -> u32 {
        let (mut total, mut digit) = (0, None);
        for c in text.chars() {
            let unit = match c {
                '十' => 10,
                '百' => 100,
                '千' => 1000,
                _ => {
                    digit = "零一二三四五六七八九".chars().position(|d| d == c);
                    assert!(digit.is_some(), "{c} in {text}");
                    continue;
                }
            };
            total += unit * digit.take().unwrap_or(1) as u32;
        }
        total + digit.unwrap_or(0) as u32
    }

    #[test]
    fn every_numeral_parses_back_and_is_spelt_as_people_do() {
        for number in 0..10_000 {
            assert_eq!(parse(&numeral(number)), number, "{}", numeral(number));
        }
        for (number, text) in [
            (0, "零"),
            (10, "十"),
            (12, "十二"),
            (20, "二十"),
            (62, "六十二"),
            (100, "一百"),
            (105, "一百零五"),
            (110, "一百一十"),
            (115, "一百一十五"),
            (1005, "一千零五"),
            (1050, "一千零五十"),
            (9999, "九千九百九十九"),
        ] {
            assert_eq!(numeral(number), text);
        }
    }

    #[test]
    fn two_changes_only_alone() {
        assert_eq!(
            [count(1), count(2), count(12), count(20)],
            ["一", "两", "十二", "二十"]
        );
    }
}
