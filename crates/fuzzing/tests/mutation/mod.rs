//! Makes inputs out of seeds: bytes changed, lines moved, numbers replaced, seeds joined.
//!
//! Without knowledge of what a target did with an input, so that most of what is made must already be
//! near what is accepted: few changes to a seed, many of them to whole lines, words and numbers.

/// Random numbers that one number decides (splitmix64).
pub struct Dice(pub u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Less than `end`; 0 where that is 0.
    fn below(&mut self, end: usize) -> usize {
        if end == 0 {
            0
        } else {
            (self.next() % end as u64) as usize
        }
    }

    fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

const NUMBERS: &[&str] = &[
    "0",
    "-0",
    "-1",
    "1",
    "255",
    "256",
    "65535",
    "65536",
    "2147483647",
    "2147483648",
    "-2147483648",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "-9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "0.5",
    "1e400",
    "000",
    "ffffffffffffffff",
];

const WORDS: &[&[u8]] = &[
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b";",
    b",",
    b"=",
    b"\"",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"{}",
    b"[]",
    b"null",
    b"true",
    b"\"\"",
    b"/",
    b"//",
    b"..",
    b"*",
    b"%00",
    b"\x80",
    b"\xff\xff\xff\xff",
    b"\xc0\x0c",
    "é".as_bytes(),
    "\u{202e}".as_bytes(),
    b"http://a/",
    b"chunked",
    b"Content-Length: 1\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Host: a\r\n",
    b"9999-12-31T23:59:59.999999Z",
    b"-9999-01-01T00:00:00Z",
    b"0000-01-01T00:00:00+23:59",
    b"00000000-0000-0000-0000-000000000001",
];

const BYTES_MAX: usize = 16 << 10;

/// One input: usually a seed with a few changes.
pub fn input(dice: &mut Dice, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut input = seeds[dice.below(seeds.len())].clone();
    let changes = 1 + dice.below(6);
    for _ in 0..changes {
        change(dice, &mut input, seeds);
    }
    input.truncate(BYTES_MAX);
    input
}

fn change(dice: &mut Dice, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    match dice.below(12) {
        0 => {
            let at = dice.below(input.len());
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << dice.below(8);
            }
        }
        1 => {
            let (at, new) = (dice.below(input.len()), dice.next() as u8);
            if let Some(byte) = input.get_mut(at) {
                *byte = new;
            }
        }
        2 => {
            let at = dice.below(input.len() + 1);
            input.insert(at, dice.next() as u8);
        }
        3 => {
            let range = range(dice, input.len());
            input.drain(range);
        }
        4 => {
            let range = range(dice, input.len());
            let copy = input[range].to_vec();
            let at = dice.below(input.len() + 1);
            input.splice(at..at, copy);
        }
        5 | 6 => {
            let at = dice.below(input.len() + 1);
            let word = dice.pick(WORDS);
            let over = if dice.below(2) == 0 { 0 } else { word.len() };
            let end = (at + over).min(input.len());
            input.splice(at..end, word.iter().copied());
        }
        7 | 8 => replace_number(dice, input),
        9 => move_line(dice, input),
        10 => {
            let other = &seeds[dice.below(seeds.len())];
            let piece = &other[range(dice, other.len())];
            let at = dice.below(input.len() + 1);
            input.splice(at..at, piece.iter().copied());
        }
        _ => {
            let length = dice.below(input.len() + 1);
            input.truncate(length);
        }
    }
}

/// Mostly short: long ones leave little of a seed.
fn range(dice: &mut Dice, length: usize) -> std::ops::Range<usize> {
    let start = dice.below(length);
    let longest = if dice.below(4) == 0 { length } else { 16 };
    let end = (start + dice.below(longest + 1)).min(length);
    start..end
}

fn replace_number(dice: &mut Dice, input: &mut Vec<u8>) {
    let digits: Vec<_> = (0..input.len())
        .filter(|at| input[*at].is_ascii_digit() && (*at == 0 || !input[*at - 1].is_ascii_digit()))
        .collect();
    let Some(start) = digits.get(dice.below(digits.len())) else {
        return;
    };
    let length = input[*start..]
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    let number = dice.pick(NUMBERS);
    input.splice(*start..*start + length, number.bytes());
}

/// Takes a line to another place, or copies it there.
fn move_line(dice: &mut Dice, input: &mut Vec<u8>) {
    let mut lines: Vec<Vec<u8>> = input
        .split_inclusive(|byte| *byte == b'\n')
        .map(<[u8]>::to_vec)
        .collect();
    if lines.is_empty() {
        return;
    }
    let from = dice.below(lines.len());
    let line = if dice.below(2) == 0 {
        lines.remove(from)
    } else {
        lines[from].clone()
    };
    let to = dice.below(lines.len() + 1);
    lines.insert(to, line);
    *input = lines.concat();
}
