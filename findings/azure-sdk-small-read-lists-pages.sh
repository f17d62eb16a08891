#!/usr/bin/env bash
# Azure SDK: reading 512 bytes of a page blob also fetches the list of all its pages.
#
# Expected: download_blob(offset, length) of less than one chunk is one ranged GET.
# Seen: it is two requests: the GET, and after it a Get Page Ranges without a range, over the whole blob, although
# nothing is left to download. For a block blob it is one.
# Version: azure-storage-blob 12.31.1 (PyPI). The other side is a small server in this file.
# Consequence: random reads through the SDK cost twice the requests, and on a large fragmented disk the second is the
# expensive one: the service needs long for such a list, and may run into its own time limit.
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

CONTENT = b"1" * 4096
requests = []


def expect(what, seen, before):
    print(f"{what}: {seen}")
    if seen != before:
        sys.exit(f"changed: it was {before}")

class Service(http.server.BaseHTTPRequestHandler):
    """What these calls need of the service: a page blob of 4 KiB, all of it written."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass

    def do_GET(self):
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        sent = self.headers.get("x-ms-range")
        requests.append(("page list" if "comp" in query else "content", sent))
        self.send_response(200 if "comp" in query else 206)
        if "comp" in query:
            body = b"<PageList><PageRange><Start>0</Start><End>4095</End></PageRange></PageList>"
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

for blob_type, answered in (
    ("BlockBlob", [("content", "bytes=1024-1535")]),
    ("PageBlob", [("content", "bytes=1024-1535"), ("page list", None)]),
):
    requests.clear()
    blob = BlobClient.from_connection_string(account, "disks", "disk")
    expect(f"{blob_type}: bytes read", len(blob.download_blob(1024, 512).readall()), 512)
    expect(f"{blob_type}: requests", requests, answered)
END
