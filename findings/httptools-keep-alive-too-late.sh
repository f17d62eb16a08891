#!/usr/bin/env bash
# httptools: should_keep_alive(), asked after feed_data(), is wrong about ordinary answers.
#
# Expected: once an answer has been read, should_keep_alive() says whether its connection can be used again.
# Seen: right inside on_headers_complete and on_message_complete. As soon as feed_data() has returned, False for answers
# with Content-Length or chunks (the parser has forgotten how the body was delimited by then and takes it for one that
# ends with the connection), and True for a 304 that said `Connection: close`. Of a request it is right at all three.
# Version: httptools 0.9.0 (PyPI).
# Consequence: a connection pool that asks when the answer is complete never uses a connection twice. It works, and
# costs a handshake a request. Ask in on_message_complete and keep the result.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check httptools==0.9.0

venv/bin/python - <<'END'
import sys

import httptools


def expect(what, seen, before):
    print(f"{what}: {seen}")
    if seen != before:
        sys.exit(f"changed: it was {before}")

class Asked:
    """What should_keep_alive() says at each of the three moments."""

    def __init__(self, kind, message):
        self.seen = []
        self.parser = kind(self)
        self.parser.feed_data(message)
        self.ask()

    def ask(self):
        self.seen.append(self.parser.should_keep_alive())

    on_headers_complete = on_message_complete = ask


ANSWER, REQUEST = httptools.HttpResponseParser, httptools.HttpRequestParser
for what, kind, message, before in (
    ("with a length", ANSWER, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", [True, True, False]),
    ("empty", ANSWER, b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n", [True, True, False]),
    ("in chunks", ANSWER, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", [True, True, False]),
    ("without a body", ANSWER, b"HTTP/1.1 304 Not Modified\r\n\r\n", [True, True, True]),
    ("to be closed", ANSWER, b"HTTP/1.1 304 Not Modified\r\nConnection: close\r\n\r\n", [False, False, True]),
    ("a request", REQUEST, b"PUT / HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi", [True, True, True]),
):
    expect(f"{what}: in on_headers_complete, in on_message_complete, afterwards", Asked(kind, message).seen, before)
END
