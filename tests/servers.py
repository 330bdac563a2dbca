# Servers on this machine, for tests: of a folder's files, with or without parts of them, and with faults; and S3's.
from __future__ import annotations

import threading
from collections import Counter
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

from featx import filesystems


class Site:
    """A folder on the web.

    Attributes
    ----------
    url : str
        Where it is.
    parts : bool
        Whether parts of files are served.
    breaks : dict
        Names of files whose connection breaks in the middle, and how often yet.
    status : dict
        Names of files, and what is answered instead of them.
    asked : Counter
        How often the contents of files were asked for, by their names.
    together : threading.Barrier or None
        Requests for images wait here for each other.
    """

    def __init__(self, folder: Path) -> None:
        self.parts, self.together = True, None
        self.breaks, self.status, self.asked = {}, {}, Counter()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
        self.server.site = self
        self.server.handle_error = lambda *_: None  # who hangs up has what was wanted
        self.url = f"http://127.0.0.1:{self.server.server_port}"


class _Handler(SimpleHTTPRequestHandler):
    def do_HEAD(self):
        if not self._answers():
            super().do_HEAD()

    def do_GET(self):
        site, name = self.server.site, self._name()
        site.asked[name] += 1
        if self._answers():
            return
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            super().do_GET()
            return
        if site.together and name.endswith(".jpg"):
            site.together.wait()
        data, wanted = path.read_bytes(), self.headers.get("Range", "")
        if site.parts and wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(len(data), int(last or len(data)) + 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
            data = data[start:end]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if site.breaks.get(name, 0) > 0:
            site.breaks[name] -= 1
            data = data[: len(data) // 2]
        self.wfile.write(data)

    def _name(self):
        return unquote(urlsplit(self.path).path).rpartition("/")[2]

    def _answers(self):
        if status := self.server.site.status.get(self._name()):
            self.send_error(status)
        return bool(status)

    def log_message(self, *_):
        pass


@contextmanager
def site_of(folder: Path):
    """Serve a folder."""
    site = Site(folder)
    thread = threading.Thread(target=partial(site.server.serve_forever, poll_interval=0.01))
    thread.start()
    try:
        yield site
    finally:
        site.server.shutdown()
        thread.join()
        site.server.server_close()


@contextmanager
def s3_server(patch):
    """Run an empty S3 server that fsspec finds by the environment; gives the file system."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    urlopen(f"http://{host}:{port}/moto-api/reset", data=b"").close()  # it shares its buckets with others before it
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**keys, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
        patch.setenv(name, value)
    filesystems._shared.cache_clear()
    try:
        yield filesystems.file_system("s3://")
    finally:
        filesystems._shared.cache_clear()
        running.stop()
