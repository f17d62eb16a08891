"""Answers that are no success: the service's own refusals, and those of what stands between it and this machine.

Only the service's own word counts. A gateway, proxy or portal that answers in its place, with a 404, a redirect or a
200 of its own, knows nothing of the disk, and may have handed the request on: what became of it is unknown.
"""

from __future__ import annotations

from blobfuse_dysk.azure.wire import Reply, number, xml_text
from blobfuse_dysk.errors import GatewayError, ServiceError
from blobfuse_dysk.printable import printable

__all__ = ["gateway_error", "is_services_own", "service_error"]

_MOST_CODE, _MOST_MESSAGE = 100, 500  # characters of what the service says of a refusal


def is_services_own(reply: Reply) -> bool:
    """Whether the service gave this answer, and not something on the way to it.

    The service, as Azurite, puts a request id onto each of its answers, and a code onto each refusal. A code in the
    body is no proof: other stores' have the same form.
    Source: https://learn.microsoft.com/rest/api/storageservices/common-rest-api-error-codes and
    https://learn.microsoft.com/rest/api/storageservices/status-and-error-codes2
    """
    return reply.has(b"\r\nx-ms-request-id:") or (reply.status >= 400 and reply.has(b"\r\nx-ms-error-code:"))


def gateway_error(reply: Reply, what: str) -> GatewayError:
    """The error for an answer that is not the service's own, whatever its status. what: the operation."""
    kind = "a success" if reply.status < 300 else "an answer"
    server = printable(reply.header("server"), _MOST_CODE)
    return GatewayError(
        f"{what}: {kind} that is not the service's (HTTP {reply.status}{f', {server}' if server else ''})",
        status=reply.status,
        retry_after_s=_retry_after_s(reply),
        remedy="a proxy, gateway or portal on the way answers in its place; see what curl -v to the endpoint says",
    )


def service_error(reply: Reply, what: str) -> ServiceError:
    """Turn a refusal into an error. what: the operation, for the message; nothing of the request's secrets is in it."""
    body = bytes(reply.body)
    code = printable(reply.header("x-ms-error-code") or xml_text(body, "Code"), _MOST_CODE)
    message = printable(xml_text(body, "Message").split("\n")[0].strip(), _MOST_MESSAGE)
    detail = xml_text(body, "AuthenticationErrorDetail")
    if detail.startswith("Signature not valid in the specified time frame"):
        message = detail  # other details quote the string to sign, or a signature
    text = f"{what}: {code or 'refused'} (HTTP {reply.status})" + (f": {message}" if message else "")
    return ServiceError(text, status=reply.status, code=code, retry_after_s=_retry_after_s(reply))


def _retry_after_s(reply: Reply) -> float | None:
    wait = number(reply.header("retry-after"))
    return None if wait is None else float(wait)
