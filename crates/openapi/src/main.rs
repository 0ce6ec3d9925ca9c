//! `cargo run -p openapi`: writes `docs/api/*.json`.

fn main() -> std::io::Result<()> {
    for (name, api) in openapi::all() {
        std::fs::write(openapi::directory().join(name), openapi::text(&api))?;
    }
    Ok(())
}
