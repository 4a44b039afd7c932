"""A server on loopback that speaks as much of the Hugging Face hub's HTTP API as downloading needs.

It can be told to misbehave: answer with an error, drop or reset a connection after so many bytes,
wait, or serve a file that is not what it promises.
"""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 100_000  # bytes from which on a file is kept as the hub keeps large ones, by SHA-256
BLOCK = 4096


class LocalHub(ThreadingHTTPServer):
    """One model with one commit, out of a folder."""

    daemon_threads = True

    def __init__(self, folder: Path, model: str):
        super().__init__(("127.0.0.1", 0), Handler)
        self.model = model
        self.files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        self.lock = threading.Lock()
        self.behave()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def behave(self) -> None:
        """Forget every misbehaviour and what was served."""
        self.status = None  # (code, error code of the hub) for every request
        self.gated = False
        self.corrupt: dict[str, int] = {}  # how often a file is still served damaged
        self.drop_at: dict[str, list[int]] = {}  # file: bytes after which a connection ends
        self.reset = False  # end it with RST instead of FIN
        self.delay = 0.0  # seconds before every block
        self.at_byte = None  # (n, function): called when so many bytes have been sent in all
        self.sent = 0
        self.requests: list[tuple[str, str, str]] = []  # method, path, range
        self.finished: list[str] = []  # files that were sent to their last byte

    def digest(self, name: str) -> dict:
        content = self.files[name]
        if len(content) >= LARGE:
            return {"lfs": {"oid": hashlib.sha256(content).hexdigest()}}
        blob = b"blob %d\0" % len(content) + content
        return {"oid": hashlib.sha1(blob).hexdigest()}

    def tree(self) -> list[dict]:
        entries = []
        for name, content in self.files.items():
            digest = self.digest(name)
            entry = {"type": "file", "path": name, "size": len(content), "oid": "0" * 40} | digest
            if "lfs" in digest:
                entry["lfs"] = digest["lfs"] | {"size": len(content), "pointerSize": 130}
            entries.append(entry)
        return entries


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LocalHub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        hub, path = self.server, self.path.split("?")[0]
        hub.requests.append((self.command, path, self.headers.get("Range", "")))
        if hub.status:
            code, name = hub.status
            return self.send(code, {"error": name}, {"X-Error-Code": name} if name else {}, body)
        if hub.gated and "Authorization" not in self.headers:
            return self.send(401, {}, {"X-Error-Code": "GatedRepo"}, body)
        api, _, rest = path.partition(f"/api/models/{hub.model}")
        if not api and rest:
            revision = rest.split("/")[-1]
            if revision not in ("main", COMMIT):
                return self.send(404, {}, {"X-Error-Code": "RevisionNotFound"}, body)
            if rest.startswith("/tree/"):
                return self.send(200, hub.tree(), {}, body)
            siblings = [{"rfilename": name} for name in hub.files]
            told = {"id": hub.model, "sha": COMMIT, "gated": hub.gated, "siblings": siblings}
            return self.send(200, told, {}, body)
        parts = path.removeprefix(f"/{hub.model}/resolve/").split("/")
        if not path.startswith(f"/{hub.model}/resolve/"):
            return self.send(404, {}, {"X-Error-Code": "RepoNotFound"}, body)
        if parts[0] not in ("main", COMMIT):
            return self.send(404, {}, {"X-Error-Code": "RevisionNotFound"}, body)
        if parts[-1] not in hub.files:
            return self.send(404, {}, {"X-Error-Code": "EntryNotFound"}, body)
        return self.send_file(parts[-1], body)

    def send(self, code: int, told, headers: dict, body: bool) -> None:
        content = json.dumps(told).encode()
        self.send_response(code)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def send_file(self, name: str, body: bool) -> None:
        hub = self.server
        content, digest = hub.files[name], hub.digest(name)
        etag = digest["lfs"]["oid"] if "lfs" in digest else digest["oid"]
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if first else 200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - first))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if not body:
            return
        if hub.corrupt.get(name):
            hub.corrupt[name] -= 1
            content = content[: len(content) // 2] + b"\xff\x00" + content[len(content) // 2 + 2 :]
        drops = hub.drop_at.get(name, [])
        for start in range(first, len(content), BLOCK):
            block = content[start : start + BLOCK]
            if drops and start >= drops[0]:
                drops.pop(0)
                return self.hang_up()
            self.wfile.write(block)
            self.wfile.flush()
            self.count(len(block))
            time.sleep(hub.delay)
        hub.finished.append(name)

    def hang_up(self) -> None:
        if self.server.reset:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.connection.close()

    def count(self, number: int) -> None:
        hub = self.server
        with hub.lock:
            hub.sent += number
            due = hub.at_byte if hub.at_byte and hub.sent >= hub.at_byte[0] else None
            if due:
                hub.at_byte = None
        if due:
            due[1]()


@contextmanager
def serving(folder: Path, model: str = "test-org/Tiny-Mistral-Instruct"):
    hub = LocalHub(folder, model)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
