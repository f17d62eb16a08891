"""kubernetes/: parameters of a class, secrets, names and ids, as text. Nothing is asked of a service."""

from __future__ import annotations

import base64

import pytest

from blobfuse_dysk.azure.credential.resolve import resolve
from blobfuse_dysk.errors import CredentialError, DyskError, NotFoundError, UsageError
from blobfuse_dysk.kubernetes.marks import VOLUME, encoded, mark
from blobfuse_dysk.kubernetes.parameters import Parameters, check_snapshot_parameters
from blobfuse_dysk.kubernetes.volume import (
    DEFAULT_CONTAINER,
    MOST_ID,
    SNAPSHOT_PART,
    Secret,
    blob_name,
    new_volume,
    snapshot_address,
    volume_address,
    with_secret,
)

KEY = base64.b64encode(b"a key that is a secret").decode()
SAS = "sv=2023-11-03&se=2035-01-01T00%3A00%3A00Z&sr=c&sp=rwdl&sig=c2VjcmV0"
SECRET = {"accountname": "mystore", "accountkey": KEY}


def test_all_parameters_are_read_in_any_capitals_and_given_on_to_the_node() -> None:
    read = Parameters.read(
        {
            "Account": "mystore",
            "CONTAINER": "disks",
            "blobPrefix": "prod/",
            "tier": "p20",
            "cachingmode": "ReadOnly",
            "fsType": "xfs",
            "mkfsOptions": "-K -L 'a b'",
            "ioTimeout": "10m",
            "iops": "500",
            "mbps": "12.5",
            "vhd": "true",
            "tags": "team=db, cost=42",
        }
    )
    assert (read.account, read.container, read.blob_prefix, read.tier) == ("mystore", "disks", "prod/", "P20")
    assert read.tags == (("team", "db"), ("cost", "42"))
    options = read.options()
    assert (options.cache, options.io_timeout_s, options.iops, options.mbps) == ("readonly", 600.0, 500, 12.5)
    at_node = Parameters.read(read.attributes())
    assert at_node.options() == options
    assert at_node.mount_options() == read.mount_options()
    assert at_node.mount_options().mkfs_options == ("-K", "-L", "a b")
    assert set(read.attributes()) == {"cachingMode", "fsType", "mkfsOptions", "ioTimeout", "iops", "mbps", "vhd"}


@pytest.mark.parametrize(
    "key",
    [
        "csi.storage.k8s.io/pvc/name",
        "csi.storage.k8s.io/provisioner-secret-name",
        "storage.kubernetes.io/csiProvisionerIdentity",
        "csiProvisionerSecretName",
        "csiProvisionerSecretNamespace",
        "csiNodePublishSecretName",
    ],
)
def test_what_kubernetes_adds_is_passed_over(key: str) -> None:
    assert Parameters.read({key: "anything"}) == Parameters()
    check_snapshot_parameters({key: "anything"})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"cacheMode": "none"}, "parameter 'cacheMode' is not known: did you mean cachingMode?"),
        ({"skuName": "Premium_LRS"}, "parameter 'skuName' is not known: there are account, container, endpoint"),
        ({"cachingMode": "writeback"}, "cachingMode 'writeback' is not known: use one of None, ReadOnly, ReadWrite"),
        ({"tier": "P5"}, "tier 'P5' is not known: use one of P4, P6"),
        ({"account": "https://mystore.blob.core.windows.net"}, "digits: write the name of the account alone"),
        ({"account": "mystore/disks"}, "account 'mystore/disks' is not 3 to 24 lower-case letters and digits"),
        ({"container": "disks/prod"}, "container 'disks/prod' is not 3 to 63"),
        ({"container": "Disks"}, "single dashes: write the name of the container alone"),
        ({"blobPrefix": "a?b"}, "blobPrefix 'a?b' has a '?' or '://' in it: write for example prod/"),
        ({"iops": "many"}, "iops 'many' is not a whole number"),
        ({"iops": "0"}, "iops of 0: use a whole number, 1 or more"),
        ({"mbps": "-1"}, "mbps of -1: use 0.1 or more"),
        ({"ioTimeout": "soon"}, "io-timeout 'soon' is not a time"),
        ({"fsType": "zfs"}, "fsType 'zfs' is not known"),
        ({"mkfsOptions": "'"}, "mkfs.options: No closing quotation"),
        ({"vhd": "maybe"}, "vhd 'maybe' is not known"),
        ({"tags": "a"}, "tags 'a' are not pairs"),
        ({"container": "A"}, "container 'A' is not 3 to 63"),
        ({"account": "My"}, "account 'My' is not 3 to 24"),
        ({"endpoint": "ftp://x"}, "is not an http or https URL"),
        ({"blobPrefix": "a/../"}, "'..' between slashes"),
        ({"iops": ""}, "parameter iops has no value"),
        ({"iops": "1", "IOPS": "2"}, "parameter iops is given twice"),
    ],
)
def test_a_class_that_cannot_be_is_refused_in_words(given: dict[str, str], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        Parameters.read(given)
    assert told in caught.value.line()


def test_only_some_parameters_change_later() -> None:
    assert Parameters.read({"iops": "5", "tier": "P30"}, mutable=True).iops == "5"
    with pytest.raises(UsageError, match="container cannot be changed"):
        Parameters.read({"container": "disks"}, mutable=True)
    with pytest.raises(UsageError, match="'bogus' is not known"):
        Parameters.read({"bogus": "1"}, mutable=True)


def test_settings_of_a_blob_count_before_the_attributes_and_strange_ones_do_not() -> None:
    made = Parameters.read({"iops": "100", "mbps": "10", "fsType": "xfs"})
    later = Parameters.read({"iops": "200", "cachingMode": "None"}, mutable=True)
    metadata = {name.upper(): value for name, value in later.settings().items()}
    strange = {"dysk_set_mbps": "much", "dysk_set_container": "other", "dysk_set_new": "1", "note": "x"}
    found = made.with_settings(metadata | strange)
    assert found == made.changed_by(later)
    assert (found.iops, found.mbps, found.cache, found.container) == ("200", "10", "none", "")


@pytest.mark.parametrize(
    ("secrets", "expected"),
    [
        (SECRET, ("mystore", KEY, "")),
        ({"AccountName": " mystore\n", "AccountKey": f"{KEY}\n"}, ("mystore", KEY, "")),
        ({"azurestorageaccountname": "mystore", "azurestorageaccountkey": KEY}, ("mystore", KEY, "")),
        ({"accountname": "mystore", "accountsas": f"?{SAS}"}, ("mystore", "", f"?{SAS}")),
        ({"connectionstring": f"AccountName=mystore;AccountKey={KEY}"}, ("mystore", KEY, "")),
        ({}, ("", "", "")),
    ],
)
def test_secrets_of_all_kinds_are_understood(secrets: dict[str, str], expected: tuple[str, str, str]) -> None:
    found = Secret.parse(secrets)
    assert (found.account, found.key, found.sas) == expected
    assert KEY not in repr(found)
    assert "c2VjcmV0" not in repr(found)


@pytest.mark.parametrize(
    ("secrets", "told"),
    [
        ({"accountnam": "x", "accountkey": KEY}, "has an unknown key: did you mean accountname?"),
        ({"user": "x"}, "has an unknown key: it takes accountname"),
        ({"accountkey": KEY}, "has no accountname"),
        ({"accountname": "mystore", "accountkey": ""}, "has no value for accountkey"),
        ({**SECRET, "accountsas": SAS}, "has more than one credential"),
        ({**SECRET, "azurestorageaccountname": "other"}, "has two different values"),
        ({"accountname": "other", "connectionstring": f"AccountName=mystore;AccountKey={KEY}"}, "of two accounts"),
        ({"accountname": "mystore", "endpoint": "https://mystore.blob.core.windows.net"}, "without a credential"),
        ({**SECRET, "allowhttp": "please"}, "allowhttp is neither yes nor no"),
    ],
)
def test_a_secret_that_cannot_be_is_refused_without_showing_it(secrets: dict[str, str], told: str) -> None:
    with pytest.raises(CredentialError) as caught:
        Secret.parse(secrets)
    assert told in caught.value.line()
    assert KEY not in caught.value.line()


def test_a_volume_gets_no_credential_of_another_account() -> None:
    with pytest.raises(CredentialError, match="is of account mystore, the volume in account other"):
        with_secret(volume_address("other/disks/a"), SECRET)
    with pytest.raises(CredentialError, match="is of account mystore"):
        new_volume("pvc-1", Parameters.read({"account": "other"}), SECRET)


@pytest.mark.parametrize(
    ("secret", "named"),
    [
        (SECRET, "account key from the volume's secret"),
        ({"accountname": "mystore", "accountsas": SAS}, "SAS from the volume's secret"),
    ],
)
def test_a_credential_is_named_by_where_it_came_from(secret: dict[str, str], named: str) -> None:
    assert resolve(*with_secret(volume_address("mystore/disks/a"), secret))[1].describe() == named


def test_the_endpoint_of_a_class_alone_is_no_place_to_send_a_credential() -> None:
    evil = Parameters.read({"endpoint": "https://mystore.example.org"})
    with pytest.raises(UsageError, match="is not that of the volume's secret"):
        with_secret(volume_address("mystore/disks/a"), SECRET, evil)
    named = {**SECRET, "endpoint": "https://mystore.example.org"}
    disk, _ = with_secret(volume_address("mystore/disks/a"), named, evil)
    assert str(disk.endpoint) == "https://mystore.example.org"
    assert disk.account_key == KEY


def test_plain_http_to_another_machine_is_for_the_secret_to_allow() -> None:
    volume = volume_address("mystore/disks/a")
    plain = {**SECRET, "endpoint": "http://10.0.0.1:10000/mystore"}
    with pytest.raises(UsageError) as caught:
        resolve(*with_secret(volume, plain))
    assert 'in Kubernetes: allowhttp: "yes" in the Secret' in caught.value.line()
    with pytest.raises(UsageError, match="is plain HTTP"):
        resolve(*with_secret(volume, {**plain, "allowhttp": "no"}))
    disk, _ = resolve(*with_secret(volume, {**plain, "allowhttp": "Yes"}))
    assert str(disk.endpoint) == "http://10.0.0.1:10000/mystore"


@pytest.mark.parametrize("volume_id", ["fake-vol-id", "a/b", "", "https://h/c/b", "mystore/disks/../x"])
def test_an_id_that_is_none_of_ours_is_of_no_volume(volume_id: str) -> None:
    with pytest.raises(NotFoundError):
        volume_address(volume_id)


def test_an_id_that_is_none_of_ours_is_told_why() -> None:
    with pytest.raises(NotFoundError) as caught:
        volume_address("MyStore/vhds/a.vhd")
    assert "account 'MyStore' is not 3 to 24 lower-case letters and digits" in caught.value.line()


@pytest.mark.parametrize("secret", [{}, {"accountname": "mystore"}])
def test_a_credential_that_is_missing_is_asked_for_where_kubernetes_has_it(secret: dict[str, str]) -> None:
    with pytest.raises(CredentialError) as caught:
        resolve(*new_volume("pvc-1", Parameters.read({"account": "mystore"}), secret))
    told = "no credential for account mystore in the volume's secret, nor on this machine: in Kubernetes name a Secret"
    assert caught.value.line().startswith(told)


def test_a_class_cannot_say_which_blob_a_new_volume_is() -> None:
    with pytest.raises(UsageError, match="parameter blob is of volumes that exist already"):
        new_volume("pvc-1", Parameters.read({"blob": "data"}), SECRET)


def test_ids_are_addresses() -> None:
    assert volume_address("mystore/disks/prod/a").blob == "prod/a"
    snapshot = snapshot_address("mystore/disks/a?snapshot=2026-01-31T12:00:00.0000000Z")
    assert snapshot.snapshot == "2026-01-31T12:00:00.0000000Z"
    with pytest.raises(NotFoundError):
        snapshot_address("mystore/disks/a")


def test_a_volume_lies_where_its_class_and_secret_say() -> None:
    disk, _ = new_volume("pvc-1", Parameters(), SECRET)
    assert disk.key == f"mystore/{DEFAULT_CONTAINER}/pvc-1"
    disk, _ = new_volume("pvc-1", Parameters.read({"container": "disks", "blobPrefix": "prod/"}), SECRET)
    assert disk.key == "mystore/disks/prod/pvc-1"
    with pytest.raises(UsageError, match="which account"):
        new_volume("pvc-1", Parameters(), {})


@pytest.mark.parametrize("name", ["x" * 128, "a name\twith blanks", "ümläut", "a/b", "a..b", ".hidden", "end.", "-"])
def test_any_name_gives_a_blob_of_its_own_whose_snapshots_fit_into_an_id(name: str) -> None:
    blob = blob_name("mystore", "disks", "p/", name)
    assert blob == blob_name("mystore", "disks", "p/", name)
    assert blob != blob_name("mystore", "disks", "p/", f"{name[:-1]}y")
    assert len(volume_address(f"mystore/disks/{blob}").key) + SNAPSHOT_PART <= MOST_ID


def test_a_plain_name_is_the_blobs() -> None:
    name = "pvc-0a1b2c3d-0000-1111-2222-333344445555"
    assert blob_name("mystore", "disks", "", name) == name


@pytest.mark.parametrize("name", ["pvc-1", "a name\twith blanks", "ümläut 50% /?=", " lead", "x" * 128])
def test_a_mark_holds_any_name(name: str) -> None:
    text = encoded(name)
    assert text.isascii()
    assert text.isprintable()
    assert text == text.strip()
    assert mark({"Dysk_Volume": text}, VOLUME) == name
    assert mark({}, VOLUME) == ""


def test_what_is_refused_is_refused_in_one_line() -> None:
    for call in (
        lambda: Parameters.read({"a\nb": "c"}),
        lambda: Secret.parse({"a\nb": "c"}),
        lambda: volume_address("\n"),
    ):
        with pytest.raises(DyskError) as caught:
            call()
        assert "\n" not in caught.value.line()
