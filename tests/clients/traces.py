"""Traces as OpenTelemetry's own messages read them: a collector of one file, and requests over HTTP and Flight.

    venv/bin/pip install opentelemetry-proto pyarrow
    venv/bin/python tests/clients/traces.py target/release/fletcher
"""

import json
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.flight
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from serving import serving

SPANS = []
TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"


class Collector(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        assert self.path == "/v1/traces", self.path
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                SPANS.extend(scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


def main(binary):
    collector = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    to = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}"}
    with serving(binary, OTEL_SERVICE_NAME="embeddings", **to) as (base, flight):
        body = json.dumps({"input": ["a", "b"]}).encode()
        headers = {"content-type": "application/json", "traceparent": TRACEPARENT}
        urllib.request.urlopen(urllib.request.Request(base + "/v1/embeddings", body, headers)).read()
        options = pa.flight.FlightCallOptions(headers=[(b"traceparent", TRACEPARENT.encode())])
        client = pa.flight.connect(f"grpc://127.0.0.1:{flight}")
        batch = pa.record_batch({"text": ["a", "b", "c"]})
        writer, reader = client.do_exchange(pa.flight.FlightDescriptor.for_path("embed"), options)
        with writer:
            writer.begin(batch.schema)
            writer.write_batch(batch)
            writer.done_writing()
            assert reader.read_all().num_rows == 3
    ours = [span for span in SPANS if span.trace_id.hex() == TRACE]
    requests = {span.name: span for span in ours if span.kind == span.SPAN_KIND_SERVER}
    assert len(requests) == 2, requests.keys()
    for name, request in requests.items():
        stages = sorted((s for s in ours if s.parent_span_id == request.span_id), key=lambda s: s.start_time_unix_nano)
        assert [stage.name for stage in stages] == ["tokenise", "queue", "encode", "answer"], stages
        took = {s.name: f"{(s.end_time_unix_nano - s.start_time_unix_nano) / 1e6:.3f} ms" for s in stages}
        print(f"ok   {name}: {took}")


if __name__ == "__main__":
    main(*sys.argv[1:])
