#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzzing::target("chunked_body").expect("it exists")(bytes));
