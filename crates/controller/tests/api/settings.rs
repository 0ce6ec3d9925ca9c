//! What operators choose for the whole cluster.

use api::contents::Copies;

use crate::world::World;

#[tokio::test]
async fn the_number_of_copies_is_the_clusters_and_nonsense_is_refused() {
    let world = World::start().await;
    let internal = world.internal();
    assert_eq!(internal.copies().await.unwrap(), 2);
    let path = "/internal/cluster/copies";
    let set: Copies = internal.client().put(path, &Copies { copies: 3 }).await.unwrap();
    assert_eq!(set.copies, 3);
    assert_eq!(internal.copies().await.unwrap(), 3);
    let refused = internal.client().put::<Copies>(path, &Copies { copies: 0 }).await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("copies must be from 1 to 100"), "{refused}");
    assert_eq!(world.get(path).await.status, 401, "it takes the platform's key");
    assert_eq!(internal.copies().await.unwrap(), 3);
}
