//! MessagePack instead of JSON, in requests and answers, at every replica.

use reqwest::Response;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use serde_json::{Value, json};

use crate::group::{Api, REPLICAS};
use crate::reply::Reply;

const PACKED: &str = "application/msgpack";

/// Sends a body of MessagePack.
async fn send(api: &Api, replica: usize, body: Vec<u8>, accept: &str) -> Response {
    let request = api.http.post(api.url(replica, "/api/v1/jobs")).header(CONTENT_TYPE, PACKED);
    request.header(ACCEPT, accept).body(body).send().await.unwrap()
}

/// An answer in MessagePack.
async fn unpacked(response: Response) -> Value {
    assert_eq!(response.headers()[CONTENT_TYPE], PACKED);
    rmp_serde::from_slice(&response.bytes().await.unwrap()).unwrap()
}

#[tokio::test]
async fn jobs_are_submitted_and_shown_in_messagepack_at_every_replica() {
    let api = Api::of("messagepack").await;
    let input = json!({"prompt": "é", "numbers": [1, -2, 2.5, u64::MAX], "none": null});
    let draft = api.draft(&json!({"input_data": input, "metadata": {"a": {"b": true}}}));
    for replica in 0..REPLICAS {
        let answer = send(&api, replica, rmp_serde::to_vec(&draft).unwrap(), PACKED).await;
        assert_eq!(answer.status(), 201);
        let job = unpacked(answer).await;
        assert_eq!((&job["input_data"], &job["metadata"]), (&input, &json!({"a": {"b": true}})));

        let path = format!("/api/v1/jobs/{}", job["id"].as_str().unwrap());
        let shown = api.http.get(api.url(replica, &path)).header(ACCEPT, PACKED).send().await.unwrap();
        assert_eq!(unpacked(shown).await["input_data"], input);
        assert_eq!(
            api.get(replica, &path).await.expect(200)["input_data"],
            input,
            "JSON without being asked"
        );
    }
    api.leave().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_packed_body_is_said_in_a_json_problem() {
    let api = Api::of("messagepack-bad").await;
    for replica in 0..REPLICAS {
        // Cut off, binary data, more than one value, no object.
        for body in [&b"\x81\xa4name"[..], b"\x81\xa4name\xc4\x01a", b"\x80\xc0", b"\x93\x01\x02\x03"] {
            let reply = Reply::read(send(&api, replica, body.to_vec(), PACKED).await).await;
            assert_eq!(reply.status, 400, "{reply:?}");
        }
        let draft = api.draft(&json!({"priority": 11, "name": ""}));
        let reply = Reply::read(send(&api, replica, rmp_serde::to_vec(&draft).unwrap(), PACKED).await).await;
        assert_eq!((reply.status, reply.fields()), (422, vec!["name", "priority"]));
    }
    api.leave().await;
}

#[tokio::test]
async fn what_is_nested_as_deeply_as_is_taken_can_be_read_in_lists_in_both_formats() {
    let api = Api::of("nested").await;
    let nested = |levels| (1..levels).fold(json!({}), |inner, _| json!({"a": inner}));
    for replica in 0..REPLICAS {
        let id = api.submit(replica, &json!({"input_data": nested(120)})).await;
        let path = format!("/api/v1/jobs?model_name={}&page_size=1", api.name);
        assert_eq!(api.get(replica, &path).await.expect(200)["jobs"][0]["id"], *id);
        let list = api.http.get(api.url(replica, &path)).header(ACCEPT, PACKED).send().await.unwrap();
        assert_eq!(unpacked(list).await["jobs"][0]["input_data"], nested(120));
        let draft = api.draft(&json!({"input_data": nested(121)}));
        assert_eq!(api.post(replica, "/api/v1/jobs", &draft).await.fields(), ["input_data"]);
    }
    api.leave().await;
}
