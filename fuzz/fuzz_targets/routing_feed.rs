#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzzing::target("routing_feed").expect("it exists")(bytes));
