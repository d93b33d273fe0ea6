"""A server of the program under test, started for one `with` and ended well after it."""

import contextlib
import os
import socket
import subprocess
import time
import urllib.request


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def serving(binary, **environment):
    """Serves HTTP and Flight on free ports; gives the base address and Flight's port when it is ready."""
    http, flight = free_port(), free_port()
    command = [binary, "serve", "--http", f"127.0.0.1:{http}", "--flight", f"127.0.0.1:{flight}", "--log-level", "warn"]
    server = subprocess.Popen(command, env=os.environ | environment)
    base = f"http://127.0.0.1:{http}"
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(base + "/readyz")
                break
            except OSError:
                time.sleep(0.05)
        else:
            raise SystemExit("the server does not become ready")
        yield base, flight
    finally:
        server.terminate()
        ended = server.wait(20)
    assert ended == 0, f"the server ends with {ended}"
