# A model hub on loopback that speaks the Hub's file protocol, and misbehaves on request.
from __future__ import annotations

import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Files under ``owner/name/file``; `truncated` ones end half-way, `altered` ones do not match their stated hash."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.truncated: set[str] = set()
        self.altered: set[str] = set()
        self.requests: list[str] = []
        self.endpoint = ""


@contextmanager
def serving():
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = unquote(self.path).lstrip("/")
            hub.requests.append(f"{self.command} {path}")
            repository, _, rest = path.partition("/resolve/")
            name = f"{repository}/{rest.partition('/')[2]}"
            data = hub.files.get(name)
            if data is None:
                known = any(file.startswith(f"{repository}/") for file in hub.files)
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
                self.send_header("X-Error-Message", "not here")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            stated = hashlib.sha256(data).hexdigest()
            self.send_header("ETag", f'"{stated}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body and name in hub.truncated:
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
            elif body:
                self.wfile.write(data[:-1] + bytes([data[-1] ^ 1]) if name in hub.altered else data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
