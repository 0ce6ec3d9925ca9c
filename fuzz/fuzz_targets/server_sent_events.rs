#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzzing::target("server_sent_events").expect("it exists")(bytes));
