"""A kubelet's calls, in the machine, by the interpreter and the modules of a driver's tree.

`TREE/bin/python3 -I calls.py SOCKET SECONDS`: each line of the standard input is a method of CSI's Node service, a
blank, and its request in JSON; each answer is printed as a line of JSON. SECONDS is the limit of each, of waiting for a
driver that is just being started as well. The first call that is refused ends it with status 1 and a line
`CODE: what the driver says`.
"""

from __future__ import annotations

import sys
from typing import Any

import grpc
from google.protobuf.json_format import MessageToJson, Parse
from google.protobuf.message_factory import GetMessageClass

from blobfuse_dysk.kubernetes.csi.proto import csi_pb2 as pb

METHODS = pb.DESCRIPTOR.services_by_name["Node"].methods_by_name


def main() -> None:
    """See above."""
    with grpc.insecure_channel(f"unix:{sys.argv[1]}") as channel:
        for line in sys.stdin:
            name, _, text = line.strip().partition(" ")
            method = METHODS[name]
            call: Any = channel.unary_unary(
                f"/csi.v1.Node/{name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
            request = Parse(text, GetMessageClass(method.input_type)())
            try:
                answer = call(request, timeout=float(sys.argv[2]), wait_for_ready=True)
            except grpc.RpcError as error:
                sys.exit(f"{error.code().name}: {error.details()}")
            print(MessageToJson(answer, indent=None))


if __name__ == "__main__":
    main()
