"""The page at `/` and the API page in headless Chromium, with nothing but the server to load from."""

import os
import re
import subprocess
import sys
import tempfile

from serving import serving


def dump(chromium, url):
    with tempfile.TemporaryDirectory() as profile:
        out = subprocess.run(
            [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
             "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--virtual-time-budget=8000",
             "--enable-logging=stderr", "--dump-dom", url], capture_output=True, timeout=120)
    # Warnings and errors of the page, a blocked load among them, are said there.
    console = [line for line in out.stderr.decode().splitlines() if "CONSOLE" in line]
    assert not console, console
    return out.stdout.decode()


def main(binary, chromium):
    with serving(binary) as (base, _):
        page = dump(chromium, base + "/")
        assert 'data-texts="8"' in page, "the eight texts of the page were embedded and drawn"
        said = re.search(r'id="said"[^>]*>([^<]*)', page).group(1)
        assert re.match(r"8 texts, \d+ tokens, \d+ dimensions, [\d.]+ ms", said), said
        assert re.search(r'id="tokens-rate">[\d.]+', page), "the live numbers came"
        docs = dump(chromium, base + "/docs")
        for path in ["/v1/embeddings", "/embed", "/v2/embed", "/api/embed", "/encode/arrow"]:
            assert f"<code>{path}</code>" in docs, path
        print(f"ok   the page says: {said}")
        print("ok   the API page lists the routes")


if __name__ == "__main__":
    main(os.path.abspath(sys.argv[1]), sys.argv[2])
