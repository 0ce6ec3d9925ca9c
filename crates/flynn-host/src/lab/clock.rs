//! A host's clock that is wrong. Hosts of a lab share the kernel's clock, so the host's own `flynn-host` processes
//! are told another time: where the kernel's page of fast calls (the vDSO) has the functions that ask for it, jumps
//! to functions of our own are written, which add what the clock is off by.
//!
//! What a reader would get wrong: this sees everything of a process that asks by libc, certificates' checks
//! included, and nothing that the kernel notes by itself, such as times of files; nor shims and apps.

use std::fmt;

use serde::{Deserialize, Serialize};

/// By which the host's first process tells those it starts; a number of seconds.
pub const VARIABLE: &str = "FLYNN_LAB_CLOCK_S";

/// What a clock is off by, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offset(pub i64);

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 % 60 {
            0 => write!(f, "{:+}m", self.0 / 60),
            _ => write!(f, "{:+}s", self.0),
        }
    }
}

/// `+5m`, `-300s`, `90`, `0`.
pub fn parse(text: &str) -> Result<Offset, String> {
    let (digits, unit_s) = match (text.strip_suffix('m'), text.strip_suffix('s')) {
        (Some(minutes), _) => (minutes, 60),
        (_, Some(seconds)) => (seconds, 1),
        _ => (text, 1),
    };
    let number: Option<i64> = digits.parse().ok();
    number
        .and_then(|number| number.checked_mul(unit_s))
        .map(Offset)
        .ok_or_else(|| "give what the clock is off by, as +5m or -90s".into())
}

/// Sets this process's clock off, if it was told to. Before there are threads.
pub fn apply() -> anyhow::Result<()> {
    match std::env::var(VARIABLE) {
        Ok(text) => vdso::redirect(parse(&text).map_err(anyhow::Error::msg)?.0),
        Err(_) => Ok(()),
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod vdso {
    pub fn redirect(_: i64) -> anyhow::Result<()> {
        anyhow::bail!("clocks of labs can be set on x86-64 only")
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod vdso {
    use std::{
        ffi::{c_int, c_void},
        sync::atomic::{AtomicI64, Ordering},
    };

    use anyhow::{Context, Result, ensure};

    static OFFSET_S: AtomicI64 = AtomicI64::new(0);

    pub fn redirect(offset_s: i64) -> Result<()> {
        let maps = std::fs::read_to_string("/proc/self/maps")?;
        let range = maps
            .lines()
            .find(|line| line.ends_with("[vdso]"))
            .and_then(|line| line.split_once(' ')?.0.split_once('-'))
            .context("the kernel gives processes no vDSO")?;
        let start = usize::from_str_radix(range.0, 16)?;
        let bytes = usize::from_str_radix(range.1, 16)? - start;
        // SAFETY: the kernel has just said that this memory is there; it stays for the life of the process.
        let image = unsafe { std::slice::from_raw_parts(start as *const u8, bytes) };
        let asked: [(&str, usize); 3] = [
            ("__vdso_clock_gettime", clock_gettime as *const () as usize),
            ("__vdso_gettimeofday", gettimeofday as *const () as usize),
            ("__vdso_time", time as *const () as usize),
        ];
        let places: Vec<(usize, usize)> = asked
            .into_iter()
            .map(|(name, ours)| {
                Ok((
                    symbol(image, name).with_context(|| format!("the vDSO has no {name}"))?,
                    ours,
                ))
            })
            .collect::<Result<_>>()?;
        OFFSET_S.store(offset_s, Ordering::Relaxed);
        let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        // SAFETY: the range is the whole mapping, which is private to this process.
        let status = unsafe { libc::mprotect(start as *mut c_void, bytes, all) };
        ensure!(
            status == 0,
            "this kernel does not let the clock be set for one process: {}",
            std::io::Error::last_os_error()
        );
        for (offset, ours) in places {
            // movabs rax, OURS; jmp rax
            let mut code = [0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xe0];
            code[2..10].copy_from_slice(&ours.to_le_bytes());
            ensure!(offset + code.len() <= bytes, "the vDSO ends within a function");
            // SAFETY: inside the mapping, writable since above; functions there are 16 bytes apart at least, and no
            // other thread runs them yet.
            unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), (start + offset) as *mut u8, code.len()) };
        }
        Ok(())
    }

    /// Where the function of this name is, from the start of an ELF image (64 bits, little endian, as elf(5) has it).
    fn symbol(image: &[u8], name: &str) -> Option<usize> {
        const DYNAMIC_SYMBOLS: u64 = 11;
        const SYMBOL_BYTES: usize = 24;
        let number = |at: usize, bytes: usize| {
            let field = image.get(at..at + bytes)?;
            Some(
                field
                    .iter()
                    .rev()
                    .fold(0u64, |all, byte| all << 8 | u64::from(*byte)),
            )
        };
        let (sections, section_bytes) = (number(0x28, 8)? as usize, number(0x3a, 2)? as usize);
        let count = number(0x3c, 2)? as usize;
        let section = |index: usize| sections + index * section_bytes;
        let table = (0..count)
            .map(section)
            .find(|at| number(at + 4, 4) == Some(DYNAMIC_SYMBOLS))?;
        let names = number(section(number(table + 0x28, 4)? as usize) + 0x18, 8)? as usize;
        let (first, bytes) = (
            number(table + 0x18, 8)? as usize,
            number(table + 0x20, 8)? as usize,
        );
        (0..bytes / SYMBOL_BYTES)
            .map(|index| first + index * SYMBOL_BYTES)
            .find(|at| {
                let text = number(*at, 4).and_then(|from| image.get(names + from as usize..));
                text.is_some_and(|text| text.starts_with(name.as_bytes()) && text.get(name.len()) == Some(&0))
            })
            .and_then(|at| Some(number(at + 8, 8)? as usize))
    }

    /// As the vDSO's own: 0, or an error's number, negated.
    extern "C" fn clock_gettime(clock: c_int, time: *mut libc::timespec) -> c_int {
        // SAFETY: the arguments are the caller's, passed on as they came.
        let status = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) };
        if status != 0 {
            return -std::io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or(libc::EINVAL);
        }
        if matches!(
            clock,
            libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE | libc::CLOCK_TAI
        ) {
            // SAFETY: the kernel has just written there.
            unsafe { (*time).tv_sec += OFFSET_S.load(Ordering::Relaxed) };
        }
        0
    }

    extern "C" fn gettimeofday(time: *mut libc::timeval, zone: *mut c_void) -> c_int {
        // SAFETY: as above.
        let status = unsafe { libc::syscall(libc::SYS_gettimeofday, time, zone) };
        if status != 0 {
            return -std::io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or(libc::EINVAL);
        }
        if !time.is_null() {
            // SAFETY: the kernel has just written there.
            unsafe { (*time).tv_sec += OFFSET_S.load(Ordering::Relaxed) };
        }
        0
    }

    extern "C" fn time(into: *mut libc::time_t) -> libc::time_t {
        // SAFETY: asks for nothing to be written.
        let now = unsafe { libc::syscall(libc::SYS_time, std::ptr::null_mut::<libc::time_t>()) };
        let now = now + OFFSET_S.load(Ordering::Relaxed);
        if !into.is_null() {
            // SAFETY: the caller gave a place for the time.
            unsafe { *into = now };
        }
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_clock_is_off_by_is_said_in_minutes_or_seconds() {
        assert_eq!(parse("+5m"), Ok(Offset(300)));
        assert_eq!(parse("-90s"), Ok(Offset(-90)));
        assert_eq!(parse("0"), Ok(Offset(0)));
        assert!(parse("soon").is_err());
        assert_eq!(Offset(300).to_string(), "+5m");
        assert_eq!(Offset(-90).to_string(), "-90s");
    }
}
