#!/usr/bin/env bash
# Azure SDK: download_blob() of a page blob gives zeros for the pages that are listed behind the first NextMarker.
#
# Expected: it returns what the blob has, however fragmented that is.
# Seen: the SDK asks for the blob's page list once, takes the first answer for all of it, and makes up zeros, without a
# request, for each chunk that is not in there. The service documents that, from version 2020-10-02 on, it lists at most
# 10,000 ranges in one answer and continues behind a NextMarker. The SDK sends a newer version, but does not look at the
# marker here (list_page_ranges does). No exception, no warning, and the length is right.
# Version: azure-storage-blob 12.31.1 (PyPI). Azurite 3.37.0 never sends a marker; the other side is a small server in
# this file that lists four ranges an answer.
# Consequence: do not copy or back up a large used disk with download_blob() alone. Go by list_page_ranges(), or read
# chunk by chunk: the first chunk of each call is a real request.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check azure-storage-blob==12.31.1

venv/bin/python - <<'END'
import http.server
import sys
import threading
import urllib.parse

from azure.storage.blob import BlobClient

CHUNK = 8192
CONTENT = (b"1" * 512 + bytes(CHUNK - 512)) * 8
requests = []
blob_type = "PageBlob"
per_answer = 100


def expect(what, seen, before):
    print(f"{what}: {seen}")
    if seen != before:
        sys.exit(f"changed: it was {before}")

class Service(http.server.BaseHTTPRequestHandler):
    """What these calls need of the service: a page blob with a written page at the start of every 8 KiB."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass

    def do_GET(self):
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        sent = self.headers.get("x-ms-range")
        requests.append(("page list" if "comp" in query else "content", sent))
        self.send_response(200 if "comp" in query else 206)
        if "comp" in query:
            start = int(query.get("marker", ["0"])[0])
            end = min(start + per_answer, 8)
            ranges = "".join(
                f"<PageRange><Start>{at * CHUNK}</Start><End>{at * CHUNK + 511}</End></PageRange>"
                for at in range(start, end)
            )
            marker = f"<NextMarker>{end}</NextMarker>" if end < 8 else "<NextMarker/>"
            body = f"<PageList>{ranges}{marker}</PageList>".encode()
        else:
            first, last = map(int, sent.removeprefix("bytes=").split("-"))
            body = CONTENT[first : last + 1]
            self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{len(CONTENT)}")
        self.send_header("Content-Type", "application/xml" if "comp" in query else "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        self.send_header("x-ms-blob-type", blob_type)
        self.end_headers()
        self.wfile.write(body)

service = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
threading.Thread(target=service.serve_forever, daemon=True).start()
account = (
    "DefaultEndpointsProtocol=http;AccountName=probe;AccountKey=cHJvYmU=;"
    f"BlobEndpoint=http://127.0.0.1:{service.server_port}/probe"
)
blob = BlobClient.from_connection_string(
    account, "disks", "disk", max_single_get_size=CHUNK, max_chunk_get_size=CHUNK
)
expect("the list in one answer: content is right", blob.download_blob().readall() == CONTENT, True)
per_answer = 4
expect("the list in two answers: ranges by list_page_ranges", len(list(blob.list_page_ranges())), 8)
requests.clear()
content = blob.download_blob().readall()
expect("bytes downloaded", len(content), len(CONTENT))
expect("written pages among them", content.count(b"1" * 512), 4)
expect("chunks asked for", sum(1 for what, _ in requests if what == "content"), 4)
chunks = b"".join(blob.download_blob(at, CHUNK).readall() for at in range(0, len(CONTENT), CHUNK))
expect("read chunk by chunk: content is right", chunks == CONTENT, True)
END
