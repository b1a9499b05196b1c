"""A server of files, as object stores are."""

import multiprocessing as mp
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Ranges(SimpleHTTPRequestHandler):
    "Serves byte ranges, as object stores do, and counts what it sent; what lies below `signed/` needs a signature."

    sent = mp.Value("q", 0)

    def _closed(self):
        return "/signed/" in self.path and "sig=open" not in self.path

    def do_HEAD(self):
        return self.send_error(403) if self._closed() else super().do_HEAD()

    def log_message(self, *a):
        pass

    def do_GET(self):
        if self._closed():
            return self.send_error(403)
        if not Path(self.translate_path(self.path)).is_file():
            return super().do_GET()  # a listing, or 404
        data, span = Path(self.translate_path(self.path)).read_bytes(), self.headers.get("Range")
        a, b = (
            (int(v or len(data) - 1) for v in span.removeprefix("bytes=").split("-"))
            if span
            else (0, len(data) - 1)
        )
        part = data[a : min(b, len(data) - 1) + 1]
        self.send_response(206 if span else 200)
        if span:
            self.send_header("Content-Range", f"bytes {a}-{a + len(part) - 1}/{len(data)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        with Ranges.sent:
            Ranges.sent.value += len(part)
        self.wfile.write(part)


@contextmanager
def serving(folder, handler=Ranges):
    "The URL under which files of a folder are served."
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    other = mp.get_context("fork").Process(
        target=server.serve_forever, daemon=True
    )  # not a thread: GDAL may ask while Python is locked
    other.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        other.terminate()
        other.join()
        server.server_close()
