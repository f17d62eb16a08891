"""What is sent back: answers, refusals, and the XML of an error.

Source of codes, statuses and messages:
https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes and .../common-rest-api-error-codes
"""

from __future__ import annotations

import email.utils
import functools
import itertools
import time
from xml.sax.saxutils import escape

__all__ = ["Answer", "Refusal", "error_answer", "http_date", "iso_time", "next_etag"]

MESSAGES: dict[str, tuple[int, str]] = {
    "AuthenticationFailed": (
        403,
        "Server failed to authenticate the request. Make sure the value of Authorization header is formed correctly "
        "including the signature.",
    ),
    "AuthorizationPermissionMismatch": (
        403,
        "This request is not authorized to perform this operation using this permission.",
    ),
    "AuthorizationProtocolMismatch": (
        403,
        "This request is not authorized to perform this operation using this protocol.",
    ),
    "AuthorizationResourceTypeMismatch": (
        403,
        "This request is not authorized to perform this operation using this resource type.",
    ),
    "AuthorizationServiceMismatch": (
        403,
        "This request is not authorized to perform this operation using this service.",
    ),
    "AuthorizationSourceIPMismatch": (
        403,
        "This request is not authorized to perform this operation using this source IP.",
    ),
    "BlobAccessTierNotSupportedForAccountType": (
        400,
        "The access tier is not supported for blobs of this kind in this account.",
    ),
    "BlobAlreadyExists": (409, "The specified blob already exists."),
    "BlobNotFound": (404, "The specified blob does not exist."),
    "BlobOverwritten": (409, "The blob has been recreated since the previous snapshot was taken."),
    "BlobTierInadequateForContentLength": (
        409,
        "Specified blob tier size limit cannot be less than content length.",
    ),
    "CannotChangeToLowerTier": (409, "A higher blob tier has already been explicitly set."),
    "CannotVerifyCopySource": (404, "The specified blob does not exist."),
    "ConditionNotMet": (412, "The condition specified using HTTP conditional header(s) is not met."),
    "ContainerAlreadyExists": (409, "The specified container already exists."),
    "ContainerNotFound": (404, "The specified container does not exist."),
    "CopyIdMismatch": (409, "The specified copy ID did not match the copy ID for the pending copy operation."),
    "Crc64Mismatch": (
        400,
        "The CRC64 value specified in the request did not match with the CRC64 value calculated by the server.",
    ),
    "EmptyMetadataKey": (400, "The key for one of the metadata key-value pairs is empty."),
    "IncrementalCopyBlobMismatch": (
        409,
        "The specified source blob is different than the copy source of the existing incremental copy blob.",
    ),
    "IncrementalCopyOfEarlierSnapshotNotAllowed": (
        409,
        "The specified snapshot is earlier than the last snapshot copied into the incremental copy blob.",
    ),
    "IncrementalCopySourceMustBeSnapshot": (409, "The source for incremental copy request must be a snapshot."),
    "InsufficientAccountPermissions": (
        403,
        "The account being accessed does not have sufficient permissions to execute this operation.",
    ),
    "InternalError": (500, "The server encountered an internal error. Please retry the request."),
    "InvalidAuthenticationInfo": (
        401,
        "Server failed to authenticate the request. Please refer to the information in the www-authenticate header.",
    ),
    "InvalidBlobType": (409, "The blob type is invalid for this operation."),
    "InvalidHeaderValue": (400, "The value for one of the HTTP headers is not in the correct format."),
    "InvalidInput": (400, "One of the request inputs is not valid."),
    "InvalidMd5": (
        400,
        "The MD5 value specified in the request is invalid. MD5 value must be 128 bits and base64-encoded.",
    ),
    "InvalidMetadata": (400, "The metadata specified is invalid. It has characters that are not permitted."),
    "InvalidPageRange": (416, "The page range specified is invalid."),
    "InvalidQueryParameterValue": (
        400,
        "Value for one of the query parameters specified in the request URI is invalid.",
    ),
    "InvalidRange": (416, "The range specified is invalid for the current size of the resource."),
    "InvalidResourceName": (400, "The specified resource name contains invalid characters."),
    "InvalidSourceBlobType": (409, "The copy source blob type is invalid for this operation."),
    "InvalidUri": (400, "The requested URI does not represent any resource on the server."),
    "InvalidXmlDocument": (400, "XML specified is not syntactically valid."),
    "InvalidXmlNodeValue": (400, "The value for one of the XML nodes is not in the correct format."),
    "LeaseAlreadyPresent": (409, "There is already a lease present."),
    "LeaseIdMismatchWithBlobOperation": (412, "The lease ID specified did not match the lease ID for the blob."),
    "LeaseIdMismatchWithLeaseOperation": (409, "The lease ID specified did not match the lease ID for the blob."),
    "LeaseIdMissing": (412, "There is currently a lease on the blob and no lease ID was specified in the request."),
    "LeaseIsBreakingAndCannotBeAcquired": (
        409,
        "The lease ID matched, but the lease is currently in breaking state and cannot be acquired until it is broken.",
    ),
    "LeaseIsBreakingAndCannotBeChanged": (
        409,
        "The lease ID matched, but the lease is currently in breaking state and cannot be changed.",
    ),
    "LeaseIsBrokenAndCannotBeRenewed": (
        409,
        "The lease ID matched, but the lease has been broken explicitly and cannot be renewed.",
    ),
    "LeaseLost": (412, "A lease ID was specified, but the lease for the blob has expired."),
    "LeaseNotPresentWithBlobOperation": (412, "There is currently no lease on the blob."),
    "LeaseNotPresentWithLeaseOperation": (409, "There is currently no lease on the blob."),
    "Md5Mismatch": (
        400,
        "The MD5 value specified in the request did not match with the MD5 value calculated by the server.",
    ),
    "MetadataTooLarge": (400, "The size of the specified metadata exceeds the maximum size permitted."),
    "MissingContentLengthHeader": (411, "The Content-Length header was not specified."),
    "MissingRequiredHeader": (400, "An HTTP header that's mandatory for this request is not specified."),
    "MultipleConditionHeadersNotSupported": (400, "Multiple condition headers are not supported."),
    "NoAuthenticationInformation": (
        401,
        "Server failed to authenticate the request. Please refer to the information in the www-authenticate header.",
    ),
    "NoPendingCopyOperation": (409, "There is currently no pending copy operation."),
    "NotImplemented": (501, "The requested operation is not implemented by this test server."),
    "OperationNotAllowedOnIncrementalCopyBlob": (
        409,
        "The specified operation is not allowed on an incremental copy blob.",
    ),
    "OperationTimedOut": (500, "The operation could not be completed within the permitted time."),
    "OutOfRangeInput": (400, "One of the request inputs is out of range."),
    "OutOfRangeQueryParameterValue": (
        400,
        "One of the query parameters specified in the request URI is outside the permissible range.",
    ),
    "PendingCopyOperation": (409, "There is currently a pending copy operation."),
    "PreviousSnapshotCannotBeNewer": (
        400,
        "The prevsnapshot query parameter value cannot be newer than snapshot query parameter value.",
    ),
    "PreviousSnapshotNotFound": (409, "The previous snapshot is not found."),
    "RequestBodyTooLarge": (413, "The request body is too large and exceeds the maximum permissible limit."),
    "ResourceNotFound": (404, "The specified resource does not exist."),
    "SequenceNumberConditionNotMet": (412, "The sequence number condition specified was not met."),
    "SequenceNumberIncrementTooLarge": (
        409,
        "The sequence number increment cannot be performed because it would result in overflow of the sequence number.",
    ),
    "ServerBusy": (503, "The server is busy."),
    "SnapshotsPresent": (409, "This operation is not permitted because the blob has snapshots."),
    "SourceConditionNotMet": (
        412,
        "The source condition specified using HTTP conditional header(s) is not met.",
    ),
    "UnsupportedHttpVerb": (405, "The resource doesn't support specified Http Verb."),
    "UnsupportedQueryParameter": (
        400,
        "One of the query parameters specified in the request URI is not supported.",
    ),
}

REASONS = {
    200: "OK",
    201: "Created",
    202: "Accepted",
    204: "No Content",
    206: "Partial Content",
    304: "The condition specified using HTTP conditional header(s) is not met.",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    411: "Length Required",
    412: "Precondition Failed",
    413: "Payload Too Large",
    416: "Range Not Satisfiable",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
}


class Answer:
    """One HTTP answer before it is put on the wire. `headers` lacks what every answer has (see `head`)."""

    __slots__ = ("body", "head_only", "headers", "status")

    def __init__(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.status = status
        self.headers = headers if headers is not None else {}
        self.body = body
        self.head_only = False  # an answer to HEAD: Content-Length is in `headers`, no body follows

    def head(self, common: str) -> bytes:
        """Status line and headers, `common` (Date, request id and so on, each line ended) among them."""
        lines = [f"{name}: {value}\r\n" for name, value in self.headers.items()]
        length = "" if self.head_only or self.status in (204, 304) else f"Content-Length: {len(self.body)}\r\n"
        reason = REASONS.get(self.status, "Unknown")
        return f"HTTP/1.1 {self.status} {reason}\r\n{length}{common}{''.join(lines)}\r\n".encode("latin-1")


class Refusal(Exception):
    """An operation cannot be done; becomes an error answer. `code` is the x-ms-error-code."""

    def __init__(self, code: str, message: str | None = None, *, status: int | None = None, **headers: str) -> None:
        known_status, known_message = MESSAGES.get(code, (status or 500, code))
        super().__init__(code)
        self.code = code
        self.status = status or known_status
        self.message = message or known_message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def error_answer(refusal: Refusal, request_id: str, now: float) -> Answer:
    """The service's XML for a refusal; 304 has no body."""
    if refusal.status == 304:
        return Answer(304, {"x-ms-error-code": refusal.code, **refusal.headers})
    body = (
        '<?xml version="1.0" encoding="utf-8"?>'
        f"<Error><Code>{escape(refusal.code)}</Code><Message>{escape(refusal.message)}\n"
        f"RequestId:{request_id}\nTime:{iso_time(now)}</Message></Error>"
    ).encode()
    headers = {"Content-Type": "application/xml", "x-ms-error-code": refusal.code, **refusal.headers}
    return Answer(refusal.status, headers, body)


@functools.lru_cache(maxsize=256)
def _http_date(second: int) -> str:
    return email.utils.formatdate(second, usegmt=True)


def http_date(when: float) -> str:
    """RFC 1123 date. Kept by second, because a server under load asks for the same ones again and again."""
    return _http_date(int(when))


def iso_time(when: float) -> str:
    """`2026-01-31T12:00:00.1234567Z`, the form of snapshot names: seven decimals."""
    second, fraction = divmod(int(when * 10_000_000), 10_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)) + f".{fraction:07d}Z"


_etags = itertools.count(int(time.time() * 10_000_000) + 0x8D0000000000000)


def next_etag() -> str:
    """A value that no other version of any blob has, quotes included."""
    return f'"0x{next(_etags):X}"'
