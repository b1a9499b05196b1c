"""The documentation site: nothing of the notebooks is lost, questions find their pages, a browser shows them well."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import pytest
import yaml

from project import NBS, ROOT, copy_project, nb_id, notebooks
from browser import CHROMIUM, Browser, Server

sys.path.insert(0, str(ROOT / "tools"))
from docs import cells, plain_name, signature_table

needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="NO BROWSER: the pages were not opened; install chromium to check them"
)
CONF = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))
# of each kind of page one: these are opened at both widths and in both modes
SHOWN = [
    "index.html",
    "losses/coding_rate.html",
    "tutorials/deo_on_one_scene.html",
    "guide/faq.html",
    "reference/cli.html",
    "guide/choosing.html",
]
# what readers ask -> the page that must come first or second
QUESTIONS = {
    "nodata": "guide/faq.html",
    "Swin": "models/encoder.html",
    "install": "index.html",
    "Colab": "guide/faq.html",
    "cite": "project/citation.html",
    "API": "reference/index.html",
    "continue pretraining": "guide/faq.html",
    "fine-tune on my labels": "tasks/finetune.html",
    "embeddings of a region": "guide/faq.html",
    "QGIS": "tutorials/a_map_of_embeddings.html",
    "more than three bands": "guide/faq.html",
    "missing bands": "data/modalities.html",
    "normalisation": "scenes/stats.html",
    "which teacher": "guide/choosing.html",
    "which architecture": "guide/choosing.html",
    "patch size at 10 m": "guide/choosing.html",
    "how many scenes": "guide/choosing.html",
    "GPU memory": "guide/choosing.html",
    "how long": "guide/choosing.html",
    "how to know that it works": "guide/faq.html",
    "collapse": "runs/monitors.html",
    "licence of the teacher": "guide/faq.html",
    "resume": "runs/checkpoints.html",
    "several GPUs": "runs/distributed.html",
    "export to ONNX": "weights/export.html",
    "change detection": "data/tasks.html",
    "heights": "tutorials/rgb_meets_elevation.html",
    "clouds": "guide/faq.html",
    "Sentinel-2 offset": "guide/faq.html",
    "command line": "reference/cli.html",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The site, built in a copy of the project; EO_BREW_SITE names one that is built already."
    if os.environ.get("EO_BREW_SITE"):
        return Path(os.environ["EO_BREW_SITE"])
    work = copy_project(tmp_path_factory.mktemp("site"))
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    env |= {"MPLBACKEND": "Agg", "PYTHONPATH": str(work)}
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


@pytest.fixture(scope="module")
def server(site):
    s = Server(site)
    yield s.url
    s.close()


@pytest.fixture(scope="module")
def browser():
    b = Browser()
    yield b
    b.close()


def page_of(nb: Path) -> str:
    return (nb.relative_to(NBS).parent / plain_name(nb.name)).with_suffix(".html").as_posix()


def html_of(site, page):
    return (site / page).read_text(encoding="utf-8")


# Nothing lost ---------------------------------------------------------------------------------------------------------


class Text(HTMLParser):
    "The words of a page's text, formulas aside; alternative texts count."

    def __init__(self, page):
        super().__init__()
        self.parts, self.math, self.formulas = [], 0, 0
        self.feed(re.search(r"<main\b.*</main>", page, re.S)[0])

    def handle_starttag(self, tag, attrs):
        self.formulas += tag == "math"
        self.math += tag in ("math", "script", "style")
        if tag not in ("span", "a", "code", "em", "strong", "mark", "sub", "sup"):
            self.parts.append(" " + " ".join(v for k, v in attrs if k == "alt" and v) + " ")

    def handle_endtag(self, tag):
        self.math -= tag in ("math", "script", "style")

    def handle_data(self, data):
        if not self.math:
            self.parts.append(data)


def words(text: str) -> Counter:  # how often each word occurs
    return Counter(re.findall(r"[a-z0-9]+", text.lower()))


FORMULA = re.compile(
    r"\$\$.+?\$\$|(?<![\\$\w])\$(?=\S)(?:[^$\n`]|\n(?!\n))+?(?<=[^\s\\])\$(?!\d)", re.S
)
CODE = re.compile(r"(```.*?```|`[^`\n]+`)", re.S)


def formulas_and_rest(md: str) -> tuple:  # (number of formulas, text without them)
    n, rest = 0, []
    for i, part in enumerate(CODE.split(md)):
        if i % 2 == 0:
            part, k = FORMULA.subn(" ", part)
            n += k
        rest.append(part)
    return n, "".join(rest)


def markdown_words(md: str) -> Counter:
    "The words that a reader sees of Markdown: no addresses of links, attributes or names of fences."
    _, md = formulas_and_rest(md)
    md = re.sub(r"^```\w*|^\s*\d+\. ", "", md, flags=re.M)
    md = re.sub(r"\]\((?:[^()\s]|\([^()]*\))*(?:\s+\"[^\"]*\")?\)", "] ", md)
    md = re.sub(r"^:::.*$|\{[.#][^}\n]*\}", " ", md, flags=re.M)
    parts = re.split(r"(`[^`\n]+`|```.*?```)", md, flags=re.S)
    md = "".join(p if i % 2 else re.sub(r"</?\w[^>]*>", " ", p) for i, p in enumerate(parts))
    return words(unescape(md))


def notebook_words(nb: Path) -> Counter:
    "The words of the cells that the page must show."
    total = Counter()
    for kind, flags, src, outs in cells(nb):
        names = {f.split(":")[0].split()[0]: f.partition(":")[2].strip() for f in flags if f}
        if kind == "markdown":
            total += markdown_words(src)
        if (
            kind != "code"
            or {"hide", "default_exp"} & names.keys()
            or "false" in names.get("include", "")
        ):
            continue
        exported = {"export", "exports", "exporti"} & names.keys()
        if not exported and "false" not in names.get("echo", "") and "hide_input" not in names:
            total += words(src)
        if exported or "false" in names.get("output", "") or "hide_output" in names:
            continue
        for o in outs:
            total += output_words(o)
    return total


def output_words(out: dict) -> Counter:
    "The words of a stored output, as the richest of its forms shows them."
    if out["output_type"] == "stream":
        return words(re.sub(r"\x1b\[[0-9;]*m", "", "".join(out["text"])))
    data = out.get("data", {})
    if "text/html" in data:
        html = re.sub(r"<style.*?</style>", "", "".join(data["text/html"]), flags=re.S)
        return words(unescape(re.sub(r"<[^>]+>", " ", html)))
    if any(k.startswith("image/") for k in data):
        return Counter()
    if "text/markdown" in data:
        return markdown_words("".join(data["text/markdown"]))
    return words("".join(data.get("text/plain", "")))


@pytest.mark.parametrize("nb", notebooks(), ids=nb_id)
def test_no_word_of_a_notebook_is_lost(nb, site):
    "Every word of the cells that are not hidden stands on the page, as often as in the notebook."
    shown = words("".join(Text(html_of(site, page_of(nb))).parts))
    lost = notebook_words(nb) - shown
    assert not lost, f"{sum(lost.values())} words: {dict(lost.most_common(40))}"


@pytest.mark.parametrize("nb", notebooks(), ids=nb_id)
def test_no_formula_of_a_notebook_is_lost(nb, site):
    n = sum(formulas_and_rest(src)[0] for kind, _, src, _ in cells(nb) if kind == "markdown")
    page = html_of(site, page_of(nb))
    assert Text(page).formulas >= n
    assert not re.search(
        r"\\\(|\\\[|\$\$", re.sub(r"<(pre|code)\b.*?</\1>|alttext=\"[^\"]*\"", "", page, flags=re.S)
    )


def test_a_lost_word_is_seen():
    "The count itself: a page without one of two equal words lacks it."
    assert words("one two two") - words("two one") == Counter(two=1)
    assert markdown_words("[a](b.html) `c d` *e* $x_1$\n\n| f | `g|h` |\n|---|---|") == Counter(
        "acdefgh"
    )
    assert formulas_and_rest("$a$ and `$b` costs, $$c\n+ d$$, $e_1$-$f$")[0] == 4


def test_signatures_are_tables(site):
    "Arguments stand in a table with type, default and comment; no type is only that of None."
    n = 0
    for nb in notebooks():
        page = html_of(site, page_of(nb))
        assert "NoneType" not in re.sub(r"<pre.*?</pre>", "", page, flags=re.S), nb.name
        shown = re.findall(r'<div class="arguments">.*?</table>', page, re.S)
        n += len(shown)
        for t in shown:
            assert re.findall(r"<th[^>]*>(.*?)</th>", t)[:4] == [
                "argument",
                "type",
                "default",
                "what it is",
            ]
        code = re.findall(
            r'cell-output-markdown">\s*(?:<p>.*?</p>\s*)?<h[2-4].*?<pre[^>]*>(.*?)</pre>',
            page,
            re.S,
        )
        raw = [c for c in code if re.search(r"#\s\w+.*\n.*#\s\w+", re.sub("<[^>]+>", "", c))]
        assert not raw, f"{nb.name}: a signature is no table: {raw[0][:200]}"
    assert n > 200


def test_a_signature_becomes_a_table():
    fence = (
        "def crop(\n    x:torch.Tensor, # (B,C,H,W) | any\n    size:tuple=(8, 8), k:str='a,=#', # < `2`, or none\n"
        "    fill:NoneType=None, **kwargs\n)->Tensor: # the piece\n"
    )
    table = signature_table(fence)
    assert "crop(x, size=(8, 8), k='a,=#', fill=None, **kwargs)" in table
    assert "| `x` | `Tensor` |  | (B,C,H,W) \\| any |" in table
    assert "| `size` | `tuple` | `(8, 8)` |  |" in table
    assert "| `k` | `str` | `'a,=#'` | \\< `2`, or none |" in table
    assert "| `fill` |  | `None` |  |" in table and "| `**kwargs` |  |  |  |" in table
    assert "| **returns** | `Tensor` |  | the piece |" in table


def test_tables_are_tables(site):
    "No table shows its Markdown, and columns of numbers are set to the right."
    for p in site.rglob("*.html"):
        text = re.sub(r"<(pre|code)\b.*?</\1>", "", p.read_text(encoding="utf-8"), flags=re.S)
        assert not re.search(r"\|\s*:?-{3,}:?\s*\|", text), p.name
    from site_polish import with_right_numbers

    t = "<table><tr><th>a</th><th>b</th></tr><tr><td>x 1</td><td>1.5 %</td></tr><tr><td>y</td><td>-</td></tr></table>"
    assert with_right_numbers(t).count('class="number"') == 3


# The site as a whole --------------------------------------------------------------------------------------------------


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


def sidebar():
    def walk(x):
        if isinstance(x, str):
            yield x
        elif isinstance(x, dict):
            yield from walk(x.get("contents", []) or x.get("href", ""))
        else:
            for o in x:
                yield from walk(o)

    return list(walk(CONF["website"]["sidebar"]["contents"]))


def test_every_notebook_has_a_page_and_an_entry(site):
    "The sidebar names every notebook and every other page once; each has its file."
    named = sidebar()
    assert len(named) == len(set(named))
    assert sorted(n for n in named if n.endswith(".ipynb")) == sorted(map(nb_id, notebooks()))
    written = {p.relative_to(NBS).as_posix() for p in NBS.rglob("[!_]*.md")}
    assert written <= set(named)
    for n in named:
        folder, _, file = n.rpartition("/")
        assert (site / folder / plain_name(file)).with_suffix(".html").exists(), n


def test_one_source_of_the_configuration():
    "What nbdev wants inside nbs/ points to the file at the top, and both say what settings.ini says."
    link = NBS / "_quarto.yml"
    assert link.resolve() == ROOT / "_quarto.yml" or yaml.safe_load(link.read_text()) == CONF
    from docs import settings

    cfg, web = settings(), CONF["website"]
    assert (web["title"], web["description"]) == (cfg["title"], cfg["description"])
    assert (web["repo-branch"], web["repo-url"]) == (cfg["branch"], cfg["git_url"])
    assert web["site-url"] == cfg["doc_host"] + cfg["doc_baseurl"]
    assert CONF["project"]["output-dir"] == cfg["doc_path"]
    assert f"eo_brew {cfg['version']}," in web["page-footer"]["left"]
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (cff["version"], cff["repository-code"]) == (cfg["version"], cfg["git_url"])


def test_no_internal_link_is_broken(site):
    "Every relative link leads to a file of the site, every anchor to an id on its page."
    pages = {
        p.relative_to(site).as_posix(): Page(p.read_text(encoding="utf-8"))
        for p in site.rglob("*.html")
    }
    own = CONF["website"]["site-url"]
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


def test_links_to_the_repository_lead_to_its_files(site):
    "Links to files of the repository, Colab's included, name files that are there."
    url = re.escape(CONF["website"]["repo-url"].removeprefix("https://github.com"))
    lost, n = [], 0
    for p in site.rglob("*.html"):
        for f in re.findall(url + r"/blob/main/([^\"#?]+)", p.read_text(encoding="utf-8")):
            n += 1
            if not (ROOT / unquote(f)).exists():
                lost.append(f"{p.name}: {f}")
    assert n > 100 and not lost, lost[:20]


def test_each_difference_has_its_test():
    "Every row of the tables of differences links a test that exists in the linked file."
    text = (NBS / "guide/differences.md").read_text(encoding="utf-8")
    rows = [l for l in text.splitlines() if l.startswith("| ") and not l.startswith("| what")]
    assert len(rows) > 25
    for row in rows:
        links = re.findall(
            r"\[`(test_\w+)`\]\(https://github.com/[\w/-]+/(tests/test_\w+\.py)\)", row
        )
        assert links, row
        for name, file in links:
            assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), name


def test_every_notebook_can_be_taken_along(site):
    "Open in Colab, download, source: on the page of each notebook."
    for nb in notebooks():
        page = html_of(site, page_of(nb))
        assert f"colab.research.google.com/github/eo-brew/eo_brew/blob/main/nbs/{nb_id(nb)}" in page
        assert (site / "notebooks" / nb_id(nb)).read_bytes() == nb.read_bytes()


def test_the_project_tells_its_own_files(site):
    "Changelog, contributing, security, citation, the missing page and llms.txt are there and say what the files say."
    assert "Unreleased" in html_of(site, "project/changelog.html")
    assert "House rules" in html_of(site, "project/contributing.html")
    assert "vulnerability" in html_of(site, "project/security.html")
    assert "@software" in html_of(site, "project/citation.html")
    assert "leads to no page" in html_of(site, "404.html")
    assert len((site / "llms.txt").read_text(encoding="utf-8").splitlines()) > len(notebooks())


def test_the_reference_names_everything(site):
    "Each public name of each module stands in the index, every option of every command on its page."
    import importlib
    import inspect

    index = html_of(site, "reference/index.html")
    for path in sorted((ROOT / "eo_brew").glob("*/*.py")):
        if path.stem == "__init__":
            continue
        module = importlib.import_module(f"eo_brew.{path.parent.name}.{path.stem}")
        for name in getattr(module, "__all__", []):
            it = getattr(module, name)
            if inspect.isroutine(it) or inspect.isclass(it):
                assert f"<code>{name}</code>" in index, f"{module.__name__}.{name}"
    page = unescape(re.sub(r"<[^>]+>", "", html_of(site, "reference/cli.html")))
    for command in re.findall(r"eo_brew (\w+)", page.split("##")[0])[:20]:
        r = subprocess.run(
            [
                sys.executable,
                "-c",
                f"from eo_brew.app.cli import main; main([{command!r}, '--help'])",
            ],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        for option in re.findall(r"^\s+(--[\w-]+)", r.stdout, re.M):
            assert option in page or option == "--help", f"{command} {option}"


def test_the_footer_says_what_it_is(site):
    for p in SHOWN:
        footer = re.search(r"<footer\b.*?</footer>", html_of(site, p), re.S)[0]
        assert "Apache-2.0" in footer and CONF["website"]["repo-url"] in footer, p


# In a browser ---------------------------------------------------------------------------------------------------------


LOOK = """(() => {
  const all = s => [...document.querySelectorAll(s)], main = document.querySelector('main');
  const seen = e => { const r = e.getBoundingClientRect(); return r.width > 0 && r.height > 0; };
  const pics = all('main img');
  const bar = document.querySelector('#quarto-sidebar'), here = document.querySelector('#quarto-sidebar .active');
  return {
    pictures: pics.length, broken: pics.filter(i => !(i.complete && i.naturalWidth > 0)).length,
    mute: pics.filter(i => (i.getAttribute('alt') || '').trim().length < 25)
      .map(i => (i.closest('.cell') || {}).id || i.src.slice(-60)),
    narrow: pics.filter(i => seen(i) && i.getBoundingClientRect().width < Math.min(600, main.clientWidth - 40) - 1)
      .map(i => Math.round(i.getBoundingClientRect().width)),
    cut: all('.math.display')
      .filter(m => m.scrollHeight > m.clientHeight + 1 || m.scrollWidth > m.clientWidth + 1).length,
    formulas: all('math').filter(seen).length,
    wide: all('main pre.sourceCode').filter(p => p.scrollWidth > p.clientWidth + 1)
      .filter(p => p.innerText.split('\\n').every(l => l.length <= 100)).length,
    wrapped: all('main pre.sourceCode code').filter(c => getComputedStyle(c).whiteSpace !== 'pre').length,
    overflow: document.documentElement.scrollWidth - innerWidth,
    heading: document.querySelector('h1').innerText, search: all('input[type=search]').filter(seen).length,
    toc: all('#TOC a').filter(seen).length, fold: all('.page-toc').filter(seen).length,
    headings: all('main h2, main h3').length, skip: document.querySelector('a').className,
    open: all('#quarto-sidebar .sidebar-section.show').length, sections: all('#quarto-sidebar .sidebar-section').length,
    current: !here || !seen(here) || (here.getBoundingClientRect().top >= bar.getBoundingClientRect().top &&
      here.getBoundingClientRect().bottom <= bar.getBoundingClientRect().bottom)};
})()"""
PAGES = [
    (Path(n).parent / plain_name(Path(n).name)).with_suffix(".html").as_posix() for n in sidebar()
]


def only_here(browser, server):
    return [
        u for u in set(browser.requests) if not u.startswith((server, "data:", "about:", "blob:"))
    ]


@needs_browser
@pytest.mark.parametrize("page", PAGES)
def test_a_browser_shows_the_page(page, server, browser):
    "At 1400 px: pictures drawn, told and large enough; formulas whole; code neither wrapped nor cut; no other host."
    browser.requests.clear()
    browser.open(server + page)
    got = browser.ask(LOOK)
    assert not got["broken"] and not got["narrow"], got
    assert not got["mute"], f"pictures without an alternative text: {got['mute']}"
    assert not got["cut"], f"{got['cut']} formulas are cut"
    assert not got["wide"] and not got["wrapped"], got
    assert got["overflow"] <= 0 and got["search"] == 1 and got["skip"] == "skip-link"
    assert got["open"] <= 1 < got["sections"] and got["current"]
    assert bool(got["toc"]) == bool(got["headings"])
    assert not only_here(browser, server)


@needs_browser
@pytest.mark.parametrize("page", SHOWN)
def test_a_phone_shows_the_page(page, server, browser):
    "At 390 px: nothing wider than the window, search box and table of contents there, pictures as wide as the page."
    browser.requests.clear()
    browser.open(server + page, 390, 844)
    got = browser.ask(LOOK)
    assert got["overflow"] <= 0 and got["search"] == 1 and got["fold"] == 1
    assert not got["broken"] and not got["narrow"]
    assert not only_here(browser, server)


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("page", SHOWN)
def test_the_page_is_accessible(page, width, dark, server, browser):
    "axe-core finds nothing serious, contrast of 4.5:1 included, with results of the search shown."
    axe = pytest.importorskip(
        "axe_core_python", reason="needs axe-core: pip install axe-core-python"
    )
    browser.open(server + page, width, 900, dark)
    background = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == dark
    browser.ask(
        "(() => { const i = document.querySelector('.site-search input'); i.value = 'teacher';"
        " i.dispatchEvent(new Event('input')); return new Promise(done => setTimeout(done, 600)); })()"
    )
    assert browser.ask("document.querySelectorAll('#search-results .hit').length") > 3
    browser.ask((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8") + ";1")
    found = browser.ask(
        "axe.run(document, {resultTypes: ['violations']}).then(r => r.violations"
        ".filter(v => ['serious', 'critical'].includes(v.impact))"
        ".map(v => [v.id, v.nodes.length, v.nodes[0].html.slice(0, 160), v.nodes[0].failureSummary.slice(0, 240)]))"
    )
    assert not found, json.dumps(found, indent=1)


@needs_browser
def test_questions_find_their_pages(server, browser):
    "The page that answers comes first or second for at least each of thirty questions."
    browser.open(server + "losses/coding_rate.html")
    asked = json.dumps(list(QUESTIONS))
    got = browser.ask(
        f"Promise.all({asked}.map(q => siteSearch(q, 2).then(hits => hits.map(h => h.page))))"
    )
    wrong = {q: hits for (q, page), hits in zip(QUESTIONS.items(), got) if page not in hits}
    assert len(QUESTIONS) >= 30 and not wrong, json.dumps(wrong, indent=1)


@needs_browser
def test_the_search_does_not_look_into_code(server, browser):
    "A word that occurs in code only is not found; a word with a wrong letter is."
    browser.open(server + "index.html")
    assert browser.ask("siteSearch('quiver', 5)") == []
    near = browser.ask("siteSearch('normalisatoin', 3).then(r => r.map(h => h.page))")
    assert "scenes/stats.html" in near


@needs_browser
def test_a_missing_picture_is_seen(server, site, browser):
    "The look itself: a page whose picture is not there and not told is known from one whose picture is."
    (site / "probe.html").write_text(
        '<html><body><a class="x">x</a><main><h1>x</h1><img src="no.png"></main></body></html>'
    )
    try:
        browser.open(server + "probe.html")
        got = browser.ask(LOOK)
    finally:
        (site / "probe.html").unlink()
    assert got["pictures"] == got["broken"] == len(got["mute"]) == 1 and not got["search"]


@needs_browser
def test_another_host_is_seen(site, browser):
    "The watch itself: a page that asks another host is known."
    (site / "probe.html").write_text(
        '<html><body><img src="http://127.0.0.1:9/x.png"></body></html>'
    )
    server = Server(site)
    try:
        browser.requests.clear()
        browser.open(server.url + "probe.html")
        assert only_here(browser, server.url) == ["http://127.0.0.1:9/x.png"]
    finally:
        (site / "probe.html").unlink()
        server.close()
