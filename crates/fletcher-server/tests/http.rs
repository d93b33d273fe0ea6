//! Every HTTP dialect on loopback: the vectors are the engine's, the errors are the dialect's.

mod common;

use std::time::{Duration, Instant};

use common::{Setup, floats, from_base64, vectors};
use fletcher_backend::DeviceChoice;
use fletcher_core::embedder::{EmbedOptions, Prompt};
use fletcher_core::head;
use fletcher_server::ServiceConfig;
use serde_json::{Value, json};

const TEXTS: [&str; 3] =
    ["The quick brown fox", "jumps", "日本語 ✓ and a longer text, with commas"];

#[test]
fn openai() {
    let server = Setup::default().start();
    let expected = server.vectors(&TEXTS);
    for path in ["/v1/embeddings", "/embeddings"] {
        let answer = server.post(path, &json!({ "input": TEXTS, "model": "default" })).ok();
        assert_eq!(answer.header("x-fletcher-fingerprint"), server.service.fingerprint());
        let body = answer.json();
        assert_eq!(body["object"], "list");
        for (row, vector) in expected.iter().enumerate() {
            assert_eq!(body["data"][row]["index"], row);
            assert_eq!(&floats(&body["data"][row]["embedding"]), vector);
        }
        let tokens = server.embedder.embed(&TEXTS, &EmbedOptions::default()).unwrap();
        let tokens: usize = tokens.rows.iter().map(|row| row.as_ref().unwrap().tokens).sum();
        assert_eq!(body["usage"]["prompt_tokens"], tokens);
    }
    let one = json!({ "input": TEXTS[0], "encoding_format": "base64" });
    let body = server.post("/v1/embeddings", &one).ok().json();
    assert_eq!(from_base64(&body["data"][0]["embedding"]), expected[0]);

    let short = json!({ "input": TEXTS[0], "dimensions": 8 });
    let body = server.post("/v1/embeddings", &short).ok().json();
    let mut cut = expected[0][..8].to_vec();
    head::normalize(&mut cut);
    assert_eq!(floats(&body["data"][0]["embedding"]), cut);

    let ids = vec![2u32, 56, 274, 25, 3];
    let body = server.post("/v1/embeddings", &json!({ "input": ids })).ok().json();
    let embedded = server.embedder.embed_ids(&[ids]).unwrap();
    assert_eq!(floats(&body["data"][0]["embedding"]), embedded.vector(0).unwrap());

    let models = server.get("/v1/models").ok().json();
    assert_eq!(models["data"][0]["id"], server.service.name());
    assert_eq!(server.get("/v1/models/none").status, 404);
    for (body, status, code) in [
        (json!({ "input": "a", "model": "text-embedding-3-small" }), 404, "model_not_found"),
        (json!({ "input": [] }), 400, "empty"),
        (json!({ "input": 3 }), 400, "invalid"),
        (json!({}), 400, "invalid"),
        (json!({ "input": "a", "dimensions": 33 }), 400, "invalid"),
        (json!({ "input": "a", "dimensions": 0 }), 400, "invalid"),
        (json!({ "input": [[1, 999_999]] }), 400, "text"),
        (json!({ "input": "a", "encoding_format": "hex" }), 400, "invalid"),
    ] {
        let answer = server.post("/v1/embeddings", &body);
        assert_eq!(answer.status, status, "{body}: {}", answer.text());
        assert_eq!(answer.json()["error"]["code"], code, "{body}");
    }
}

#[test]
fn null_is_the_same_as_nothing_said() {
    let server = Setup::default().start();
    let text = TEXTS[0];
    for (path, body, nulls) in [
        ("/v1/embeddings", json!({ "input": text }), "model encoding_format dimensions on_error"),
        ("/embed", json!({ "inputs": text }), "truncate truncation_direction normalize dimensions"),
        ("/embed_all", json!({ "inputs": text }), "truncate truncation_direction prompt_name"),
        ("/tokenize", json!({ "inputs": text }), "add_special_tokens prompt_name"),
        ("/decode", json!({ "ids": [2, 56, 3] }), "skip_special_tokens"),
        (
            "/similarity",
            json!({ "inputs": { "source_sentence": text, "sentences": [text] } }),
            "parameters",
        ),
        (
            "/v2/embed",
            json!({ "texts": [text] }),
            "model input_type embedding_types output_dimension truncate max_tokens images",
        ),
        ("/api/embed", json!({ "input": text }), "model truncate dimensions options keep_alive"),
    ] {
        let vector = |answer: Value| match path {
            "/api/embed" | "/v2/embed" => answer["embeddings"].clone(),
            _ => answer,
        };
        let said = vector(server.post(path, &body).ok().json());
        for key in nulls.split(' ') {
            let mut body = body.clone();
            body[key] = Value::Null;
            assert_eq!(vector(server.post(path, &body).ok().json()), said, "{path} {key}");
        }
    }
}

#[test]
fn what_cannot_be_served_is_named() {
    let server = Setup::default().start();
    let answer = server.post("/v1/chat/completions", &json!({}));
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (404, &json!("unknown_url")));

    let body = json!({ "input": "a" }).to_string();
    let request = |encoding| {
        server.post_with("/v1/embeddings", &[("content-encoding", encoding)], body.as_bytes())
    };
    request("identity").ok();
    let answer = request("gzip");
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("`gzip`; send it uncompressed"), "{}", answer.text());
}

/// A client's error is in the words of its dialect, not in Rust's.
#[test]
fn a_malformed_request_is_told_field_and_value() {
    let server = Setup::default().start();
    for (path, body, says) in [
        ("/v1/embeddings", json!({}), "`input` is missing"),
        ("/v1/embeddings", json!(["a"]), "not an object"),
        ("/v1/embeddings", json!({ "input": "a", "dimensions": "x" }), "`dimensions`: a whole"),
        (
            "/v1/embeddings",
            json!({ "input": "a", "encoding_format": 5 }),
            "`encoding_format`: a str",
        ),
        ("/embed", json!({ "inputs": "a", "truncate": "x" }), "`truncate`: true or false is"),
        ("/embed_all", json!({ "inputs": "a", "truncation_direction": "up" }), "there is no `up`"),
        ("/similarity", json!({ "inputs": { "sentences": [] } }), "`source_sentence` is missing"),
        ("/v2/embed", json!({ "texts": ["a", 2] }), "`texts[1]`: a string is expected, not 2"),
        ("/v2/embed", json!({ "texts": ["a"], "truncate": "MID" }), "there is no `MID`, expected"),
        ("/api/embed", json!({ "input": [["a"]] }), "`input[0]"),
        ("/api/embeddings", json!({ "prompt": ["a"] }), "`prompt`: a string is expected"),
    ] {
        let answer = server.post(path, &body);
        assert!(answer.status == 400 || answer.status == 422, "{path} {body}: {}", answer.status);
        let text = answer.text().to_string();
        assert!(text.contains(says), "{path} {body}: {text}");
        let rust =
            ["struct", "variant", "untagged", "u32", "usize", "enum", "sequence", "Semantic"];
        assert!(rust.iter().all(|word| !text.contains(word)), "{path} {body}: {text}");
    }
    let answer = server.post_with("/encode", &[], &[0xa0]);
    assert!(answer.text().contains("a list is expected, not an object"), "{}", answer.text());
    let answer = server.post_with("/encode?dimensions=x", &[], &[0x81, 0x61, b'a']);
    assert!(answer.text().contains("`dimensions`: a whole number"), "{}", answer.text());
}

#[test]
fn a_bad_text_is_its_own_error_where_the_client_can_take_it() {
    let server = Setup::default().start();
    let input = json!([TEXTS[0], [999_999], TEXTS[1]]);
    let body = json!({ "input": input, "on_error": "item" });
    let body = server.post("/v1/embeddings", &body).ok().json();
    let expected = server.vectors(&TEXTS[..2]);
    assert_eq!(floats(&body["data"][0]["embedding"]), expected[0]);
    assert_eq!(body["data"][0]["truncated"], false);
    assert_eq!(body["data"][1]["embedding"], Value::Null);
    assert!(body["data"][1]["error"].as_str().unwrap().contains("999999"));
    assert_eq!(floats(&body["data"][2]["embedding"]), expected[1]);
    let long = json!({ "input": "word ".repeat(500), "on_error": "item" });
    let body = server.post("/v1/embeddings", &long).ok().json();
    assert_eq!(
        (&body["data"][0]["truncated"], &body["data"][0]["tokens"]),
        (&json!(true), &json!(64))
    );
}

#[test]
fn tei() {
    let server = Setup::default().start();
    let expected = server.vectors(&TEXTS);
    let answer = server.post("/embed", &json!({ "inputs": TEXTS })).ok();
    for (row, vector) in expected.iter().enumerate() {
        assert_eq!(&floats(&answer.json()[row]), vector);
    }
    for name in [
        "x-compute-type",
        "x-compute-time",
        "x-compute-tokens",
        "x-compute-characters",
        "x-total-time",
        "x-tokenization-time",
        "x-queue-time",
        "x-inference-time",
    ] {
        assert!(!answer.header(name).is_empty(), "{name}");
    }
    assert_eq!(
        floats(&server.post("/", &json!({ "inputs": TEXTS[0] })).ok().json()[0]),
        expected[0]
    );

    let raw = server.post("/embed", &json!({ "inputs": TEXTS[0], "normalize": false })).ok().json();
    let mut raw = floats(&raw[0]);
    let norm: f32 = raw.iter().map(|x| x * x).sum::<f32>().sqrt();
    assert!((norm - 1.0).abs() > 1e-3, "it is not normalised: {norm}");
    head::normalize(&mut raw);
    assert_eq!(raw, expected[0]);

    let all = server.post("/embed_all", &json!({ "inputs": [TEXTS[1]] })).ok().json();
    let tokens = server.post("/tokenize", &json!({ "inputs": TEXTS[1] })).ok().json();
    assert_eq!(all[0].as_array().unwrap().len(), tokens[0].as_array().unwrap().len());
    let states: Vec<Vec<f32>> = all[0].as_array().unwrap().iter().map(floats).collect();
    let mut mean: Vec<f32> =
        (0..32).map(|i| states.iter().map(|s| s[i]).sum::<f32>() / states.len() as f32).collect();
    head::normalize(&mut mean);
    assert!(mean.iter().zip(&expected[1]).all(|(a, b)| (a - b).abs() < 1e-5));

    let ids: Vec<&Value> = tokens[0].as_array().unwrap().iter().map(|token| &token["id"]).collect();
    assert_eq!(server.post("/decode", &json!({ "ids": ids })).ok().json(), json!(["jumps"]));
    let kept = json!({ "ids": [ids], "skip_special_tokens": false });
    assert!(server.post("/decode", &kept).ok().text().contains("[CLS]"));
    let text = "Jumps, JUMPS [SEP] ünd";
    let spelled = server.post("/tokenize", &json!({ "inputs": text })).ok().json();
    let spelled = spelled[0].as_array().unwrap();
    let (around, found) = (&spelled[..1], &spelled[1..spelled.len() - 1]);
    assert_eq!(
        around[0],
        json!({ "id": 2, "text": "[CLS]", "special": true, "start": null, "stop": null })
    );
    let mut all = String::new();
    for token in found {
        let place = |key: &str| token[key].as_u64().unwrap() as usize;
        assert_eq!(token["text"], text[place("start")..place("stop")]);
        assert_eq!(token["special"], false, "it is part of the text");
        all.push_str(token["text"].as_str().unwrap());
    }
    assert_eq!(all, text.replace(' ', ""));
    let bare = json!({ "inputs": TEXTS[1], "add_special_tokens": false });
    let bare = server.post("/tokenize", &bare).ok().json();
    assert_eq!(bare[0].as_array().unwrap().len() + 2, ids.len());

    let pair = json!({ "inputs": { "source_sentence": TEXTS[0], "sentences": TEXTS } });
    for path in ["/similarity", "/"] {
        let cosines = floats(&server.post(path, &pair).ok().json());
        for (cosine, vector) in cosines.iter().zip(&expected) {
            let dot: f32 = expected[0].iter().zip(vector).map(|(a, b)| a * b).sum();
            assert!((cosine - dot).abs() < 1e-6, "{cosine} {dot}");
        }
    }
    let info = server.get("/info").ok().json();
    assert_eq!((&info["max_input_length"], &info["dimensions"]), (&json!(64), &json!(32)));

    let long = "word ".repeat(100);
    for (path, body, status, kind) in [
        ("/embed", json!({ "inputs": [] }), 400, "empty"),
        ("/embed", json!({ "inputs": {} }), 422, "validation"),
        ("/embed", json!({ "inputs": long, "truncate": false }), 422, "tokenizer"),
        ("/embed", json!({ "inputs": "a", "prompt_name": "none" }), 422, "validation"),
        ("/embed_all", json!({ "inputs": long, "truncate": false }), 422, "tokenizer"),
        ("/decode", json!({ "ids": [999_999] }), 422, "tokenizer"),
        ("/decode", json!({ "ids": "text" }), 422, "validation"),
        (
            "/similarity",
            json!({ "inputs": { "source_sentence": "a", "sentences": [] } }),
            400,
            "empty",
        ),
        ("/rerank", json!({ "query": "a", "texts": ["a"] }), 404, "not_found"),
    ] {
        let answer = server.post(path, &body);
        assert_eq!(answer.status, status, "{path} {body}: {}", answer.text());
        assert_eq!(answer.json()["error_type"], kind, "{path} {body}");
    }
    let left = json!({ "inputs": format!("{long} end"), "truncation_direction": "left" });
    let right = json!({ "inputs": format!("{long} end") });
    assert_ne!(server.post("/embed", &left).ok().text(), server.post("/embed", &right).ok().text());
}

#[test]
fn cohere_and_its_prompts() {
    let server = Setup { model: "bert-prompt", ..Setup::default() }.start();
    let body = json!({
        "model": "default", "texts": TEXTS, "input_type": "search_query",
        "embedding_types": ["float", "base64", "int8"],
    });
    let mut body = body;
    body["model"] = json!(server.service.name());
    let answer = server.post("/v2/embed", &body).ok().json();
    let named =
        |name: &str| EmbedOptions { prompt: Prompt::Named(name.into()), ..Default::default() };
    let expected = vectors(&server.embedder, &TEXTS, &named("query"));
    for (row, vector) in expected.iter().enumerate() {
        assert_eq!(&floats(&answer["embeddings"]["float"][row]), vector);
        assert_eq!(&from_base64(&answer["embeddings"]["base64"][row]), vector);
        assert_eq!(answer["embeddings"]["int8"][row].as_array().unwrap().len(), vector.len());
    }
    assert_eq!(answer["texts"], json!(TEXTS));
    let document = json!({ "inputs": [{ "content": [{ "type": "text", "text": TEXTS[0] }] }],
        "input_type": "search_document" });
    let answer = server.post("/v2/embed", &document).ok().json();
    let expected = vectors(&server.embedder, &TEXTS[..1], &named("passage"));
    assert_eq!(floats(&answer["embeddings"]["float"][0]), expected[0]);
    for body in [
        json!({ "texts": [] }),
        json!({}),
        json!({ "images": ["data:"] }),
        json!({ "texts": ["a"], "embedding_types": ["half"] }),
        json!({ "texts": ["a"], "embedding_types": [] }),
        json!({ "texts": ["a"], "input_type": "image" }),
        json!({ "texts": ["w ".repeat(200)], "truncate": "NONE" }),
    ] {
        let answer = server.post("/v2/embed", &body);
        assert_eq!(answer.status, 400, "{body}");
        assert!(answer.json()["message"].is_string());
    }
}

#[test]
fn ollama() {
    let server = Setup::default().start();
    let expected = server.vectors(&TEXTS);
    let body = json!({ "model": "default:latest", "input": TEXTS });
    let answer = server.post("/api/embed", &body).ok().json();
    for (row, vector) in expected.iter().enumerate() {
        assert_eq!(&floats(&answer["embeddings"][row]), vector);
    }
    assert_eq!(answer["model"], "default:latest");
    let old = json!({ "model": "default", "prompt": TEXTS[0] });
    let answer = server.post("/api/embeddings", &old).ok().json();
    assert_eq!(floats(&answer["embedding"]), expected[0]);
    let long = json!({ "input": "w ".repeat(200), "truncate": false });
    let answer = server.post("/api/embed", &long);
    assert_eq!(answer.status, 400);
    assert!(answer.json()["error"].as_str().unwrap().contains("at most 64"));
    assert_eq!(server.get("/api/tags").ok().json()["models"][0]["name"], server.service.name());
    assert!(server.get("/api/version").ok().json()["version"].is_string());
}

#[test]
fn cbor_and_arrow() {
    use arrow::array::{Array as _, ArrayRef, AsArray, Int32Array, RecordBatch, StringArray};
    use arrow::datatypes::{Float32Type, Schema};
    use arrow::ipc::{reader::StreamReader, writer::StreamWriter};
    use std::sync::Arc;

    let server = Setup::default().start();
    let expected = server.vectors(&TEXTS);
    let mut body = Vec::new();
    ciborium::into_writer(&TEXTS, &mut body).unwrap();
    let answer = server.post_with("/encode", &[], &body).ok();
    let decoded: Value = ciborium::from_reader(&answer.body[..]).unwrap();
    for (row, vector) in expected.iter().enumerate() {
        let found: Vec<f32> = decoded["vectors"][row]
            .as_array()
            .unwrap()
            .iter()
            .map(|x| x.as_f64().unwrap() as f32)
            .collect();
        assert_eq!(&found, vector);
    }
    assert_eq!(decoded["fingerprint"], server.service.fingerprint());

    let batch = RecordBatch::try_from_iter([
        ("n", Arc::new(Int32Array::from(vec![7, 8, 9])) as _),
        ("text", Arc::new(StringArray::from(vec![Some(TEXTS[0]), None, Some(TEXTS[2])])) as _),
    ])
    .unwrap();
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    writer.write(&batch).unwrap();
    let body = writer.into_inner().unwrap();
    let answer = server.post_with("/encode/arrow?on_error=null", &[], &body).ok();
    let mut reader = StreamReader::try_new(&answer.body[..], None).unwrap();
    assert_eq!(reader.schema().metadata()["fletcher.fingerprint"], server.service.fingerprint());
    let found = reader.next().unwrap().unwrap();
    assert_eq!(found.columns()[..2], batch.columns()[..2]);
    let vectors = found.column_by_name("vector").unwrap().as_fixed_size_list();
    for row in [0, 2] {
        let vector = vectors.value(row);
        assert_eq!(vector.as_primitive::<Float32Type>().values(), &expected[row][..]);
    }
    assert!(vectors.nulls().unwrap().is_null(1));
    let errors = found.column_by_name("error").unwrap().as_string::<i32>();
    assert_eq!((errors.value(1), errors.nulls().unwrap().null_count()), ("the text is null", 2));

    let refused = server.post_with("/encode/arrow", &[], &body);
    assert_eq!(refused.status, 400, "{}", refused.text());
    // Two streams, one behind the other, would lose the second one's rows.
    let refused = server.post_with("/encode/arrow?on_error=null", &[], &body.repeat(2));
    assert!(refused.text().contains("one stream a request"), "{}", refused.text());
    for (query, says) in [
        ("column=nope", "there are: n, text"),
        ("column=n", "must hold strings"),
        ("vector_column=n", "there is a column"),
        ("dimensions=x", "`dimensions`: a whole number from 0 is expected, not the string"),
        ("truncate=perhaps", "`truncate`: true or false is expected, not the string"),
        ("on_error=stop", "`on_error`: there is no `stop`, expected `fail` or `null`"),
        ("dimensions=99", "must be from 1"),
    ] {
        let refused = server.post_with(&format!("/encode/arrow?{query}"), &[], &body);
        assert_eq!(refused.status, 400, "{query}");
        assert!(refused.text().contains(says), "{query}: {}", refused.text());
    }
    let two: [ArrayRef; 2] = [batch.column(1).clone(), batch.column(1).clone()];
    let field = Arc::new(batch.schema().field(1).clone());
    let schema = Arc::new(Schema::new(vec![field.clone(), field]));
    let two = RecordBatch::try_new(schema.clone(), two.to_vec()).unwrap();
    let mut writer = StreamWriter::try_new(Vec::new(), &schema).unwrap();
    writer.write(&two).unwrap();
    let refused = server.post_with("/encode/arrow", &[], &writer.into_inner().unwrap());
    assert!(refused.text().contains("two columns `text`"), "{}", refused.text());
    // Every damaged or cut body is the client's fault.
    for cut in (0..body.len()).step_by(7) {
        let refused = server.post_with("/encode/arrow", &[], &body[..cut]);
        assert!((400..500).contains(&refused.status) || cut > 400, "{cut}: {}", refused.text());
        let mut damaged = body.clone();
        damaged[cut] ^= 0x55;
        assert!(
            server.post_with("/encode/arrow?on_error=null", &[], &damaged).status < 500,
            "{cut}"
        );
    }
}

#[test]
fn large_requests_are_split_inside_and_streamed() {
    let server = Setup {
        service: ServiceConfig { queue_tokens: 500, ..ServiceConfig::default() },
        ..Setup::default()
    }
    .start();
    let texts: Vec<String> = (0..5000).map(|i| format!("text number {i}")).collect();
    let answer = server.post("/embed", &json!({ "inputs": texts })).ok();
    assert!(answer.body.len() > 1 << 20, "it is long enough to be streamed");
    let body = answer.json();
    let borrowed: Vec<&str> = texts.iter().map(String::as_str).collect();
    for (row, vector) in server.vectors(&borrowed).iter().enumerate() {
        assert_eq!(&floats(&body[row]), vector);
    }
    let many: Vec<u32> = vec![3; 70_000];
    let lists: Vec<[u32; 1]> = many.into_iter().map(|id| [id]).collect();
    assert_eq!(server.post("/embed", &json!({ "inputs": lists })).status, 413);
}

#[test]
fn overload_is_refused_quickly_and_what_was_accepted_finishes() {
    // The definition in f64 is slow enough to be flooded.
    let server = Setup {
        device: DeviceChoice::Reference,
        service: ServiceConfig { queue_tokens: 3000, ..ServiceConfig::default() },
        ..Setup::default()
    }
    .start();
    let texts: Vec<String> = (0..60).map(|i| format!("{i} ").repeat(40)).collect();
    let body = json!({ "input": texts });
    let (mut served, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..12)
            .map(|_| {
                scope.spawn(|| {
                    let start = Instant::now();
                    let answer = server.post("/v1/embeddings", &body);
                    (answer, start.elapsed())
                })
            })
            .collect();
        for client in clients {
            let (answer, elapsed) = client.join().unwrap();
            match answer.status {
                200 => served += 1,
                429 => {
                    refused += 1;
                    assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
                    assert!(elapsed < Duration::from_secs(2), "{elapsed:?}");
                    assert_eq!(answer.json()["error"]["code"], "rate_limit_exceeded");
                }
                other => panic!("{other}: {}", answer.text()),
            }
        }
    });
    assert!(served >= 1 && refused >= 1, "{served} served, {refused} refused");
    server.post("/v1/embeddings", &json!({ "input": "again" })).ok();
    let metrics = server.get("/metrics").ok().text();
    assert!(
        metrics.contains(&format!("fletcher_rejected_total{{reason=\"overloaded\"}} {refused}")),
        "{metrics}"
    );
}

#[test]
fn deadlines_and_lanes_in_headers() {
    let server = Setup { device: DeviceChoice::Reference, ..Setup::default() }.start();
    let body = json!({ "inputs": vec!["word ".repeat(60); 200] }).to_string();
    let answer = server.post_with("/embed", &[("x-fletcher-deadline-ms", "1")], body.as_bytes());
    assert_eq!((answer.status, &answer.json()["error_type"]), (504, &json!("deadline")));
    let lane = [("x-fletcher-lane", "express")];
    assert_eq!(server.post_with("/embed", &lane, br#"{"inputs":"a"}"#).status, 422);
    let lane = [("x-fletcher-lane", "bulk")];
    server.post_with("/embed", &lane, br#"{"inputs":"a"}"#).ok();
    let metrics = server.get("/metrics").text();
    assert!(metrics.contains(r#"fletcher_queue_seconds_count{lane="bulk"}"#), "{metrics}");
}

#[test]
fn the_cache_answers_the_same_vectors() {
    let server = Setup {
        service: ServiceConfig { cache_bytes: 1 << 20, ..ServiceConfig::default() },
        ..Setup::default()
    }
    .start();
    let expected = server.vectors(&TEXTS);
    let twice = [TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[2]];
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
                    let body = server.post("/embed", &json!({ "inputs": twice })).ok().json();
                    for (row, place) in [0, 1, 0, 2].into_iter().enumerate() {
                        assert_eq!(floats(&body[row]), expected[place]);
                    }
                }
            });
        }
    });
    let stats = server.get("/stats").ok().json();
    // The probe's text and three others: each was computed once, whoever asked.
    assert_eq!(stats["cache_misses"], 4, "{stats}");
    assert!(stats["cache_hits"].as_u64().unwrap() >= 100, "{stats}");
    // Other options are other keys.
    let raw = server.post("/embed", &json!({ "inputs": TEXTS[0], "normalize": false })).ok().json();
    assert_ne!(floats(&raw[0]), expected[0]);
}

#[test]
fn pages_and_their_document() {
    let server = Setup::default().start();
    for path in ["/", "/docs"] {
        let page = server.get(path).ok();
        assert!(page.header("content-type").starts_with("text/html"));
        assert!(page.header("content-security-policy").contains("default-src 'none'"));
        let text = page.text();
        assert!(
            !text.contains("https://") && !text.contains("//cdn"),
            "{path} loads nothing from elsewhere"
        );
    }
    let document = server.get("/openapi.json").ok().json();
    let source = include_str!("../src/http/mod.rs");
    let mut routes: Vec<&str> =
        source.split(".route(\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    let mut described: Vec<&str> =
        document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
    routes.sort_unstable();
    described.sort_unstable();
    assert_eq!(routes, described);
    for path in routes.iter().filter(|path| !path.contains('{')) {
        let methods = document["paths"][path].as_object().unwrap();
        assert_eq!(methods.contains_key("get"), server.get(path).status != 405, "{path}");
        if let Some(post) = methods.get("post") {
            let content = post["requestBody"]["content"].as_object().unwrap();
            if let Some(example) = content.values().find_map(|content| content.get("example")) {
                server.post(path, example).ok();
            }
        }
    }
}
