use types::RouteKind;

use crate::{
    context::Context,
    failure::Result,
    git,
    output::{self, row},
};

/// Show app information
///
/// Show where an app is pushed to and where it is reached.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:

  $ flynn -a shop info
  === shop
  Git URL:  https://git.flynn.example.com/shop.git
  Web URL:  http://shop.flynn.example.com")]
pub struct Args {
    /// Print the app and its addresses as JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    pub async fn run(self, context: &Context) -> Result<()> {
        let app = context.app_row().await?;
        let routes = context.controller()?.app_routes(&app.id.to_string()).await?;
        let cluster = context.cluster()?;
        let mut web_urls = vec![];
        // Oldest first: the app's own address stands before those that were added to it.
        for view in routes
            .iter()
            .rev()
            .filter(|view| view.route.kind == RouteKind::Http)
        {
            let route = &view.route;
            let path = if route.path == "/" { "" } else { &route.path };
            let has_certificate = view.certificate.is_some() || route.certificate_id.is_some();
            let origin = web_origin(
                &cluster.controller_url,
                &route.domain,
                route.port,
                has_certificate,
            );
            web_urls.push(format!("{origin}{path}"));
        }
        let git_url = (!cluster.git_url.is_empty()).then(|| git::app_url(&cluster.git_url, &app.name));
        if self.json {
            let (id, name) = (app.id, &app.name);
            output::print_json(
                &serde_json::json!({ "id": id, "name": name, "git_url": git_url, "web_urls": web_urls }),
            );
            return Ok(());
        }
        output::print_line(&format!("=== {}", app.name));
        let mut rows = vec![];
        rows.extend(git_url.map(|url| row(["Git URL:", &url])));
        rows.extend(web_urls.iter().map(|url| row(["Web URL:", url])));
        output::print_table(&rows);
        Ok(())
    }
}

/// Scheme, domain and port of a route. On a cluster whose HTTPS port is not 443 that port is the
/// one known to lead there, so it is used for routes without a certificate of their own too.
fn web_origin(controller_url: &str, domain: &str, route_port: u16, has_certificate: bool) -> String {
    let (scheme, rest) = controller_url
        .split_once("://")
        .unwrap_or(("https", controller_url));
    let cluster_port = rest
        .rsplit_once(':')
        .and_then(|(_, port)| port.trim_end_matches('/').parse::<u16>().ok());
    if route_port != 0 {
        let scheme = if has_certificate { "https" } else { "http" };
        return format!("{scheme}://{domain}:{route_port}");
    }
    match (scheme, cluster_port) {
        (_, None) | ("https", Some(443)) | ("http", Some(80)) => {
            format!("{}://{domain}", if has_certificate { "https" } else { "http" })
        }
        (scheme, Some(port)) => format!("{scheme}://{domain}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_web_address_has_the_port_that_leads_to_the_cluster() {
        for (controller, port, certificate, expected) in [
            ("https://controller.x.test", 0, false, "http://a.x.test"),
            ("https://controller.x.test:443", 0, true, "https://a.x.test"),
            (
                "https://controller.x.test:8443",
                0,
                false,
                "https://a.x.test:8443",
            ),
            ("http://controller.x.test:8080", 0, false, "http://a.x.test:8080"),
            ("https://controller.x.test", 81, false, "http://a.x.test:81"),
        ] {
            assert_eq!(
                web_origin(controller, "a.x.test", port, certificate),
                expected,
                "{controller}"
            );
        }
    }
}
