//! What others write under the queue's names.

use super::*;

#[tokio::test]
async fn forged_entries_do_not_stop_the_queue() {
    let redis = Redis::start().await;
    let queue = redis.queue("forged");
    queue.enqueue(E1, &[entry(1, "a", 5, 1), entry(2, "a", 5, 2)]).await.unwrap();
    let far = id(3);
    let () = redis.raw(&format!("ZADD forged:{{forged}}:shape:0:0:a -inf x inf {far}")).await;
    let () = redis.raw("ZADD forged:{forged}:shapes 7 nonsense").await;
    let () = redis.raw("HSET forged:{forged}:claims y nan z 1").await;
    let () = redis.raw(&format!("HSET forged:{{forged}}:claims {} 0~nan~0:0:a", id(4))).await;
    assert_eq!(queue.peek(9, None).await.unwrap(), jobs([1, 2, 3]));
    assert_eq!(ids(&claim_any(&queue, 9, &["a"]).await), jobs([1, 2, 3]));
    let claims = queue.claims_older_than(Duration::ZERO).await.unwrap();
    assert_eq!(claims, jobs([1, 2, 3, 4]));
    assert_eq!(queue.put_back(E1, &claims).await.unwrap(), 3);
    queue.recount(E1).await.unwrap();
    assert_eq!(queue.depth().await.unwrap(), [1, 0, 0, 0, 2, 0, 0, 0, 0, 0]);
    assert_eq!(queue.remove(E1, &[(far, shape("a"))]).await.unwrap(), 1);
    assert_eq!(queue.depth().await.unwrap(), [0, 0, 0, 0, 2, 0, 0, 0, 0, 0]);
}

#[tokio::test]
async fn keys_of_the_wrong_kind_are_thrown_away_and_the_queue_is_rebuilt() {
    let redis = Redis::start().await;
    let queue = redis.queue("spoilt");
    let entries = [entry(1, "a", 5, 1), entry(2, "b", 7, 2), entry(3, "a", 5, 3)];
    let rebuild = async |generation: &str| {
        queue.begin_rebuild(E1, generation).await?;
        queue.enqueue(E1, &entries).await?;
        queue.mark_whole(E1, generation).await
    };
    rebuild("0").await.unwrap();
    let names = ["epoch", "epoch:rebuild", "generation", "shapes", "depth", "claims", "shape:0:0:a"];
    for (round, name) in names.into_iter().enumerate() {
        // No key of the queue is a list.
        let () = redis.raw(&format!("DEL spoilt:{{spoilt}}:{name}")).await;
        let () = redis.raw(&format!("RPUSH spoilt:{{spoilt}}:{name} nonsense")).await;
        let generation = format!("after {round}");
        let mut tries = 0;
        while rebuild(&generation).await.is_err() {
            tries += 1;
            assert!(tries < 3, "{name} is in the way for ever");
        }
        assert_eq!(queue.generation(E1).await.unwrap(), Some(generation), "{name}");
        assert_eq!(checked_total(&queue).await, 3, "{name}");
        let claims = claim_any(&queue, 9, &["a", "b"]).await;
        assert_eq!(ids(&claims), jobs([2, 1, 3]), "{name}");
        queue.put_back(E1, &ids(&claims)).await.unwrap();
    }
}

#[tokio::test]
async fn a_shape_of_the_wrong_kind_costs_one_claim_and_its_queue_counts_as_incomplete() {
    let redis = Redis::start().await;
    let queue = redis.queue("spoilt");
    queue.begin_rebuild(E1, "first").await.unwrap();
    queue.enqueue(E1, &[entry(1, "a", 5, 1), entry(2, "b", 5, 2)]).await.unwrap();
    queue.mark_whole(E1, "first").await.unwrap();
    let () = redis.raw("SET spoilt:{spoilt}:shape:0:0:a nonsense").await;
    let offers = [offer("a", &[0]), offer("b", &[0])];
    let failed = queue.claim(E1, 9, &slots(&[9]), &offers).await;
    assert!(matches!(failed, Err(QueueError::Protocol(_))), "{failed:?}");
    assert_eq!(queue.generation(E1).await.unwrap(), None, "so a rebuild will follow");
    assert_eq!(ids(&queue.claim(E1, 9, &slots(&[9]), &offers).await.unwrap()), jobs([2]));
}
