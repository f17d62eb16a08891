"""Between gRPC and the services: what each call goes through, whatever it does.

A service is an object with a method for each call that it offers, named as in csi.proto: `(request, context) ->
response`, or an iterator of responses where they are streamed. It raises; here that becomes a code and one line, never
a traceback. Before the method is called, what the specification requires of the request is checked (requests.py), and
the volume is locked; afterwards one line is logged. gRPC's own code generator is not needed for this: the descriptors
in csi_pb2 have all that there is to know of a call.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any, TypeAlias

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc import StatusCode

from blobfuse_dysk.errors import DyskError
from blobfuse_dysk.kubernetes.csi import requests
from blobfuse_dysk.kubernetes.csi.locks import VolumeLocks
from blobfuse_dysk.kubernetes.csi.proto import csi_pb2
from blobfuse_dysk.kubernetes.csi.status import CallError, code_of, line_of
from blobfuse_dysk.printable import printable

__all__ = ["MOST_CALLS", "Context", "service_handler"]

Context: TypeAlias = grpc.ServicerContext
"""What a method may ask of its call: is_active() and time_remaining() tell whether somebody still waits for it."""

log = logging.getLogger("dysk-csi")

MOST_CALLS = 96  # at a time, in one process; the Identity service's are not counted, so that Probe is always answered
_calls = threading.BoundedSemaphore(MOST_CALLS)


def service_handler(name: str, service: object) -> grpc.GenericRpcHandler:
    """What a server takes to offer a service of csi.proto (`Identity`, `Controller`...)."""
    locks = VolumeLocks()
    descriptor = csi_pb2.DESCRIPTOR.services_by_name[name]
    handlers = {each.name: _handler(each, service, locks) for each in descriptor.methods}
    return grpc.method_handlers_generic_handler(descriptor.full_name, handlers)


def _handler(method: MethodDescriptor, service: object, locks: VolumeLocks) -> grpc.RpcMethodHandler[Any, Any]:
    call = getattr(service, method.name, None)
    read = GetMessageClass(method.input_type).FromString
    write = GetMessageClass(method.output_type).SerializeToString

    def single(request: Any, context: Context) -> Any:
        with _watched(method, request, context, locks):
            if call is None:
                raise CallError(StatusCode.UNIMPLEMENTED, f"this driver does not offer {method.name}")
            return call(request, context)

    def streamed(request: Any, context: Context) -> Iterator[Any]:
        with _watched(method, request, context, locks):
            if call is None:
                raise CallError(StatusCode.UNIMPLEMENTED, f"this driver does not offer {method.name}")
            yield from call(request, context)

    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(streamed, read, write)
    return grpc.unary_unary_rpc_method_handler(single, read, write)


@contextlib.contextmanager
def _watched(method: MethodDescriptor, request: Message, context: Context, locks: VolumeLocks) -> Iterator[None]:
    """Check, lock and log a call; an exception ends it with its code, in one line."""
    began = time.monotonic()
    subject = printable(requests.subject(request)) or "-"
    counted = method.containing_service.name != "Identity"

    def tell(code: StatusCode, line: str = "") -> None:
        level = logging.WARNING
        if code is StatusCode.OK:  # a cluster probes each driver every few seconds
            level = logging.INFO if counted else logging.DEBUG
        log.log(level, "%s %s %s %.0f ms%s", method.name, subject, code.name, 1000 * (time.monotonic() - began), line)

    try:
        with contextlib.ExitStack() as stack:
            if counted:
                if not _calls.acquire(blocking=False):
                    raise CallError(StatusCode.UNAVAILABLE, f"{MOST_CALLS} calls are under way", remedy="try again")
                stack.callback(_calls.release)
            requests.check(request)
            stack.enter_context(locks.held(*requests.locked(request)))
            yield
    except GeneratorExit:  # the other side takes no more of a stream
        tell(StatusCode.CANCELLED)
        raise
    except Exception as error:
        code, line = code_of(error), line_of(error)
        if not isinstance(error, DyskError):  # whose line says all
            log.info("what led to the next line", exc_info=error)
        tell(code, f": {line}")
        context.abort(code, line)
    else:
        tell(StatusCode.OK)
