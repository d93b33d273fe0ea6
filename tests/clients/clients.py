"""Every dialect with its own published client; vectors must equal those of `fletcher embed`."""

import json
import os
import subprocess
import sys
import tempfile
import urllib.request

import numpy as np

from serving import serving

TEXTS = ["The quick brown fox", "jumps over the lazy dog", "日本語 ✓", "a", "word " * 40]
KEY = "secret-key"


def embed(binary, texts):
    out = subprocess.run([binary, "embed", *texts], capture_output=True, check=True).stdout
    rows = [json.loads(line)["embedding"] for line in out.decode().splitlines()]
    return np.array(rows, dtype=np.float32)


def same(name, found, expected, exact=True):
    found = np.array(found, dtype=np.float32)
    assert found.shape == expected.shape, (name, found.shape, expected.shape)
    worst = float(np.abs(found - expected).max())
    assert worst == 0.0 if exact else worst < 1e-6, (name, worst)
    print(f"ok   {name:42} {found.shape} worst difference {worst:g}")


def main(binary):
    expected = embed(binary, TEXTS)
    with serving(binary, FLETCHER_API_KEY=KEY) as (base, flight):
        checks(base, flight, expected)


def checks(base, flight, expected):
    import openai
    client = openai.OpenAI(base_url=base + "/v1", api_key=KEY)
    answer = client.embeddings.create(model="default", input=TEXTS)
    same("openai (base64 by default)", [row.embedding for row in answer.data], expected)
    answer = client.embeddings.create(model="default", input=TEXTS, encoding_format="float")
    same("openai (float)", [row.embedding for row in answer.data], expected)
    answer = client.embeddings.create(model="default", input=TEXTS[0], dimensions=8)
    short = expected[:1, :8] / np.linalg.norm(expected[:1, :8], axis=1, keepdims=True)
    same("openai (dimensions)", [row.embedding for row in answer.data], short, exact=False)
    assert [model.id for model in client.models.list()] == ["default"]
    for bad, kind in [(dict(model="other", input="a"), openai.NotFoundError),
                      (dict(model="default", input=[]), openai.BadRequestError)]:
        try:
            client.embeddings.create(**bad)
            raise AssertionError(bad)
        except kind:
            pass
    try:
        openai.OpenAI(base_url=base + "/v1", api_key="wrong").models.list()
        raise AssertionError("a wrong key was taken")
    except openai.AuthenticationError:
        print("ok   openai's errors are openai's")

    import cohere
    client = cohere.ClientV2(api_key=KEY, base_url=base)
    answer = client.embed(model="default", texts=TEXTS, input_type="search_document",
                          embedding_types=["float", "int8", "uint8", "binary", "ubinary", "base64"])
    same("cohere", answer.embeddings.float_, expected)
    bits = np.packbits(expected > 0, axis=1)
    assert (np.array(answer.embeddings.ubinary) == bits).all()
    assert (np.array(answer.embeddings.binary) == bits.astype(int) - 128).all()
    assert (np.array(answer.embeddings.int8) + 128 == np.array(answer.embeddings.uint8)).all()

    import ollama
    client = ollama.Client(host=base, headers={"Authorization": "Bearer " + KEY})
    same("ollama", client.embed(model="default", input=TEXTS).embeddings, expected)
    same("ollama (embeddings)", [client.embeddings(model="default", prompt=TEXTS[0]).embedding], expected[:1])
    assert client.list().models[0].model == "default"

    from huggingface_hub import InferenceClient
    for name, url in [("/embed", base + "/embed"), ("/", base)]:
        client = InferenceClient(model=url, token=KEY)
        found = np.vstack([client.feature_extraction(text) for text in TEXTS])
        same(f"huggingface_hub.InferenceClient {name}", found, expected)
    similar = client.sentence_similarity(TEXTS[0], other_sentences=TEXTS)
    same("huggingface_hub sentence_similarity", similar, expected @ expected[0], exact=False)

    from langchain_openai import OpenAIEmbeddings
    chain = OpenAIEmbeddings(model="default", base_url=base + "/v1", api_key=KEY,
                             check_embedding_ctx_length=False)
    same("langchain-openai", chain.embed_documents(TEXTS), expected)
    same("langchain-openai (query)", [chain.embed_query(TEXTS[0])], expected[:1])

    from llama_index.embeddings.openai import OpenAIEmbedding
    index = OpenAIEmbedding(model_name="default", api_base=base + "/v1", api_key=KEY)
    same("llama-index", index.get_text_embedding_batch(TEXTS), expected)

    import cbor2
    request = urllib.request.Request(base + "/encode", cbor2.dumps(TEXTS), {"x-api-key": KEY})
    answer = cbor2.loads(urllib.request.urlopen(request).read())
    same("cbor2 /encode", answer["vectors"], expected)

    arrow(base, flight, expected)
    grpc_checks(flight, expected)


def arrow(base, flight, expected):
    import pyarrow as pa
    import pyarrow.flight as fl
    table = pa.table({"n": range(len(TEXTS)), "text": TEXTS,
                      "kind": pa.array(["x"] * len(TEXTS)).dictionary_encode()})

    def vectors(found):
        column = found.column("vector").combine_chunks()
        return np.array(column.flatten()).reshape(len(column), -1)

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    request = urllib.request.Request(base + "/encode/arrow", sink.getvalue().to_pybytes(), {"x-api-key": KEY})
    found = pa.ipc.open_stream(urllib.request.urlopen(request).read()).read_all()
    same("pyarrow /encode/arrow (zstd)", vectors(found), expected)
    assert found.drop(["vector"]).equals(table)

    options = fl.FlightCallOptions(headers=[(b"authorization", b"Bearer " + KEY.encode())])
    client = fl.connect(f"grpc://127.0.0.1:{flight}")
    for path in [["embed"], ["embed", "default"]]:
        writer, reader = client.do_exchange(fl.FlightDescriptor.for_path(*path), options)
        with writer:
            writer.begin(table.schema)
            schema = reader.schema  # comes before the first batch is sent
            for i, batch in enumerate(table.to_batches(max_chunksize=2)):
                writer.write_with_metadata(batch, str(i).encode())
            writer.done_writing()
            chunks = [chunk for chunk in reader]
        found = pa.Table.from_batches([chunk.data for chunk in chunks], schema)
        assert [chunk.app_metadata.to_pybytes() for chunk in chunks] == [b"0", b"1", b"2"]
        same(f"pyarrow.flight do_exchange {path}", vectors(found), expected)
        assert found.drop(["vector"]).equals(table)
        assert found.schema.metadata[b"fletcher.fingerprint"]

    writer, acks = client.do_put(fl.FlightDescriptor.for_path("books"), table.schema, options)
    writer.write_table(table)
    writer.done_writing()
    assert json.loads(acks.read().to_pybytes())["rows"] == len(TEXTS)
    writer.close()
    info = client.get_flight_info(fl.FlightDescriptor.for_path("books"), options)
    found = client.do_get(info.endpoints[0].ticket, options).read_all()
    same("pyarrow.flight do_put, do_get", vectors(found), expected)
    assert [i.descriptor.path for i in client.list_flights(options=options)] == [[b"books"]]
    models = json.loads(next(iter(client.do_action("models", options))).body.to_pybytes())
    assert models[0]["name"] == "default"
    for action in [lambda: list(client.list_flights()), lambda: client.do_action("models").__next__(),
                   lambda: client.get_flight_info(fl.FlightDescriptor.for_path("books"))]:
        try:
            action()
            raise AssertionError("no key was needed")
        except fl.FlightUnauthenticatedError:
            pass
    token = client.authenticate_basic_token("user", KEY)
    assert len(list(client.list_flights(options=fl.FlightCallOptions(headers=[token])))) == 1
    print("ok   pyarrow.flight refuses without a key, and takes it as a password")


def grpc_checks(flight, expected):
    """As grpcurl does: learn the services by reflection, then call them."""
    import grpc
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message_factory import GetMessageClass
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
    channel = grpc.intercept_channel(grpc.insecure_channel(f"127.0.0.1:{flight}"), Key())
    database = ProtoReflectionDescriptorDatabase(channel)
    services = set(database.get_services())
    assert {"tei.v1.Embed", "tei.v1.Info", "tei.v1.Tokenize", "grpc.health.v1.Health"} <= services, services
    pool = DescriptorPool(database)
    method = pool.FindServiceByName("tei.v1.Embed").FindMethodByName("EmbedStream")
    request, answer = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    call = channel.stream_stream("/tei.v1.Embed/EmbedStream", request.SerializeToString, answer.FromString)
    found = [a.embeddings for a in call(request(inputs=text, truncate=True) for text in TEXTS)]
    same("grpcio by reflection: tei.v1 EmbedStream", found, expected)
    check = pool.FindServiceByName("grpc.health.v1.Health").FindMethodByName("Check")
    request, answer = GetMessageClass(check.input_type), GetMessageClass(check.output_type)
    call = channel.unary_unary("/grpc.health.v1.Health/Check", request.SerializeToString, answer.FromString)
    assert call(request(service="tei.v1.Embed")).status == 1
    print("ok   grpc health")


def Key():
    import grpc

    class Interceptor(grpc.UnaryUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):
        def with_key(self, details):
            metadata = list(details.metadata or []) + [("authorization", "Bearer " + KEY)]
            details_type = type("Details", (grpc.ClientCallDetails,), {})
            new = details_type()
            new.method, new.timeout, new.metadata = details.method, details.timeout, metadata
            new.credentials, new.wait_for_ready, new.compression = details.credentials, None, None
            return new

        def intercept_unary_unary(self, go_on, details, request):
            return go_on(self.with_key(details), request)

        def intercept_stream_stream(self, go_on, details, requests):
            return go_on(self.with_key(details), requests)

    return Interceptor()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        binary = os.path.abspath(sys.argv[1])
        os.chdir(folder)
        main(binary)
    print("all clients agree")
