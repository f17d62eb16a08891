#!/usr/bin/env bash
# grpcio: a second server on the same unix socket path starts without an error, and the first one's end cuts it off.
#
# Expected: the second server's add_insecure_port() raises, as it does for a path where an ordinary file is (and as
# bind(2) does for any path that exists).
# Seen: it removes the socket of the running server and binds its own: new clients silently reach the second server.
# When the first stops later, it removes whatever has its path by then, so the second runs on and nobody can reach it.
# Version: grpcio 1.85.1 (PyPI).
# Consequence: an update that starts the new CSI driver or agent before it stops the old one ends with a healthy process
# without a socket. Take a lock of your own before binding, bind a path of its own for each start and rename it into
# place, or check that the path is still there.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check grpcio==1.85.1

GRPC_VERBOSITY=NONE venv/bin/python - <<'END'
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc

PATH = os.path.abspath("s.sock")


def expect(what, seen, before):
    print(f"{what}: {seen}")
    if seen != before:
        sys.exit(f"changed: it was {before}")

def serve(name):
    server = grpc.server(ThreadPoolExecutor(1))
    method = grpc.unary_unary_rpc_method_handler(lambda request, context: name)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Probe", {"Who": method}),))
    server.add_insecure_port(f"unix:{PATH}")
    server.start()
    return server


def ask():
    with grpc.insecure_channel(f"unix:{PATH}") as channel:
        try:
            return channel.unary_unary("/Probe/Who")(b"", timeout=10).decode()
        except grpc.RpcError as error:
            return error.code().name


first = serve(b"first")
expect("one server, who answers", ask(), "first")
second = serve(b"second")
expect("two servers, who answers", ask(), "second")
first.stop(None).wait()
expect("the first has stopped: the path exists", os.path.exists(PATH), False)
expect("the second runs, who answers", ask(), "UNAVAILABLE")
second.stop(None).wait()

with open(PATH, "w"):
    pass
try:
    serve(b"third")
    outcome = "accepted"
except RuntimeError:
    outcome = "RuntimeError"
expect("an ordinary file has the path, binding it", outcome, "RuntimeError")
END
