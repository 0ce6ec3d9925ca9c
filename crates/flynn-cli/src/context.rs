//! What a command is about: which cluster, which app, and the controller to ask.
//!
//! The app: `-a`, FLYNN_APP, the setting `flynn.app` of the checkout, its remote `flynn`, or its
//! only remote on a known cluster. The cluster: `-c`, FLYNN_CLUSTER, that of the remote which named
//! the app, the default, or the only one there is.

use std::sync::OnceLock;

use api::{Controller, Endpoint, Trust};
use types::{App, Release};

use crate::{
    authority,
    config::{Cluster, Config},
    failure::{Failure, Result},
    git,
    output::nearest,
};

pub struct Context {
    app_option: Option<String>,
    cluster_option: Option<String>,
    resolved: OnceLock<Target>,
}

/// What was found out, once for all of a command.
struct Target {
    cluster: Cluster,
    /// `None` if nothing names one.
    app: Option<String>,
    controller: Controller,
}

impl Context {
    pub fn new(app: Option<String>, cluster: Option<String>) -> Context {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Context {
            app_option: app.or_else(|| variable("FLYNN_APP")),
            cluster_option: cluster.or_else(|| variable("FLYNN_CLUSTER")),
            resolved: OnceLock::new(),
        }
    }

    /// The app given by option or environment, without a look at the checkout.
    pub fn given_app(&self) -> Option<&str> {
        self.app_option.as_deref()
    }

    pub fn cluster(&self) -> Result<&Cluster> {
        Ok(&self.target()?.cluster)
    }

    pub fn controller(&self) -> Result<&Controller> {
        Ok(&self.target()?.controller)
    }

    /// The app's name or id, as it was given.
    pub fn app(&self) -> Result<&str> {
        let target = self.target()?;
        target.app.as_deref().ok_or_else(|| {
            let hint = if git::is_checkout() {
                "name it with -a, or give this checkout a remote: `flynn -a APP remote add`"
            } else {
                "name it with -a (`flynn apps` lists them), or go to its git checkout"
            };
            Failure::new("no app is named").with_hint(hint)
        })
    }

    /// The app as the controller knows it.
    pub async fn app_row(&self) -> Result<App> {
        Ok(self.controller()?.app(self.app()?).await?)
    }

    /// The app's current release.
    pub async fn release(&self) -> Result<Release> {
        self.find_release().await?.ok_or_else(|| {
            Failure::new("the app has no release yet").with_hint("deploy it first: `git push flynn main`")
        })
    }

    /// The app's current release, unless it has none yet.
    pub async fn find_release(&self) -> Result<Option<Release>> {
        let (controller, app) = (self.controller()?, self.app()?);
        match controller.app_release(app).await {
            Ok(release) => Ok(Some(release)),
            Err(error) if error.is_not_found() => {
                // The app itself may be what is missing.
                controller.app(app).await?;
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// After a command that spoke to a cluster.
    pub async fn keep_authority_fresh(&self) {
        if let Some(target) = self.resolved.get() {
            authority::keep_fresh(&target.cluster, &target.controller).await;
        }
    }

    fn target(&self) -> Result<&Target> {
        if let Some(target) = self.resolved.get() {
            return Ok(target);
        }
        let config = Config::load()?;
        let from_git = match &self.app_option {
            Some(_) => None,
            None => app_of_checkout(
                &config,
                self.cluster_option.as_deref(),
                &git::remotes(),
                git::setting("flynn.app"),
            )?,
        };
        let wanted = self
            .cluster_option
            .clone()
            .or_else(|| from_git.as_ref().and_then(|found| found.cluster.clone()));
        let cluster = choose_cluster(&config, wanted.as_deref())?.clone();
        let controller = connect(&cluster)?;
        let app = self.app_option.clone().or(from_git.map(|found| found.app));
        Ok(self.resolved.get_or_init(|| Target {
            cluster,
            app,
            controller,
        }))
    }

    /// Says that the app does not exist, where that is behind a failure.
    pub async fn explain(&self, failure: Failure) -> Failure {
        let Some(Target {
            app: Some(app),
            controller,
            ..
        }) = self.resolved.get()
        else {
            return failure;
        };
        if !failure.is_not_found || !controller.app(app).await.is_err_and(|error| error.is_not_found()) {
            return failure;
        }
        let apps = controller.apps().await.unwrap_or_default();
        let hint = match nearest(app, apps.iter().map(|app| app.name.as_str())) {
            Some(near) => format!("did you mean {near}? `flynn apps` lists all"),
            None => "`flynn apps` lists all apps of this cluster".into(),
        };
        Failure::new(format!("app \"{app}\" not found")).with_hint(hint)
    }
}

pub fn connect(cluster: &Cluster) -> Result<Controller> {
    connect_trusting(cluster, authority::trust(cluster))
}

pub fn connect_trusting(cluster: &Cluster, trust: Trust) -> Result<Controller> {
    let endpoint = Endpoint {
        url: cluster.controller_url.clone(),
        key: cluster.key.clone(),
        trust,
    };
    Ok(Controller::new(&endpoint)?)
}

fn choose_cluster<'a>(config: &'a Config, wanted: Option<&str>) -> Result<&'a Cluster> {
    let names = || {
        config
            .clusters
            .iter()
            .map(|cluster| cluster.name.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    };
    let add = "add one with `flynn cluster add -p PIN NAME DOMAIN KEY`";
    if let Some(name) = wanted {
        return config.cluster(name).ok_or_else(|| {
            let failure = Failure::new(format!("unknown cluster \"{name}\""));
            if config.clusters.is_empty() {
                failure.with_hint(add)
            } else {
                failure.with_hint(format!("there is {}", names()))
            }
        });
    }
    match (config.cluster(&config.default), config.clusters.as_slice()) {
        (Some(cluster), _) => Ok(cluster),
        (None, [cluster]) => Ok(cluster),
        (None, []) => Err(Failure::new("no cluster is configured").with_hint(add)),
        (None, _) => Err(
            Failure::new("no cluster is named and none is the default").with_hint(format!(
                "name one with -c ({}), or choose with `flynn cluster default NAME`",
                names()
            )),
        ),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct FromCheckout {
    app: String,
    /// `None` where the setting `flynn.app` named the app.
    cluster: Option<String>,
}

/// The app that a checkout belongs to, looking at one cluster only if that is given.
fn app_of_checkout(
    config: &Config,
    cluster: Option<&str>,
    remotes: &[git::Remote],
    setting: Option<String>,
) -> Result<Option<FromCheckout>> {
    if let Some(app) = setting {
        return Ok(Some(FromCheckout { app, cluster: None }));
    }
    let clusters: Vec<&Cluster> = config
        .clusters
        .iter()
        .filter(|known| cluster.is_none_or(|name| name == known.name))
        .collect();
    let mut found = vec![];
    for remote in remotes {
        // Two names for one cluster are no doubt about it: the default's is taken.
        let mut matching: Vec<_> = clusters
            .iter()
            .filter_map(|cluster| {
                Some((
                    cluster.name.clone(),
                    git::app_of_url(&remote.url, &cluster.git_url)?,
                ))
            })
            .collect();
        matching.sort_by_key(|(name, _)| *name != config.default);
        if let Some((cluster, app)) = matching.into_iter().next() {
            found.push((
                remote.name.as_str(),
                FromCheckout {
                    app,
                    cluster: Some(cluster),
                },
            ));
        }
    }
    if let Some(at) = found.iter().position(|(name, _)| *name == "flynn") {
        return Ok(Some(found.swap_remove(at).1));
    }
    if found.len() > 1 {
        let names: Vec<&str> = found.iter().map(|(name, _)| *name).collect();
        return Err(Failure::new(format!(
            "this checkout has several apps: the remotes {}",
            names.join(", ")
        ))
        .with_hint("name one with -a, or set it for this checkout: `git config flynn.app APP`"));
    }
    Ok(found.pop().map(|(_, app)| app))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clusters as `NAME=DOMAIN`, the default one with a `*` before it.
    fn config(clusters: &[&str]) -> Config {
        let mut config = Config::load_from("/nonexistent/flynnrc".into()).unwrap();
        for text in clusters {
            let (name, domain) = text.trim_start_matches('*').split_once('=').unwrap();
            config.put(Cluster {
                name: name.into(),
                controller_url: format!("https://controller.{domain}"),
                git_url: format!("https://git.{domain}"),
                ..Cluster::default()
            });
            if text.starts_with('*') {
                config.set_default(name);
            }
        }
        config
    }

    fn check(clusters: &[&str], cluster: Option<&str>, remotes: &[(&str, &str)], expected: &str) {
        let remotes: Vec<_> = remotes
            .iter()
            .map(|(name, url)| git::Remote {
                name: (*name).into(),
                url: (*url).into(),
            })
            .collect();
        let found = match app_of_checkout(&config(clusters), cluster, &remotes, None) {
            Ok(Some(found)) => format!("{} on {}", found.app, found.cluster.unwrap_or_default()),
            Ok(None) => "nothing".into(),
            Err(failure) => failure.message,
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn the_remote_named_flynn_tells_the_app_and_its_cluster() {
        let remotes = [
            ("origin", "https://github.com/x.git"),
            ("b", "https://git.two/b.git"),
            ("flynn", "https://git.one/a.git"),
        ];
        check(&["*one=one", "two=two"], None, &remotes, "a on one");
        check(&["*one=one", "two=two"], Some("two"), &remotes, "b on two");
    }

    #[test]
    fn without_it_the_only_remote_on_a_cluster_does() {
        check(
            &["one=one"],
            None,
            &[
                ("origin", "https://github.com/x.git"),
                ("live", "https://git.one/a.git"),
            ],
            "a on one",
        );
        check(
            &["one=one"],
            None,
            &[("origin", "https://github.com/x.git")],
            "nothing",
        );
        check(
            &["one=one"],
            None,
            &[
                ("live", "https://git.one/a.git"),
                ("test", "https://git.one/b.git"),
            ],
            "this checkout has several apps: the remotes live, test",
        );
    }

    #[test]
    fn of_two_names_for_one_cluster_the_default_counts() {
        check(
            &["old=one", "*new=one"],
            None,
            &[("flynn", "https://git.one/a.git")],
            "a on new",
        );
    }

    #[test]
    fn a_cluster_is_chosen_or_the_user_is_told_how() {
        let choose = |clusters: &[&str], wanted: Option<&str>| match choose_cluster(&config(clusters), wanted)
        {
            Ok(cluster) => cluster.name.clone(),
            Err(failure) => failure.render(),
        };
        assert_eq!(choose(&["a=a"], None), "a");
        assert_eq!(choose(&["a=a", "*b=b"], None), "b");
        assert_eq!(choose(&["a=a", "*b=b"], Some("a")), "a");
        insta::assert_snapshot!(choose(&["a=a", "b=b"], None), @r"
        error: no cluster is named and none is the default
        hint: name one with -c (a, b), or choose with `flynn cluster default NAME`
        ");
        insta::assert_snapshot!(choose(&["a=a", "b=b"], Some("c")), @r#"
        error: unknown cluster "c"
        hint: there is a, b
        "#);
        insta::assert_snapshot!(choose(&[], None), @r"
        error: no cluster is configured
        hint: add one with `flynn cluster add -p PIN NAME DOMAIN KEY`
        ");
    }
}
