//! Adding, changing and removing routes.

use serde_json::json;

use crate::{bench::Bench, fake::Fake};

#[test]
fn routes_are_added_listed_changed_and_removed() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    let mut text = bench.transcript(&[
        "-a shop route",
        "-a shop route add http example.com",
        "-a shop route:add http example.com/path/",
        "-a shop route add http example.com",
        "-a shop route add http http://example.com",
        "-a shop route add http -s other --sticky --leader --no-drain-backends other.example.com",
        "-a shop route add tcp",
        "-a shop route add tcp -p 3005 -s my-tcp --leader",
        "-a shop route",
        "-a shop info",
    ]);
    let (tcp, http) = {
        let state = fake.state();
        (
            state.routes[0].route.formatted_id(),
            state.routes[2].route.formatted_id(),
        )
    };
    text.push_str(&bench.transcript(&[
        &format!("-a shop route update {http} --no-sticky"),
        &format!("-a shop route update {tcp} --no-leader"),
        &format!("-a shop route update {tcp} --sticky"),
        &format!("-a shop route remove {http}"),
        &format!("-a shop route remove {http}"),
        "-a shop route remove nonsense",
        "-a shop route",
    ]));
    insta::assert_snapshot!(text.replace(&format!(":{}", fake.address.port()), ":PORT"));
}

#[test]
fn a_route_keeps_its_certificate_when_it_is_changed() {
    let fake = Fake::start();
    let bench = Bench::of(&fake);
    fake.deployed_app("shop");
    for name in ["cert", "key"] {
        let pem = format!("-----BEGIN {name}-----\nxx\n-----END {name}-----\n");
        std::fs::write(bench.directory.join(format!("{name}.pem")), pem).unwrap();
    }
    std::fs::write(bench.directory.join("other.txt"), "hello").unwrap();
    let add = "-a shop route add http -c cert.pem -k key.pem tls.example.com";
    let mut text = bench.transcript(&[
        add,
        &add.replace("cert.pem", "other.txt"),
        &add.replace("cert.pem", "missing.pem"),
        "-a shop route add http -c cert.pem tls.example.com",
    ]);
    let id = fake.state().routes[0].route.formatted_id();
    text.push_str(&bench.transcript(&[&format!("-a shop route update {id} --sticky"), "-a shop route"]));
    insta::assert_snapshot!(text);
    let requests = &fake.state().requests;
    // The controller does not give the key back: sending the rest would be half a certificate.
    assert_eq!(requests[1].1.get("certificate"), None);
    assert_eq!(requests[1].1["sticky"], json!(true));
    assert_eq!(requests[1].1["drain_backends"], json!(true));
}
