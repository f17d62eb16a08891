"""An HTTP proxy, with CONNECT and without, in threads of the test's own process, for clients of every kind."""

from __future__ import annotations

import base64
import contextlib
import select
import socket
import socketserver
import threading

__all__ = ["ConnectProxy"]


class ConnectProxy:
    """login: USER:PASSWORD that it wants, or ''. refuse: the status line's end in place of a tunnel, or ''.

    targets: HOST:PORT of each request that it let through.
    """

    def __init__(self, login: str = "", refuse: str = "") -> None:
        self.targets: list[str] = []
        wanted = f"basic {base64.b64encode(login.encode()).decode()}".lower() if login else ""
        proxy = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                line = self.rfile.readline().decode()
                lines = []
                while (header := self.rfile.readline().decode("latin-1").strip()) != "":
                    lines.append(header)
                headers = dict(each.lower().split(": ", 1) for each in lines if ": " in each)
                method, target, _ = line.split()
                if refuse:
                    self.wfile.write(f"HTTP/1.1 {refuse}\r\nContent-Length: 0\r\n\r\n".encode())
                elif headers.get("proxy-authorization", "") != wanted:
                    self.wfile.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                else:
                    place = target if method == "CONNECT" else target.split("/")[2]
                    proxy.targets.append(place)
                    host, _, port = place.rpartition(":")
                    with socket.create_connection((host.strip("[]"), int(port))) as peer:
                        if method == "CONNECT":
                            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                        else:
                            kept = [each for each in lines if not each.lower().startswith(("proxy-", "connection"))]
                            path = "/" + target.split("/", 3)[3]
                            head = "\r\n".join([f"{method} {path} HTTP/1.1", *kept, "Connection: close", "", ""])
                            body = self.rfile.read(int(headers.get("content-length", "0")))
                            peer.sendall(head.encode("latin-1") + body)
                            # One exchange a connection; a client that is not told would use it for the next.
                            first, _, rest = peer.recv(1 << 16).partition(b"\r\n")
                            self.wfile.write(first + b"\r\nConnection: close\r\n" + rest)
                        relay(self.connection, peer)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = int(self._server.server_address[1])
        self.url = f"http://{login}@127.0.0.1:{self.port}" if login else f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> ConnectProxy:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def relay(one: socket.socket, other: socket.socket) -> None:
    """Carry bytes both ways until one side ends."""
    with contextlib.suppress(OSError):
        while True:
            for ready in select.select([one, other], [], [])[0]:
                data = ready.recv(1 << 16)
                if not data:
                    return
                (other if ready is one else one).sendall(data)
