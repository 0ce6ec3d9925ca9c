#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzzing::target("attach_frames").expect("it exists")(bytes));
