"""dyskctl convert-pv and install-flexvolume."""

from __future__ import annotations

import click

from blobfuse_dysk.cli.frame import Verb, settings
from blobfuse_dysk.cli.original.style import flag, read_dysk, read_text
from blobfuse_dysk.cli.output import print_json
from blobfuse_dysk.cli.types import DISK, SIZE, connection_options
from blobfuse_dysk.disk import DiskAddress
from blobfuse_dysk.errors import UsageError
from blobfuse_dysk.kubernetes.convert_pv import (
    ACCESS_MODES,
    RECLAIM_POLICIES,
    Volume,
    persistent_volume,
    to_yaml,
)
from blobfuse_dysk.options import AttachOptions

__all__ = ["convert_pv", "install_flexvolume"]


@click.command("convert-pv", cls=Verb)
@click.argument("disk", type=DISK, required=False)
@click.option("-f", "--file", "path", type=click.Path(), help="The JSON of a dysk; '-' or none: standard input.")
@click.option("--secret-name", required=True, help="The Kubernetes secret with accountname and accountkey.")
@click.option("--secret-namespace", help="The secret's namespace.")
@click.option("--namespace", help="Namespace of the volume. Kubernetes itself has none for volumes.")
@click.option("--reclaim-policy", type=click.Choice(RECLAIM_POLICIES), default="Retain", show_default=True)
@click.option("--access-mode", type=click.Choice(ACCESS_MODES), default="ReadWriteOnce", show_default=True)
@click.option("--fsType", "fstype", default="ext4", show_default=True, help="File system.")
@click.option("--labels", default="", metavar="KEY=VALUE,...", help="Labels of the volume.")
@click.option("--storageclass-name", help="Storage class.")
@flag("--read-only", default=False, help_text="Read-only, even if the dysk is not.")
@click.option("--csi", is_flag=True, help="For the CSI driver csi-dysk instead of the FlexVolume driver azure/dysk.")
@click.option("--yaml", "as_yaml", is_flag=True, help="Print YAML instead of JSON.")
@click.option("--name", help="Name of the volume. Default: the dysk's, or the blob's.")
@click.option("--size", type=SIZE, help="Size of the disk. Default: the dysk's, or asked of the service.")
@connection_options
@click.pass_context
def convert_pv(
    context: click.Context,
    disk: DiskAddress | None,
    path: str | None,
    secret_name: str,
    secret_namespace: str | None,
    namespace: str | None,
    reclaim_policy: str,
    access_mode: str,
    fstype: str,
    labels: str,
    storageclass_name: str | None,
    read_only: bool,
    csi: bool,
    as_yaml: bool,
    name: str | None,
    size: int | None,
    connection: AttachOptions,
) -> None:
    """Turn a disk, or the JSON that `mount -o json` printed, into a Kubernetes PersistentVolume.

    \b
    Examples:
      dyskctl convert-pv mystore/disks/data --secret-name dyskcreds --csi --yaml | kubectl apply -f -
      dyskctl mount -a mystore -p data.vhd -o json | dyskctl convert-pv --secret-name dyskcreds
    """
    if disk is not None and path is not None:
        raise UsageError("a disk and a file are one too many", remedy="leave one of them out")
    if disk is None:
        dysk = read_dysk(read_text(path or "-"))
        disk, read_only = dysk.address, read_only or dysk.Type == "R"
        name, size = name or dysk.Name, size or dysk.SizeGB << 30
    elif size is None:
        from blobfuse_dysk.disks.look import blob_size

        size = blob_size(disk, connection)
    volume = Volume(
        disk=disk,
        name=name or disk.blob.rpartition("/")[2],
        size=size,
        secret_name=secret_name,
        secret_namespace=secret_namespace,
        namespace=namespace,
        reclaim_policy=reclaim_policy,
        access_mode=access_mode,
        fstype=fstype,
        labels=_labels(labels),
        storage_class=storageclass_name,
        read_only=read_only,
    )
    value = persistent_volume(volume, csi=csi)
    if as_yaml:
        print(to_yaml(value), end="")
    else:
        print_json(value)


def _labels(text: str) -> dict[str, str]:
    labels = {}
    for piece in filter(None, text.split(",")):
        key, mark, value = piece.partition("=")
        if not key or not mark:
            raise UsageError(f"label {piece!r} is not KEY=VALUE", remedy="write for example --labels app=web,tier=db")
        labels[key] = value
    return labels


@click.command("install-flexvolume", cls=Verb)
@click.option(
    "--directory",
    "directories",
    multiple=True,
    metavar="DIR",
    help="The kubelet's --volume-plugin-dir. Default: those of AKS and of the kubelet itself that are there.",
)
@click.pass_context
def install_flexvolume(context: click.Context, directories: tuple[str, ...]) -> None:
    """Put the FlexVolume driver azure/dysk where this node's kubelet looks for it, for volumes of the original dysk.

    \b
    Examples:
      dyskctl install-flexvolume
      dyskctl install-flexvolume --directory /var/lib/kubelet/volumeplugins
    """
    from blobfuse_dysk.kubernetes.flexinstall import install

    written = install(directories)
    if settings(context).json:
        print_json(written)
    else:
        for path in written:
            print(path)
