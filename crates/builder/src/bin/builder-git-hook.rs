//! The pre-receive hook as a program of its own, for the crate's tests; `flynn-host git-hook` is the
//! same function.

fn main() -> std::process::ExitCode {
    builder::hook::main()
}
