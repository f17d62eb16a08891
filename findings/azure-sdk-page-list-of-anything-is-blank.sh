#!/usr/bin/env bash
# Azure SDK: list_page_ranges() takes an answer that is no page list for a blob without pages.
#
# Expected: where the body of a 200 is empty, or has another root than PageList, an exception, as for a body that cannot
# be parsed.
# Seen: no pages, without an exception or a warning, for an empty body of any type and for any other XML document: what
# is not found in the tree counts as absent. A body of another type than XML, or XML that is cut off, raises.
# Version: azure-storage-blob 12.31.1 (PyPI). The other side is a small server in this file.
# Consequence: a gateway in between that answers 200 with a page of its own, or with nothing, turns a full disk into a
# blank one: a backup by page list is empty and has no error, and "format if it has no pages" formats. Parse the list
# oneself, or compare with something else first, such as a read of the first page.
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

from azure.core.exceptions import DecodeError, DeserializationError
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

    def do_GET(self):
        kind, body = answer
        self.send_response(200)
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
LIST = b"<PageList><PageRange><Start>0</Start><End>511</End></PageRange></PageList>"
PAGE = b"<html><body><p>This service is closed for today.</p></body></html>"
for what, kind, body, before in (
    ("a page list", "application/xml", LIST, "1 found"),
    ("a page list, cut off", "application/xml", LIST[:-11], "an exception"),
    ("a page for people, as HTML", "text/html", PAGE, "an exception"),
    ("a page for people, as XML", "application/xml", PAGE, "0 found"),
    ("nothing, as XML", "application/xml", b"", "0 found"),
    ("nothing, as HTML", "text/html", b"", "0 found"),
):
    answer = (kind, body)
    try:
        seen = f"{len(list(blob.list_page_ranges()))} found"
    except (DecodeError, DeserializationError):
        seen = "an exception"
    expect(what, seen, before)
END
