"""Azurite and the project's own server agree: data, page lists, conditions, properties, snapshots, lists."""

from __future__ import annotations

import pytest

from blobfuse_dysk.testing import PageBlobServer
from blobfuse_dysk.testing.azurite import Azurite
from tests.wire.parity import DATA, PAGE, Deviations, Scenario, Script, compare
from tests.wire.rest import md5_of

A, B = "aaaaaaaa-0000-4000-8000-000000000001", "bbbbbbbb-0000-4000-8000-000000000002"

SCENARIOS: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    """Register."""
    SCENARIOS[function.__name__] = function
    return function


@scenario
def put_and_get(script: Script) -> None:
    rest, path = script.rest, script.blob()
    script.note("write", rest.put(path, 2 * PAGE, DATA))
    script.note("read range", rest.get(path, 2 * PAGE, PAGE))
    script.note("read across", rest.get(path, 1000, 1000))
    script.note("read past the end", rest.get(path, 63 * PAGE, 4 * PAGE))
    script.note("read behind the end", rest.get(path, 64 * PAGE, PAGE))
    script.note("read all", rest("GET", path))
    script.note("plain Range header", rest("GET", path, headers={"Range": "bytes=1024-1535"}))
    script.note("open range", rest("GET", path, headers={"x-ms-range": "bytes=32256-"}))
    script.note("clear", rest.clear(path, 2 * PAGE, PAGE))
    script.note("read cleared", rest.get(path, 2 * PAGE, PAGE))
    script.states("properties", path)


@scenario
def put_page_refused(script: Script) -> None:
    rest, path = script.rest, script.blob()
    script.note("unaligned offset", rest.put(path, 100, DATA))
    script.note("unaligned length", rest.put(path, 0, DATA[:100]))
    script.note("outside", rest.put(path, 64 * PAGE, DATA))
    script.note("half outside", rest.put(path, 63 * PAGE, DATA * 2))
    script.note("clear half outside", rest.clear(path, 63 * PAGE, 2 * PAGE))
    script.note("no range", rest("PUT", path, "comp=page", {"x-ms-page-write": "update"}, DATA))
    script.note("no action", rest("PUT", path, "comp=page", {"x-ms-range": "bytes=0-511"}, DATA))
    bad_action = {"x-ms-range": "bytes=0-511", "x-ms-page-write": "overwrite"}
    script.note("bad action", rest("PUT", path, "comp=page", bad_action, DATA))
    wrong_length = {"x-ms-range": "bytes=0-1023", "x-ms-page-write": "update"}
    script.note("length differs", rest("PUT", path, "comp=page", wrong_length, DATA))
    clear_with_body = {"x-ms-range": "bytes=0-511", "x-ms-page-write": "clear"}
    script.note("clear with body", rest("PUT", path, "comp=page", clear_with_body, DATA))
    script.note("no blob", rest.put(f"{script.container}/none", 0, DATA))
    script.note("no container", rest.put("nosuchcontainer/none", 0, DATA))


@scenario
def checksums(script: Script) -> None:
    rest, path = script.rest, script.blob()
    script.note("right", rest.put(path, 0, DATA, Content_MD5=md5_of(DATA)))
    script.note("wrong", rest.put(path, 512, DATA, Content_MD5=md5_of(b"other")))
    script.note("malformed", rest.put(path, 512, DATA, Content_MD5="abc"))
    reply = script.note("asked for", rest.get(path, 0, PAGE, x_ms_range_get_content_md5="true"))
    script.seen["asked for: value"] = reply.headers.get("content-md5") == md5_of(DATA)
    script.note("only the right one landed", rest("GET", path, "comp=pagelist"))


@scenario
def page_ranges(script: Script) -> None:
    rest, path = script.rest, script.blob()
    script.note("blank", rest("GET", path, "comp=pagelist"))
    for page in (1, 2, 5, 9, 10, 11, 63):
        assert rest.put(path, page * PAGE, DATA).status == 201
    script.note("several", rest("GET", path, "comp=pagelist"))
    assert rest.clear(path, 10 * PAGE, PAGE).status == 201
    script.note("split", rest("GET", path, "comp=pagelist"))
    for first, last in ((0, 511), (512, 1535), (1024, 5119), (0, 32767), (0, 99999999), (32768, 33279)):
        label = f"range {first}-{last}"
        script.note(label, rest("GET", path, "comp=pagelist", {"x-ms-range": f"bytes={first}-{last}"}))
    script.note("zeros count", rest.put(path, 20 * PAGE, bytes(PAGE)))
    script.note("after zeros", rest("GET", path, "comp=pagelist"))
    assert rest.clear(path, 0, 64 * PAGE).status == 201
    script.note("all cleared", rest("GET", path, "comp=pagelist"))


@scenario
def sequence_numbers(script: Script) -> None:
    rest, path = script.rest, script.blob()

    def act(label: str, **headers: str) -> None:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        script.note(label, rest("PUT", path, "comp=properties", names))

    act("max 5", x_ms_sequence_number_action="max", x_ms_blob_sequence_number="5")
    act("max 3 keeps 5", x_ms_sequence_number_action="max", x_ms_blob_sequence_number="3")
    act("increment", x_ms_sequence_number_action="increment")
    act("increment with number", x_ms_sequence_number_action="increment", x_ms_blob_sequence_number="9")
    act("update 4", x_ms_sequence_number_action="update", x_ms_blob_sequence_number="4")
    act("update without number", x_ms_sequence_number_action="update")
    act("unknown action", x_ms_sequence_number_action="least", x_ms_blob_sequence_number="4")
    script.states("now", path)
    for condition in ("le", "lt", "eq"):
        for number in (3, 4, 5):
            headers = {f"x_ms_if_sequence_number_{condition}": str(number)}
            script.note(f"write {condition} {number}", rest.put(path, 0, DATA, **headers))
            script.note(f"clear {condition} {number}", rest.clear(path, 0, PAGE, **headers))
    script.note("created with a number", rest.create(f"{script.container}/n", 512, x_ms_blob_sequence_number="77"))
    script.states("created", f"{script.container}/n")


@scenario
def etag_conditions(script: Script) -> None:
    rest, path = script.rest, script.blob()
    assert rest.put(path, 0, DATA).status == 201
    etag = rest("HEAD", path).headers["etag"]
    other = '"0x8D00000000000AA"'
    past, future = "Mon, 02 Jan 2006 15:04:05 GMT", "Fri, 01 Jan 2100 00:00:00 GMT"
    for label, headers in (
        ("match", {"If_Match": etag}),
        ("match any", {"If_Match": "*"}),
        ("match other", {"If_Match": other}),
        ("none match", {"If_None_Match": etag}),
        ("none match other", {"If_None_Match": other}),
        ("modified since past", {"If_Modified_Since": past}),
        ("modified since future", {"If_Modified_Since": future}),
        ("unmodified since past", {"If_Unmodified_Since": past}),
        ("unmodified since future", {"If_Unmodified_Since": future}),
    ):
        script.note(f"read {label}", rest.get(path, 0, PAGE, **headers))
    script.note("write match", rest.put(path, 0, DATA, If_Match=etag))
    script.note("write match again", rest.put(path, 0, DATA, If_Match=etag))
    script.note("write none match other", rest.put(path, 0, DATA, If_None_Match=other))
    script.note("write unmodified since past", rest.put(path, 0, DATA, If_Unmodified_Since=past))
    script.note("write modified since future", rest.put(path, 0, DATA, If_Modified_Since=future))
    script.note("create if none", rest.create(path, 512, If_None_Match="*"))
    script.note("create if match missing", rest.create(f"{script.container}/new", 512, If_Match="*"))


@scenario
def resize(script: Script) -> None:
    rest, path = script.rest, script.blob()
    assert rest.put(path, 63 * PAGE, DATA).status == 201

    def to(label: str, size: str) -> None:
        script.note(label, rest("PUT", path, "comp=properties", {"x-ms-blob-content-length": size}))

    to("grow", str(128 * PAGE))
    script.states("grown", path)
    script.note("new part is zeros", rest.get(path, 127 * PAGE, PAGE))
    to("shrink", str(32 * PAGE))
    script.note("shrunk ranges", rest("GET", path, "comp=pagelist"))
    script.note("behind the new end", rest.get(path, 63 * PAGE, PAGE))
    to("grow again", str(64 * PAGE))
    script.note("cut data is gone", rest.get(path, 63 * PAGE, PAGE))
    to("unaligned", "1000")
    to("not a number", "many")
    script.states("at last", path)


@scenario
def snapshots(script: Script) -> None:
    rest, path = script.rest, script.blob()
    assert rest.put(path, 0, DATA).status == 201
    taken = script.note("take", rest("PUT", path, "comp=snapshot", {"x-ms-meta-why": "backup"}))
    name = taken.headers["x-ms-snapshot"]
    query = f"snapshot={name}"
    assert rest.clear(path, 0, PAGE).status == 201
    script.note("blob has changed", rest.get(path, 0, PAGE))
    script.note("snapshot has not", rest.get(path, 0, PAGE, query))
    script.note("its ranges", rest("GET", path, f"comp=pagelist&{query}"))
    script.note("its properties", rest("HEAD", path, query))
    script.note("no such snapshot", rest("HEAD", path, "snapshot=2020-01-01T00:00:00.0000000Z"))
    script.note("delete blob refused", rest("DELETE", path))
    script.note("list", rest("GET", script.container, "comp=list&include=snapshots&restype=container"))
    script.note("delete snapshot", rest("DELETE", path, query))
    script.note("snapshot is gone", rest("HEAD", path, query))
    assert rest("PUT", path, "comp=snapshot").status == 201
    script.note("delete only", rest("DELETE", path, headers={"x-ms-delete-snapshots": "only"}))
    script.states("blob is left", path)
    assert rest("PUT", path, "comp=snapshot").status == 201
    script.note("delete all", rest("DELETE", path, headers={"x-ms-delete-snapshots": "include"}))
    script.states("all is gone", path)


@scenario
def metadata_and_properties(script: Script) -> None:
    rest, path = script.rest, script.blob()
    script.note("set", rest("PUT", path, "comp=metadata", {"x-ms-meta-holder": "node-1", "x-ms-meta-since": "today"}))
    script.states("set: properties", path)
    script.note("get", rest("GET", path, "comp=metadata"))
    script.note("replace", rest("PUT", path, "comp=metadata", {"x-ms-meta-holder": "node-2"}))
    script.states("replaced", path)
    script.note("remove", rest("PUT", path, "comp=metadata"))
    script.states("removed", path)
    reply = rest.create(f"{script.container}/typed", 512, x_ms_blob_content_type="application/x-disk")
    script.note("create with type", reply)
    script.seen["type"] = rest("HEAD", f"{script.container}/typed").headers["content-type"]


@scenario
def containers(script: Script) -> None:
    rest, name = script.rest, f"{script.container}-b"
    script.note("create", rest("PUT", name, "restype=container", {"x-ms-meta-use": "disks"}))
    script.note("create again", rest("PUT", name, "restype=container"))
    script.note("properties", rest("GET", name, "restype=container"))
    for blob in ("a/1", "a/2", "b", "c"):
        assert rest.create(f"{name}/{blob}", 512, x_ms_meta_eN=blob[0]).status == 201
    script.note("list", rest("GET", name, "comp=list&restype=container"))
    script.note("list metadata", rest("GET", name, "comp=list&include=metadata&restype=container"))
    script.note("list prefix", rest("GET", name, "comp=list&prefix=a&restype=container"))
    script.note("list delimiter", rest("GET", name, "comp=list&delimiter=%2F&restype=container"))
    names, marker = [], ""
    while True:
        page = rest("GET", name, f"comp=list&marker={marker}&maxresults=3&restype=container")
        names.append([each.findtext("Name") for each in page.xml.iter("Blob")])
        marker = page.xml.findtext("NextMarker") or ""
        if not marker:
            break
    script.seen["pages"] = names
    script.note("containers", rest("GET", "", f"comp=list&include=metadata&prefix={name}"))
    script.note("delete", rest("DELETE", name, "restype=container"))
    script.note("delete again", rest("DELETE", name, "restype=container"))
    script.note("gone", rest("GET", name, "comp=list&restype=container"))
    script.note("bad name", rest("PUT", "No_Good", "restype=container"))


@scenario
def block_blobs(script: Script) -> None:
    rest, path = script.rest, f"{script.container}/text"
    script.note("create", rest("PUT", path, headers={"x-ms-blob-type": "BlockBlob"}, body=b"hello"))
    script.states("properties", path)
    script.note("read", rest("GET", path))
    script.note("put page", rest.put(path, 0, DATA))
    script.note("clear page", rest.clear(path, 0, PAGE))
    script.note("page list", rest("GET", path, "comp=pagelist"))
    number = {"x-ms-sequence-number-action": "max", "x-ms-blob-sequence-number": "1"}
    script.note("sequence number", rest("PUT", path, "comp=properties", number))


@scenario
def create_and_delete(script: Script) -> None:
    rest, path = script.rest, f"{script.container}/d"
    script.note("unaligned", rest.create(path, 1000))
    script.note("no size", rest("PUT", path, headers={"x-ms-blob-type": "PageBlob"}))
    script.note("no type", rest("PUT", path))
    script.note("bad type", rest("PUT", path, headers={"x-ms-blob-type": "Floppy"}))
    script.note("create", rest.create(path, 8 << 40))
    script.states("8 TiB", path)
    script.note("replace", rest.create(path, 512))
    script.states("replaced", path)
    script.note("delete", rest("DELETE", path))
    script.note("delete again", rest("DELETE", path))
    script.note("read deleted", rest.get(path, 0, 512))
    script.note("no container", rest.create("nosuchcontainer/d", 512))
    assert rest.create(path, 512).status == 201
    assert rest.lease(path, "acquire", duration="-1", proposed=A).status == 201
    script.note("delete leased", rest("DELETE", path))
    script.note("replace leased", rest.create(path, 1024))
    script.note("replace leased with id", rest.create(path, 1024, x_ms_lease_id=A))
    script.note("delete with other id", rest("DELETE", path, headers={"x-ms-lease-id": B}))
    script.note("delete with id", rest("DELETE", path, headers={"x-ms-lease-id": A}))


NO_CODE = "Azurite's request validator answers 400 without x-ms-error-code"
OWN_CODE = "Azurite has a code of its own, InvalidOperation or the words of HTTP, where the service names the cause"
JOINED = "Azurite lists neighbouring writes as ranges of their own, the service joins them"
LENIENT = "Azurite accepts what the service refuses"

DEVIATIONS: Deviations = {
    ("put_and_get", "read behind the end"): (416, "InvalidRange", LENIENT),
    ("put_page_refused", "unaligned offset"): (416, "InvalidPageRange", OWN_CODE),
    ("put_page_refused", "unaligned length"): (416, "InvalidPageRange", OWN_CODE),
    ("put_page_refused", "outside"): (416, "InvalidPageRange", OWN_CODE),
    ("put_page_refused", "half outside"): (416, "InvalidPageRange", LENIENT),
    ("put_page_refused", "clear half outside"): (416, "InvalidPageRange", LENIENT),
    ("put_page_refused", "no range"): (400, "MissingRequiredHeader", OWN_CODE),
    ("put_page_refused", "no action"): (400, "MissingRequiredHeader", NO_CODE),
    ("put_page_refused", "bad action"): (400, "InvalidHeaderValue", NO_CODE),
    ("put_page_refused", "length differs"): (400, "InvalidHeaderValue", OWN_CODE),
    ("put_page_refused", "clear with body"): (400, "InvalidHeaderValue", OWN_CODE),
    ("page_ranges", "several"): (200, "", JOINED),
    ("page_ranges", "split"): (200, "", JOINED),
    ("page_ranges", "range 512-1535"): (200, "", JOINED),
    ("page_ranges", "range 0-32767"): (200, "", JOINED),
    ("page_ranges", "range 0-99999999"): (200, "", JOINED),
    ("page_ranges", "range 32768-33279"): (416, "InvalidRange", OWN_CODE),
    ("page_ranges", "after zeros"): (200, "", JOINED),
    ("sequence_numbers", "increment with number"): (400, "InvalidHeaderValue", OWN_CODE),
    ("sequence_numbers", "update without number"): (400, "MissingRequiredHeader", OWN_CODE),
    ("sequence_numbers", "unknown action"): (400, "InvalidHeaderValue", OWN_CODE),
    ("resize", "unaligned"): (400, "InvalidHeaderValue", OWN_CODE),
    ("resize", "not a number"): (400, "InvalidHeaderValue", NO_CODE),
    ("snapshots", "list"): (200, "", "the service lists the snapshots of a blob, oldest first, before the blob"),
    ("metadata_and_properties", "get"): (200, "", "Azurite answers Get Blob Metadata with the blob's content"),
    ("block_blobs", "sequence number"): (409, "InvalidBlobType", OWN_CODE),
    ("create_and_delete", "unaligned"): (400, "InvalidHeaderValue", OWN_CODE),
    ("create_and_delete", "no size"): (400, "MissingRequiredHeader", NO_CODE),
    ("create_and_delete", "no type"): (400, "MissingRequiredHeader", NO_CODE),
    ("create_and_delete", "bad type"): (400, "InvalidHeaderValue", NO_CODE),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_both_services_answer_alike(name: str, azurite: Azurite, shared_server: PageBlobServer) -> None:
    assert not compare(name, SCENARIOS[name], DEVIATIONS, azurite, shared_server)
