//! The configuration file: which clusters there are, their keys, and which is the default.
//!
//! `~/.flynnrc` (or what FLYNNRC names) is TOML in the original's form. It belongs to the user: it
//! is edited, not written anew, so that comments and fields that this version does not know stay.
//! It holds keys, so it is readable by its owner only; a change replaces it in one step.

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, value};

use crate::failure::{Failure, Result};

/// One `[[cluster]]` of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cluster {
    pub name: String,
    pub key: String,
    /// Base64 of the SHA-256 of the controller's certificate; empty where the system's authorities
    /// are trusted.
    pub tls_pin: String,
    pub controller_url: String,
    /// Empty where git is not set up.
    pub git_url: String,
    pub image_url: String,
    pub docker_push_url: String,
}

impl Cluster {
    /// What stands behind `controller.` in the cluster's address; `None` where it is not named so.
    pub fn domain(&self) -> Option<&str> {
        let rest = self
            .controller_url
            .split_once("://")
            .map_or(self.controller_url.as_str(), |(_, rest)| rest);
        let host = rest.split([':', '/']).next().unwrap_or_default();
        host.strip_prefix("controller.")
    }
}

pub struct Config {
    path: PathBuf,
    document: DocumentMut,
    pub clusters: Vec<Cluster>,
    /// Empty where there is none.
    pub default: String,
}

/// Where the configuration is: FLYNNRC, else `.flynnrc` in the home directory.
pub fn path() -> Result<PathBuf> {
    match std::env::var_os("FLYNNRC").filter(|path| !path.is_empty()) {
        Some(path) => Ok(path.into()),
        None => Ok(home()?.join(".flynnrc")),
    }
}

/// Where the authorities of clusters are kept, for git.
pub fn ca_cert_path(cluster: &str) -> Result<PathBuf> {
    Ok(home()?.join(".flynn/ca-certs").join(format!("{cluster}.pem")))
}

fn home() -> Result<PathBuf> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    home.map(PathBuf::from)
        .ok_or_else(|| Failure::new("HOME is not set, so there is no place for the configuration"))
}

impl Config {
    pub fn load() -> Result<Config> {
        Config::load_from(path()?)
    }

    /// A file that does not exist is an empty configuration.
    pub(crate) fn load_from(path: PathBuf) -> Result<Config> {
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(Failure::new(format!("cannot read {}: {error}", path.display()))),
        };
        let document: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| {
            let line = error.span().map_or(1, |span| {
                text[..span.start.min(text.len())].matches('\n').count() + 1
            });
            let message = format!("{}, line {line}: {}", path.display(), error.message().trim_end());
            Failure::new(message).with_hint("the file is TOML: correct that line")
        })?;
        let mut config = Config {
            path,
            document,
            clusters: vec![],
            default: String::new(),
        };
        config.read()?;
        Ok(config)
    }

    fn read(&mut self) -> Result<()> {
        let wrong = |what: &str| Err(Failure::new(format!("{}: {what}", self.path.display())));
        self.default = match lookup(self.document.as_table(), "default").map(Item::as_str) {
            Some(Some(name)) => name.to_owned(),
            Some(None) => return wrong("`default` is not a text"),
            None => String::new(),
        };
        let tables = match lookup(self.document.as_table(), "cluster") {
            Some(Item::ArrayOfTables(tables)) => tables,
            Some(_) => return wrong("`cluster` is not a list of `[[cluster]]` tables"),
            None => return Ok(()),
        };
        let mut clusters = vec![];
        for table in tables {
            let field = |name| {
                lookup(table, name)
                    .and_then(Item::as_str)
                    .unwrap_or_default()
                    .to_owned()
            };
            let cluster = Cluster {
                name: field("Name"),
                key: field("Key"),
                tls_pin: field("TLSPin"),
                controller_url: field("ControllerURL"),
                git_url: field("GitURL"),
                image_url: field("ImageURL"),
                docker_push_url: field("DockerPushURL"),
            };
            if cluster.name.is_empty() {
                return wrong("a `[[cluster]]` has no `Name`");
            }
            if cluster.controller_url.is_empty() {
                return wrong(&format!("the cluster {:?} has no `ControllerURL`", cluster.name));
            }
            clusters.push(cluster);
        }
        self.clusters = clusters;
        Ok(())
    }

    pub fn cluster(&self, name: &str) -> Option<&Cluster> {
        self.clusters.iter().find(|cluster| cluster.name == name)
    }

    /// Adds a cluster, or gives the one of this name these values.
    pub fn put(&mut self, cluster: Cluster) {
        let tables = self.tables();
        let found = tables.iter_mut().find(|table| name_of(table) == cluster.name);
        let table = match found {
            Some(table) => table,
            None => {
                tables.push(Table::new());
                tables.iter_mut().last().expect("one was just added")
            }
        };
        for (field, text) in [
            ("Name", &cluster.name),
            ("Key", &cluster.key),
            ("TLSPin", &cluster.tls_pin),
            ("ControllerURL", &cluster.controller_url),
            ("GitURL", &cluster.git_url),
            ("ImageURL", &cluster.image_url),
            ("DockerPushURL", &cluster.docker_push_url),
        ] {
            let known = table
                .iter()
                .map(|(key, _)| key.to_owned())
                .find(|key| key.eq_ignore_ascii_case(field));
            let key = known.unwrap_or_else(|| field.to_owned());
            if text.is_empty() {
                table.remove(&key);
            } else {
                table[&key] = value(text.as_str());
            }
        }
        match self.clusters.iter_mut().find(|known| known.name == cluster.name) {
            Some(known) => *known = cluster,
            None => self.clusters.push(cluster),
        }
    }

    /// Forgets a cluster, also as the default.
    pub fn remove(&mut self, name: &str) {
        self.tables().retain(|table| name_of(table) != name);
        self.clusters.retain(|cluster| cluster.name != name);
        if self.default == name {
            self.default.clear();
            self.document.remove("default");
        }
    }

    pub fn set_default(&mut self, name: &str) {
        self.default = name.to_owned();
        self.document["default"] = value(name);
    }

    fn tables(&mut self) -> &mut ArrayOfTables {
        let known = self
            .document
            .iter()
            .map(|(key, _)| key.to_owned())
            .find(|key| key.eq_ignore_ascii_case("cluster"));
        let key = known.unwrap_or_else(|| "cluster".to_owned());
        let item = self
            .document
            .entry(&key)
            .or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
        item.as_array_of_tables_mut()
            .expect("`read` refused anything else")
    }

    pub fn save(&self) -> Result<()> {
        // A link, as people have who keep their configuration under version control, stays one.
        let path = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        write_private(&path, self.document.to_string().as_bytes())
    }
}

fn name_of(table: &Table) -> &str {
    lookup(table, "Name").and_then(Item::as_str).unwrap_or_default()
}

/// A field whatever the case of its name, as the original read them.
fn lookup<'a>(table: &'a Table, name: &str) -> Option<&'a Item> {
    table.get(name).or_else(|| {
        table
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, item)| item)
    })
}

/// Replaces a file in one step, readable by its owner only; makes the directory it is in.
pub fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    let failed = |error: std::io::Error| Failure::new(format!("cannot write {}: {error}", path.display()));
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    fs::create_dir_all(directory).map_err(failed)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let draft = directory.join(format!(
        ".{}.{}.new",
        name.trim_start_matches('.'),
        std::process::id()
    ));
    let written = (|| {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&draft, path)
    })();
    written.map_err(|error| {
        let _ = fs::remove_file(&draft);
        failed(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"# my clusters
default = "one"

[[cluster]]
  Name = "one"
  Key = "aaa"
  Mine = 7 # not known to flynn
  ControllerURL = "https://controller.one.test"
  GitURL = "https://git.one.test"
"#;

    fn two() -> Cluster {
        Cluster {
            name: "two".into(),
            key: "bbb".into(),
            tls_pin: "pin".into(),
            controller_url: "https://controller.two.test".into(),
            ..Cluster::default()
        }
    }

    fn load(text: &str) -> (tempfile::TempDir, Result<Config>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("flynnrc");
        fs::write(&path, text).unwrap();
        let config = Config::load_from(path);
        (directory, config)
    }

    #[test]
    fn the_domain_is_read_off_the_controllers_address() {
        let domain_of = |url: &str| {
            let cluster = Cluster {
                controller_url: url.into(),
                ..Cluster::default()
            };
            cluster.domain().map(str::to_owned)
        };
        for url in [
            "https://controller.flynn.test:8443",
            "https://controller.flynn.test/",
        ] {
            assert_eq!(domain_of(url).as_deref(), Some("flynn.test"));
        }
        assert_eq!(domain_of("http://127.0.0.1:80"), None);
    }

    #[test]
    fn what_flynn_does_not_know_stays_in_the_file() {
        let (directory, config) = load(FILE);
        let mut config = config.unwrap();
        config.put(two());
        config.put(Cluster {
            key: "ccc".into(),
            ..config.clusters[0].clone()
        });
        config.set_default("two");
        config.save().unwrap();
        let text = fs::read_to_string(directory.path().join("flynnrc")).unwrap();
        insta::assert_snapshot!(text, @r#"
        # my clusters
        default = "two"

        [[cluster]]
          Name = "one"
          Key = "ccc"
          Mine = 7 # not known to flynn
          ControllerURL = "https://controller.one.test"
          GitURL = "https://git.one.test"

        [[cluster]]
        Name = "two"
        Key = "bbb"
        TLSPin = "pin"
        ControllerURL = "https://controller.two.test"
        "#);
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &fs::metadata(directory.path().join("flynnrc"))
                .unwrap()
                .permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_removed_cluster_is_no_default_any_more() {
        let (_directory, config) = load(FILE);
        let mut config = config.unwrap();
        config.put(two());
        config.remove("one");
        assert_eq!(config.default, "");
        assert_eq!(config.clusters, [two()]);
        assert!(!config.document.to_string().contains("one.test"));
    }

    #[test]
    fn a_default_is_put_above_the_tables_of_a_file_that_has_none() {
        let (_directory, config) = load("[[cluster]]\nname = \"x\"\ncontrollerurl = \"http://y\"\n");
        let mut config = config.unwrap();
        config.set_default("x");
        let (_directory, again) = load(&config.document.to_string());
        let again = again.unwrap();
        assert_eq!(
            (again.default.as_str(), again.clusters[0].name.as_str()),
            ("x", "x")
        );
    }

    #[test]
    fn a_file_that_cannot_be_read_says_where() {
        for (text, expected) in [
            ("default = \"x\"\n\n[[cluster]\n", "line 3: "),
            ("default = 3\n", "`default` is not a text"),
            ("cluster = 3\n", "`cluster` is not a list"),
            ("[[cluster]]\nKey = \"x\"\n", "no `Name`"),
            ("[[cluster]]\nName = \"x\"\n", "\"x\" has no `ControllerURL`"),
        ] {
            let (_directory, config) = load(text);
            let failure = config.err().expect(text);
            assert!(failure.message.contains(expected), "{}", failure.message);
        }
    }
}
