"""A client for every call of csi.proto, made of its descriptors: `client.CreateVolume(request)`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass

from blobfuse_dysk.kubernetes.csi.proto import csi_pb2 as pb

__all__ = ["Client", "refusal"]

_METHODS = {method.name: method for service in pb.DESCRIPTOR.services_by_name.values() for method in service.methods}
LONGEST_S = 60.0


class Client:
    """Calls by their names; a stream's answers come as a list. timeout: seconds."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def __getattr__(self, name: str) -> Callable[..., Any]:
        try:
            method = _METHODS[name]
        except KeyError:
            raise AttributeError(name) from None
        path = f"/{method.containing_service.full_name}/{name}"
        write = GetMessageClass(method.input_type).SerializeToString
        read = GetMessageClass(method.output_type).FromString
        if method.server_streaming:
            stream = self._channel.unary_stream(path, request_serializer=write, response_deserializer=read)
            return lambda request, timeout=LONGEST_S: list(stream(request, timeout=timeout))
        single = self._channel.unary_unary(path, request_serializer=write, response_deserializer=read)
        return lambda request, timeout=LONGEST_S: single(request, timeout=timeout)

    def future(self, name: str, request: Any) -> Any:
        """A call that is under way: `cancel()`, `result()`."""
        method = _METHODS[name]
        call = self._channel.unary_unary(
            f"/{method.containing_service.full_name}/{name}",
            request_serializer=GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        return call.future(request, timeout=LONGEST_S)

    def wait(self, limit_s: float) -> None:
        """Until it answers. Raises TimeoutError."""
        deadline = time.monotonic() + limit_s
        while True:
            try:
                self.GetPluginInfo(pb.GetPluginInfoRequest(), timeout=2.0)
                return
            except grpc.RpcError:
                if time.monotonic() > deadline:
                    raise TimeoutError from None
                time.sleep(0.05)

    def close(self) -> None:
        self._channel.close()


def refusal(call: Callable[[], Any]) -> tuple[str, str]:
    """The code by which a call is refused, and its line."""
    try:
        answer = call()
    except grpc.RpcError as error:
        assert isinstance(error, grpc.Call)
        return error.code().name, str(error.details())
    raise AssertionError(f"it was not refused: {answer}")
