//! Makes the cluster's [`State`] a [`Machine`]: here, because the state must not know of stores.

use std::io::{self, Read, Write};

use state::{Command, Outcome, State};

use crate::machine::Machine;

impl Machine for State {
    type Command = Command;
    type Outcome = Outcome;

    fn apply(&mut self, index: u64, command: Command) -> Outcome {
        State::apply(self, index, command)
    }

    fn write_snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
        self.write_image(out).map_err(io::Error::other)
    }

    fn read_snapshot(input: &mut dyn Read) -> io::Result<Self> {
        // The JSON reader asks for single bytes.
        State::read_image(&mut io::BufReader::with_capacity(1 << 18, input)).map_err(io::Error::other)
    }
}
