"""A browser for the tests of the site: headless Chromium, driven through its own DevTools protocol.

Nothing but tornado is needed, which ipykernel brings. `Browser.open` shows a page at a width and in a mode, `ask`
evaluates JavaScript on it, and `requests` holds every address that the pages asked for.
"""

import asyncio
import json
import shutil
import subprocess
import tempfile
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --disable-dev-shm-usage "
    "--disable-default-apps --disable-extensions --remote-debugging-port=0"
).split()


class Server:
    "The files of a folder on a port of this machine."

    def __init__(
        self,
        folder: Path,  # what to serve
    ):
        class Quiet(SimpleHTTPRequestHandler):
            def log_message(self, *args):
                pass

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
        threading.Thread(target=self.httpd.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.httpd.server_port}/"

    def close(self):
        self.httpd.shutdown()
        self.httpd.server_close()


class Browser:
    "One tab of a headless Chromium."

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.profile = Path(tempfile.mkdtemp())
        self.process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={self.profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.n, self.loaded, self.requests = 0, False, []
        self.loop.run_until_complete(self._connect())
        for domain in "Page", "Network", "Runtime":
            self.call(f"{domain}.enable")

    async def _connect(self):
        from tornado.httpclient import AsyncHTTPClient
        from tornado.websocket import websocket_connect

        file, end = self.profile / "DevToolsActivePort", time.monotonic() + 60
        while not (file.exists() and len(file.read_text().splitlines()) > 1):
            if time.monotonic() > end:
                raise TimeoutError("Chromium did not start within 60 s")
            await asyncio.sleep(0.1)
        port = file.read_text().splitlines()[0]
        answer = await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}/json")
        tab = next(t for t in json.loads(answer.body) if t["type"] == "page")
        self.socket = await websocket_connect(
            tab["webSocketDebuggerUrl"], max_message_size=200 << 20
        )

    async def _read(self):
        message = json.loads(await asyncio.wait_for(self.socket.read_message(), 120))
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        if message.get("method") == "Page.loadEventFired":
            self.loaded = True
        return message

    def call(
        self,
        method: str,  # of the protocol, such as Page.navigate
        **params,  # its arguments
    ) -> dict:  # its answer
        "Call a method of the DevTools protocol."
        self.n += 1
        me = self.n

        async def go():
            await self.socket.write_message(json.dumps(dict(id=me, method=method, params=params)))
            while True:
                message = await self._read()
                if message.get("id") == me:
                    return message

        answer = self.loop.run_until_complete(go())
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def open(
        self,
        url: str,  # address of a page
        width: int = 1400,  # of the window, px
        height: int = 1000,  # of the window, px
        dark: bool = False,  # whether the reader prefers dark pages
    ):
        "Open a page and wait until it and its scripts have loaded."
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        mode = dict(name="prefers-color-scheme", value="dark" if dark else "light")
        still = dict(name="prefers-reduced-motion", value="reduce")
        self.call("Emulation.setEmulatedMedia", features=[mode, still])
        self.loaded = False
        self.call("Page.navigate", url=url)

        async def wait():
            while not self.loaded:
                await self._read()

        self.loop.run_until_complete(wait())
        self.ask("new Promise(done => setTimeout(done, 150))")

    def ask(
        self,
        script: str,  # a JavaScript expression, or a promise
    ):  # its value
        "Evaluate JavaScript on the open page."
        r = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in r:
            raise RuntimeError(json.dumps(r["exceptionDetails"])[:2000])
        return r["result"].get("value")

    def picture(
        self,
        path: Path,  # .png to write
    ):
        "Save what the window shows."
        import base64

        data = self.call("Page.captureScreenshot", format="png")["data"]
        Path(path).write_bytes(base64.b64decode(data))

    def close(self):
        "End the browser and remove its profile."
        self.socket.close()
        self.process.terminate()
        self.process.wait(30)
        self.loop.close()
        shutil.rmtree(self.profile, ignore_errors=True)
