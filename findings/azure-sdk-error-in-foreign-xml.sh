#!/usr/bin/env bash
# Azure SDK: an error answer whose body is somebody else's XML raises TypeError, not an exception of the SDK.
#
# Expected: whatever the body of a 403 or 503 is, HttpResponseError (AzureError at the least) with its status.
# Seen: that is so for HTML, text, JSON, broken XML and no body, and for XML with a Message in it. For XML without one,
# such as a gateway's page that is sent as XML, the code that puts the text together adds None to a string, and the
# status is lost with it.
# Version: azure-storage-blob 12.31.1 (PyPI). The other side is a small server in this file.
# Consequence: `except AzureError` around a loop that outlasts outages does not catch it, and the program ends at a
# gateway's 503 that it would have waited out. Catch TypeError around the SDK's calls as "no answer of the service".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check azure-storage-blob==12.31.1

venv/bin/python - 2>messages <<'END' || { cat messages >&2 && exit 1; }
import http.server
import sys
import threading

from azure.storage.blob import BlobClient

answer = ("", b"")


def expect(what, seen, before):
    print(f"{what}: {seen}")
    if seen != before:
        sys.exit(f"changed: it was {before}")


class Service(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass

    def do_PUT(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        kind, body = answer
        self.send_response(503)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


service = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
threading.Thread(target=service.serve_forever, daemon=True).start()
account = (
    "DefaultEndpointsProtocol=http;AccountName=probe;AccountKey=cHJvYmU=;"
    f"BlobEndpoint=http://127.0.0.1:{service.server_port}/probe"
)
blob = BlobClient.from_connection_string(account, "disks", "disk", retry_total=0)
OWN = b"<Error><Code>ServerBusy</Code><Message>Busy.</Message></Error>"
PAGE = b"<html><body><p>This service is closed for today.</p></body></html>"
for what, kind, body, before in (
    ("the service's own", "application/xml", OWN, "HttpResponseError 503"),
    ("no body", "application/xml", b"", "HttpResponseError 503"),
    ("HTML", "text/html", PAGE, "HttpResponseError 503"),
    ("JSON", "application/json", b'["closed"]', "HttpResponseError 503"),
    ("XML, cut off", "application/xml", PAGE[:-7], "HttpResponseError 503"),
    ("XML of another kind", "application/xml", PAGE, "TypeError None"),
):
    answer = (kind, body)
    try:
        blob.upload_page(b"1" * 512, 0, 512)
        seen = "success"
    except Exception as error:
        seen = f"{type(error).__name__} {getattr(error, 'status_code', None)}"
    expect(what, seen, before)
END
