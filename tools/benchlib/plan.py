"""How long and how much: the whole measurement, or a first look of about two minutes."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FULL", "QUICK", "TINY", "Plan"]


@dataclass(frozen=True, slots=True)
class Plan:
    """Seconds are those of one run of one load. What a figure means is the same in every plan."""

    name: str
    seconds: float
    ramp_s: float  # before the measured part of each run
    tier_ramp_s: float  # the same, where the limits of a tier are to be found first
    depths: tuple[tuple[float, tuple[int, ...]], ...]  # of random I/O, for each service time in milliseconds
    rounds: int  # of contenders that take turns
    earlier_mib: int  # size of the disks of this tree and an earlier one
    sdk_depths: tuple[int, ...]
    stream_depths: tuple[int, ...]
    tiers: tuple[str, ...]
    attach_alone: int
    attach_together: int
    attach_many: int  # at once, beside an earlier tree, in a third of the rounds
    volumes: int  # of the CSI driver, one after the other and then at once
    volumes_rest_s: float
    extents: int
    mkfs_tib: tuple[int, ...]
    file_mib: int  # of sequential reads through ext4
    stream_s: float  # the most that one reading of the file may take
    memory_mib: tuple[int, ...]  # sizes of the write cache
    memory_s: float
    database_s: float
    database_rounds: int  # in each of which each cache mode has its turn
    pgbench_scale: int
    s3_mib: int  # size of the disk on s3backer
    s3_depths: tuple[int, ...]


FULL = Plan(
    name="full",
    seconds=5.0,
    ramp_s=1.0,
    tier_ramp_s=4.0,
    depths=((0, (1, 32, 64, 128)), (2, (1, 32, 64, 128)), (10, (1, 32, 128))),
    rounds=9,
    earlier_mib=512,
    sdk_depths=(1, 8, 32),
    stream_depths=(1, 32),
    tiers=("P10", "P20", "P30", "P40"),
    attach_alone=20,
    attach_together=32,
    attach_many=100,
    volumes=100,
    volumes_rest_s=40.0,
    extents=100_000,
    mkfs_tib=(1, 8),
    file_mib=512,
    stream_s=10.0,
    memory_mib=(16, 64, 256),
    memory_s=8.0,
    database_s=5.0,
    database_rounds=4,
    pgbench_scale=10,
    s3_mib=16,
    s3_depths=(1, 32),
)
QUICK = Plan(
    name="quick",
    seconds=1.0,
    ramp_s=0.3,
    tier_ramp_s=1.5,
    depths=((0, (32,)), (2, (64,))),
    rounds=3,
    earlier_mib=512,
    sdk_depths=(1,),
    stream_depths=(),
    tiers=("P20",),
    attach_alone=3,
    attach_together=8,
    attach_many=32,
    volumes=8,
    volumes_rest_s=10.0,
    extents=10_000,
    mkfs_tib=(1,),
    file_mib=128,
    stream_s=2.0,
    memory_mib=(16, 64),
    memory_s=1.0,
    database_s=1.0,
    database_rounds=1,
    pgbench_scale=1,
    s3_mib=1,
    s3_depths=(32,),
)
# For the tests: whether it runs, not what it finds.
TINY = Plan(
    name="tiny",
    seconds=0.3,
    ramp_s=0.1,
    tier_ramp_s=0.1,
    depths=((0, (4,)),),
    rounds=1,
    earlier_mib=4,
    sdk_depths=(2,),
    stream_depths=(),
    tiers=("P20",),
    attach_alone=1,
    attach_together=2,
    attach_many=3,
    volumes=2,
    volumes_rest_s=0.0,
    extents=50,
    mkfs_tib=(1,),
    file_mib=4,
    stream_s=0.3,
    memory_mib=(16,),
    memory_s=0.3,
    database_s=0.3,
    database_rounds=1,
    pgbench_scale=1,
    s3_mib=1,
    s3_depths=(32,),
)
