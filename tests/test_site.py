"""The documentation site builds from `_quarto.yml` without Quarto, and a browser shows it: text,
pictures, search, links.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import pytest
import yaml

from project import NBS, ROOT, copy_project, nb_id, notebooks
from execnb.nbio import read_nb

sys.path.insert(0, str(ROOT / "tools"))
from docs import plain_name

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --virtual-time-budget=8000"
).split()
# asked of every opened page; the answer is left in its title
PROBE = """<script>addEventListener('load', () => setTimeout(() => {
  const all = s => [...document.querySelectorAll(s)], pics = all('main img, #quarto-content img');
  document.title = 'PROBE ' + JSON.stringify({
    pictures: pics.length, broken: pics.filter(i => !(i.complete && i.naturalWidth > 0)).map(i => i.src.slice(0, 80)),
    search: all('input[type=search], #quarto-search').length, headings: all('h1, h2').map(h => h.innerText.trim()),
    formulas: all('math').filter(m => m.getBoundingClientRect().width > 0).length, code: all('pre code').length,
    overflow: document.documentElement.scrollWidth - innerWidth, sidebar: all('#quarto-sidebar a').length,
    tex: document.body.innerText.includes('\\\\('),
    scripts: all('script[src], link[rel=stylesheet]').map(s => s.src || s.href)})}, 300))</script>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The site, built in a copy of the project."
    work = copy_project(tmp_path_factory.mktemp("site"))
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"} | {
        "MPLBACKEND": "Agg",
        "PYTHONPATH": str(work),
    }
    r = subprocess.run(
        [sys.executable, "tools/docs.py", "site"],
        cwd=work,
        env=env,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert r.returncode == 0, r.stdout[-3000:] + r.stderr[-6000:]
    return work / "_docs"


def page_of(nb: Path) -> str:
    return (nb.relative_to(NBS).parent / plain_name(nb.name)).with_suffix(".html").as_posix()


class Page(HTMLParser):
    "Links and anchors of a page."

    def __init__(self, text):
        super().__init__()
        self.links = []
        self.ids = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if a.get("id"):
            self.ids.add(a["id"])
        if tag == "a" and a.get("name"):
            self.ids.add(a["name"])
        for k in "href", "src":
            if a.get(k):
                self.links.append(a[k])


def test_every_notebook_has_a_page_and_an_entry(site):
    "The sidebar names every notebook and only those."

    def walk(x):
        if isinstance(x, str):
            yield x
        elif isinstance(x, dict):
            yield from walk(x.get("contents", []) or x.get("href", ""))
        else:
            for o in x:
                yield from walk(o)

    conf = yaml.safe_load((ROOT / "_quarto.yml").read_text())
    assert sorted(walk(conf["website"]["sidebar"]["contents"])) == sorted(
        map(nb_id, notebooks())
    ), "sidebar in _quarto.yml"
    for nb in notebooks():
        assert (site / page_of(nb)).exists(), nb.name


def test_one_source_of_the_configuration():
    "What nbdev wants inside nbs/ points to the file at the top, and both say what settings.ini says."
    assert (NBS / "_quarto.yml").resolve() == ROOT / "_quarto.yml" or (
        NBS / "_quarto.yml"
    ).read_text() == (ROOT / "_quarto.yml").read_text()
    from configparser import ConfigParser

    cfg = ConfigParser(delimiters=["="])
    cfg.read(ROOT / "settings.ini")
    cfg = cfg["DEFAULT"]
    conf = yaml.safe_load((ROOT / "_quarto.yml").read_text())
    web = conf["website"]
    assert (web["title"], web["description"], web["repo-branch"]) == (
        cfg["title"],
        cfg["description"],
        cfg["branch"],
    )
    assert (
        web["repo-url"] == cfg["git_url"]
        and web["site-url"] == cfg["doc_host"] + cfg["doc_baseurl"]
    )
    assert conf["project"]["output-dir"] == cfg["doc_path"]


def test_no_internal_link_is_broken(site):
    "Every relative link leads to a file of the site, every anchor to an id on its page."
    pages = {
        p.relative_to(site).as_posix(): Page(p.read_text(encoding="utf-8"))
        for p in site.rglob("*.html")
    }
    own = yaml.safe_load((ROOT / "_quarto.yml").read_text())["website"]["site-url"]
    broken = []
    for name, page in pages.items():
        for link in page.links:
            if link.startswith(own):
                broken.append(f"{name}: {link} leaves for the published site")
                continue
            if urlparse(link).scheme or link.startswith("//"):
                continue
            path, anchor = urldefrag(unquote(urljoin(name, link)))
            path = "index.html" if path in ("", ".", "./", "/") else path.lstrip("/")
            if path.endswith("/"):
                path += "index.html"
            if not (site / path).exists():
                broken.append(f"{name}: {link}")
            elif anchor and path in pages and anchor not in pages[path].ids:
                broken.append(f"{name}: {link} (no such anchor)")
    assert not broken, "\n".join(broken)


def test_search_knows_every_page(site):
    entries = json.loads((site / "search.json").read_text(encoding="utf-8"))
    found = {e["href"].split("#")[0] for e in entries}
    assert found >= {page_of(nb) for nb in notebooks()}


def test_pages_ask_no_other_host(site):
    "Formulas, styles and scripts all lie beside the pages: the site works without a network."
    for p in site.rglob("*.html"):
        foreign = re.findall(
            r'<(?:script|link|img)\b[^>]*(?:src|href)="(https?://[^"]+)"',
            p.read_text(encoding="utf-8"),
        )
        assert not [f for f in foreign if "canonical" not in f], f"{p.name}: {foreign}"


@pytest.fixture(scope="module")
def server(site):
    "The site on a port of this machine."

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):  # the page with the probe at its end; everything else as it lies there
            path = site / unquote(urlparse(self.path).path.lstrip("/"))
            if path.suffix != ".html" or not path.exists():
                return super().do_GET()
            data = path.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>").encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


def look(url, tmp_path):
    "What a browser finds on the page at `url`."
    r = subprocess.run(
        [
            CHROMIUM,
            *FLAGS,
            f"--user-data-dir={tmp_path}/profile",
            "--window-size=1400,1000",
            "--dump-dom",
            url,
        ],
        capture_output=True,
        text=True,
        timeout=180,
    )
    from html import unescape

    m = re.search(r"<title>PROBE (.*?)</title>", r.stdout, re.S)
    assert m, f"{url}: the page did not load\n{r.stdout[:500]}\n{r.stderr[-1500:]}"
    return json.loads(unescape(m[1]))


def stored_pictures(nb):  # pictures that a notebook stores or links
    n = 0
    for c in read_nb(nb).cells:
        if c.cell_type == "markdown":
            n += len(re.findall(r"!\[|<img", c.source))
        elif not re.search(r"#\|\s*(hide|output: false|include: false)", c.source):
            n += sum(
                any(k.startswith("image/") for k in o.get("data", {})) for o in c.get("outputs", [])
            )
    return n


OPENED = [
    p
    for p in notebooks()
    if p.name in ("index.ipynb", "losses/00_coding_rate.ipynb", "01_deo_on_one_scene.ipynb")
]


@pytest.mark.skipif(
    CHROMIUM is None, reason="NO BROWSER: the pages were not opened; install chromium to check them"
)
@pytest.mark.parametrize("nb", OPENED, ids=nb_id)
def test_a_browser_shows_the_page(nb, server, tmp_path):
    """Index, a module and the tutorial: all pictures drawn, formulas drawn, search and sidebar
    there, nothing wider than the window.
    """
    got = look(f"{server}/{page_of(nb)}", tmp_path)
    title = (
        next(c.source for c in read_nb(nb).cells if c.cell_type == "markdown")
        .splitlines()[0]
        .lstrip("# ")
    )
    assert any(title.replace("`", "") in h for h in got["headings"]), got["headings"]
    assert not got["broken"], f"pictures not loaded: {got['broken']}"
    assert got["pictures"] >= stored_pictures(nb)
    assert got["search"] and got["sidebar"] >= len(notebooks()) and got["code"]
    assert got["overflow"] <= 0 and not got["tex"]
    if "$$" in "".join(c.source for c in read_nb(nb).cells if c.cell_type == "markdown"):
        assert got["formulas"]


@pytest.mark.skipif(
    CHROMIUM is None, reason="NO BROWSER: the pages were not opened; install chromium to check them"
)
def test_the_three_pages_are_there():
    assert len(OPENED) == 3, [p.name for p in OPENED]


@pytest.mark.skipif(
    CHROMIUM is None, reason="NO BROWSER: the pages were not opened; install chromium to check them"
)
def test_a_missing_picture_is_seen(server, site, tmp_path):
    "The probe itself: a page whose picture is not there is told from one whose picture is."
    (site / "probe.html").write_text(
        '<html><head><title>x</title></head><body><main><img src="no.png"></main></body></html>'
    )
    try:
        got = look(f"{server}/probe.html", tmp_path)
    finally:
        (site / "probe.html").unlink()
    assert got["pictures"] == 1 and len(got["broken"]) == 1 and not got["search"]
