#!/usr/bin/env bash
# Azure SDK: when an answer is lost, set_sequence_number("increment") counts twice and create_snapshot() makes two.
#
# Expected: the SDK repeats by itself only what may be done twice, and leaves the rest to the caller.
# Seen: when the connection is lost after the service has done the work, the default policy sends the same request
# again and hands out the second answer as if it were the only one.
# Version: azure-storage-blob 12.31.1 (PyPI). The other side is a small server in this file that does the work and then
# closes the connection once without an answer.
# Consequence: a number that tells two owners of a disk apart must not come from "increment": use "max" with a number of
# one's own, or a condition (If-Match), which refuses the repetition. Snapshots that nobody knows of are paid for.
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

from azure.storage.blob import BlobClient

number, snapshots, lose = 10, 0, 0


def expect(what, seen, before):
    print(f"{what}: {seen}")
    if seen != before:
        sys.exit(f"changed: it was {before}")

class Service(http.server.BaseHTTPRequestHandler):
    """What these calls need of the service: a page blob with a sequence number and snapshots."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass

    def do_PUT(self):
        global number, snapshots, lose
        if "comp=snapshot" in self.path:
            snapshots += 1
        elif self.headers["x-ms-sequence-number-action"] == "increment":
            number += 1
        elif self.headers["x-ms-sequence-number-action"] == "max":
            number = max(number, int(self.headers["x-ms-blob-sequence-number"]))
        if lose:
            lose -= 1
            self.close_connection = True
            return
        self.send_response(201 if "comp=snapshot" in self.path else 200)
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        self.send_header("x-ms-blob-sequence-number", str(number))
        self.send_header("x-ms-snapshot", f"2024-01-01T00:00:0{snapshots}.0000000Z")
        self.send_header("Content-Length", "0")
        self.end_headers()


service = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
threading.Thread(target=service.serve_forever, daemon=True).start()
account = (
    "DefaultEndpointsProtocol=http;AccountName=probe;AccountKey=cHJvYmU=;"
    f"BlobEndpoint=http://127.0.0.1:{service.server_port}/probe"
)
blob = BlobClient.from_connection_string(account, "disks", "disk", initial_backoff=1)

expect("increment, from 10", blob.set_sequence_number("increment")["blob_sequence_number"], 11)
lose = 1
expect("increment, the answer lost", blob.set_sequence_number("increment")["blob_sequence_number"], 13)
lose = 1
expect("max of 20, the answer lost", blob.set_sequence_number("max", "20")["blob_sequence_number"], 20)
blob.create_snapshot()
expect("snapshots", snapshots, 1)
lose = 1
blob.create_snapshot()
expect("snapshots after one more, the answer lost", snapshots, 3)
END
