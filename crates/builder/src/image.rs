//! A build's result as layers: dependencies once per key, the app's own part at every push.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::Result;
use container::layers::{PackOptions, Packed, pack};
use daemon::{StateDir, files};
use sha2::{Digest as _, Sha256};
use types::{Digest, Layer};

use crate::workspace::{APP_ID, PackedLayer, Workspace};

/// The layers of an app's image, lowest first.
#[derive(Debug, Clone)]
pub struct Slug {
    pub layers: Vec<Layer>,
}

impl Slug {
    /// Names the whole: the only layer's digest, or one over all of them.
    pub fn digest(&self) -> String {
        match &self.layers[..] {
            [only] => only.id.clone(),
            all => {
                let mut hash = Sha256::new();
                all.iter()
                    .for_each(|layer| hash.update(format!("{}\n", layer.id)));
                hex::encode(hash.finalize())
            }
        }
    }
}

/// Packs what a build made. Blocks.
pub fn make(state: &StateDir, workspace: &Workspace, keys: &[String]) -> Result<Slug> {
    let store = Store {
        directory: state.layers(),
    };
    files::create_private_dir(&store.directory)?;
    let known = workspace.packed();
    let mut packed = BTreeMap::new();
    let mut layers = Vec::new();
    for key in keys {
        let layer = match known.get(key).filter(|layer| store.has(layer)) {
            Some(layer) => layer.clone(),
            // Made once and read at every start: worth compressing.
            None => store.add(&workspace.layer(key), true)?,
        };
        layers.push(store.describe(&layer)?);
        packed.insert(key.clone(), layer);
    }
    if packed != known {
        workspace.set_packed(&packed)?;
    }
    layers.push(store.describe(&store.add(&workspace.slug(), false)?)?);
    Ok(Slug { layers })
}

struct Store {
    directory: PathBuf,
}

impl Store {
    fn path(&self, digest: &str) -> PathBuf {
        self.directory.join(format!("{digest}.erofs"))
    }

    /// Whether it is there, which makes it young: nothing refers to it until its release is there.
    fn has(&self, layer: &PackedLayer) -> bool {
        let Ok(file) = File::open(self.path(&layer.digest)) else {
            return false;
        };
        let is_whole = file.metadata().is_ok_and(|meta| meta.len() == layer.length_bytes);
        is_whole && file.set_modified(SystemTime::now()).is_ok()
    }

    fn add(&self, tree: &Path, compressed: bool) -> Result<PackedLayer> {
        // The name is one that the host removes in time should this process be killed.
        let new = self.directory.join(format!("{}.new-layer", uuid::Uuid::new_v4()));
        let options = PackOptions {
            compressed,
            owner: Some((APP_ID, APP_ID)),
        };
        let Packed { sha256, size_bytes } = pack(tree, &new, options)?;
        fs::rename(&new, self.path(&sha256))?;
        File::open(&self.directory)?.sync_all()?;
        Ok(PackedLayer {
            digest: sha256,
            length_bytes: size_bytes,
        })
    }

    fn describe(&self, layer: &PackedLayer) -> Result<Layer> {
        let digest: Digest = layer.digest.parse().map_err(anyhow::Error::msg)?;
        Ok(Layer::erofs(&digest, layer.length_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_result_gives_the_same_layers_and_dependencies_are_packed_once() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::new(dir.path().join("state"));
        let workspace = Workspace::new(&dir.path().join("disk"));
        fs::create_dir(dir.path().join("disk")).unwrap();
        workspace.prepare(&BTreeMap::new()).unwrap();
        fs::create_dir_all(workspace.slug().join("app")).unwrap();
        fs::write(workspace.slug().join("app/Procfile"), "web: x").unwrap();
        fs::create_dir_all(workspace.layer("deps/usr")).unwrap();
        fs::write(workspace.layer("deps/usr/lib"), "y".repeat(10_000)).unwrap();
        let keys = ["deps".to_owned()];
        let first = make(&state, &workspace, &keys).unwrap();
        let deps = state.layers().join(format!("{}.erofs", first.layers[0].id));
        // Not packed again: another content under the same key would give another digest.
        fs::write(workspace.layer("deps/usr/lib"), "z").unwrap();
        let second = make(&state, &workspace, &keys).unwrap();
        assert_eq!(first.digest(), second.digest());
        assert_eq!(
            (first.layers.len(), fs::read_dir(state.layers()).unwrap().count()),
            (2, 2)
        );
        // Unless its file is gone.
        fs::remove_file(&deps).unwrap();
        let third = make(&state, &workspace, &keys).unwrap();
        assert_ne!(first.layers[0], third.layers[0]);
        assert_eq!(first.layers[1], third.layers[1]);
        let only = make(&state, &workspace, &[]).unwrap();
        assert_eq!(only.digest(), only.layers[0].id);
    }
}
