"""A tiny SOCKS5 proxy (RFC 1928, no authentication), and the ProxyCommand that goes through it.

    socks.py serve PORT_FILE            listen on loopback; the port is written to the file
    socks.py connect PORT HOST PORT     standard input and output, through the proxy
"""

from __future__ import annotations

import os
import socket
import socketserver
import struct
import sys
import threading


def exactly(source: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = source.recv(count - len(data))
        if not more:
            raise ConnectionError("cut")
        data += more
    return data


def copy(source: socket.socket, target: socket.socket) -> None:
    while data := source.recv(65536):
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)


class Proxy(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        client: socket.socket = self.request
        exactly(client, exactly(client, 2)[1])
        client.sendall(b"\x05\x00")
        kind = exactly(client, 4)[3]
        raw = exactly(client, 4) if kind == 1 else exactly(client, exactly(client, 1)[0])
        host = socket.inet_ntoa(raw) if kind == 1 else raw.decode()
        [port] = struct.unpack(">H", exactly(client, 2))
        print(f"to {host}:{port}", flush=True)
        with socket.create_connection((host, port)) as far:
            client.sendall(b"\x05\x00\x00\x01" + bytes(6))
            threading.Thread(target=copy, args=(far, client), daemon=True).start()
            copy(client, far)
            far.recv(1)


def serve(port_file: str) -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Proxy) as server:
        with open(port_file + ".part", "w") as file:
            file.write(str(server.server_address[1]))
        os.rename(port_file + ".part", port_file)
        server.serve_forever()


def connect(proxy_port: str, host: str, port: str) -> None:
    with socket.create_connection(("127.0.0.1", int(proxy_port))) as line:
        line.sendall(b"\x05\x01\x00")
        exactly(line, 2)
        line.sendall(b"\x05\x01\x00\x03" + bytes([len(host)]) + host.encode() + struct.pack(">H", int(port)))
        exactly(line, 10)
        threading.Thread(target=_to_line, args=(line,), daemon=True).start()
        while data := line.recv(65536):
            os.write(1, data)


def _to_line(line: socket.socket) -> None:
    while data := os.read(0, 65536):
        line.sendall(data)
    line.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        connect(*sys.argv[2:])
