"""An in-process-fast page blob server, for tests, demonstrations and benchmarks only.

It speaks the part of the Blob service's REST protocol that matters to a block device, checks every signature,
lease, condition and checksum, counts what it sees and can be told to misbehave. Run it with
`python -m blobfuse_dysk.testing.server`, or from Python with `blobfuse_dysk.testing.PageBlobServer`.

From the wire inwards: protocol (HTTP over asyncio) -> exchange (one request from arrival to answer: faults,
latency, tier limits) -> operations (which REST operation is it) -> auth, sas -> *_operations (what it does) ->
state, pages, leases (what is stored). statistics counts, control is the second port where tests steer it.
"""

__all__: list[str] = []
