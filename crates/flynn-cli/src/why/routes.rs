//! Routes that lead nowhere, and names without a certificate.

use api::wire::RouteView;
use types::{Route, RouteKind};

use super::{Cause, Facts, Standing};

pub(super) fn causes(facts: &Facts, types: &[Standing]) -> Vec<Cause> {
    let app = &facts.app.name;
    let mut causes = vec![];
    for view in &facts.routes {
        let route = &view.route;
        let providers: Vec<&Standing> = types
            .iter()
            .filter(|standing| standing.services(app).contains(&route.service))
            .collect();
        let names: Vec<&str> = providers.iter().map(|standing| standing.name).collect();
        if providers.is_empty() {
            let hint = format!(
                "lead it elsewhere: `flynn -a {app} route update {} -s SERVICE`",
                route.formatted_id()
            );
            let what = format!(
                "{} leads to the service {}, which no process type of {app} provides",
                address(route),
                route.service
            );
            causes.push(Cause::new(what).with_hint(hint));
        } else if providers.iter().all(|standing| standing.up == 0) {
            let answer = match route.kind {
                RouteKind::Http => "answers 503",
                RouteKind::Tcp => "accepts no connection",
            };
            causes.push(Cause::new(format!(
                "{} {answer}: no {} job is up to lead to",
                address(route),
                names.join(" or ")
            )));
        }
        if lacks_certificate(facts, view) {
            let what = format!(
                "{} has no certificate: browsers warn of https there, which is answered with the cluster's own",
                address(route)
            );
            let hint = format!(
                "give it one: `flynn -a {app} route update {} -c CERT.pem -k KEY.pem`",
                route.formatted_id()
            );
            causes.push(Cause::new(what).with_hint(hint));
        }
    }
    causes
}

fn address(route: &Route) -> String {
    match route.kind {
        RouteKind::Tcp => format!("tcp port {}", route.port),
        RouteKind::Http if route.path == "/" || route.path.is_empty() => route.domain.clone(),
        RouteKind::Http => format!("{}{}", route.domain, route.path),
    }
}

fn lacks_certificate(facts: &Facts, view: &RouteView) -> bool {
    let route = &view.route;
    let is_own = route.domain.ends_with(&format!(".{}", facts.domain));
    let has_one = view.certificate.is_some() || route.certificate_id.is_some();
    route.kind == RouteKind::Http && !has_one && !facts.domain.is_empty() && !is_own
}
