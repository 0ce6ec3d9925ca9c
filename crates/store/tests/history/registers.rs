//! The state under test: registers that are written, and swapped where they are as expected.

use std::io::{self, Read, Write};

use imbl::OrdMap;
use serde::{Deserialize, Serialize};
use store::Machine;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Registers {
    pub values: OrdMap<u64, u64>,
    /// Depends on the order of all commands: equal only after equal histories.
    pub history: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Command {
    Write { register: u64, value: u64 },
    Swap { register: u64, from: u64, to: u64 },
}

impl Registers {
    pub fn value(&self, register: u64) -> u64 {
        self.values.get(&register).copied().unwrap_or(0)
    }
}

impl Machine for Registers {
    type Command = Command;
    /// Whether the register was changed.
    type Outcome = bool;

    fn apply(&mut self, index: u64, command: Command) -> bool {
        let (register, value, is_to_be) = match command {
            Command::Write { register, value } => (register, value, true),
            Command::Swap { register, from, to } => (register, to, self.value(register) == from),
        };
        self.history = (self.history ^ index ^ value).wrapping_mul(0x100_0000_01b3);
        if is_to_be {
            self.values.insert(register, value);
        }
        is_to_be
    }

    fn write_snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        Ok(serde_json::to_writer(out, self)?)
    }

    fn read_snapshot(input: &mut dyn Read) -> io::Result<Self> {
        Ok(serde_json::from_reader(input)?)
    }
}
