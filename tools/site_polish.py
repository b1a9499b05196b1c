"""Gives the HTML that smalldocs rendered what a reader needs: formulas, search, ways around a page, no other host."""

import json
import re
import shutil
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path

TOP = '<div class="page-links" role="navigation" aria-label="This notebook">'


# Formulas and tables --------------------------------------------------------------------------------------------------


def with_formulas(
    page: str,  # HTML of a page
) -> str:  # the same with MathML, which browsers draw by themselves
    "Turn TeX into MathML, so that formulas need no script from a foreign host."
    from latex2mathml.converter import convert

    def one(m):
        tex, display = unescape(m[3].strip()), m[2] == "["
        tex = re.sub(r"\^\\top\b", r"^{\\mathrm{T}}", tex)
        math = convert(tex, display="block" if display else "inline")
        label = escape(tex, quote=True)
        math = math.replace("<math ", f'<math alttext="{label}" ', 1)
        return f'<span class="math {m[1]}">{math}</span>'

    page = re.sub(
        r'<span class="math (inline|display)">\\([(\[])(.*?)\\[)\]]</span>', one, page, flags=re.S
    )
    return re.sub(r"<(script|link)\b[^>]*katex[^>]*>(</script>)?\s*", "", page)


NUMBER = re.compile(
    r"[-+−~≈<>≥≤]?\s*[\d.,]*\d[\d.,]*(?:e[-+]?\d+)?\s*(?:±\s*[\d.,]+)?\s*(?:%|x|×|s|ms|MB|GB|px|m|h|min)?"
)
CELL = re.compile(r"<t([dh])\b([^>]*)>(.*?)</t\1>", re.S)


def words_of(
    html: str,  # a piece of HTML
) -> str:  # its text
    "The text of a piece of HTML."
    return unescape(re.sub(r"<[^>]+>", "", html)).strip()


def with_right_numbers(
    page: str,  # HTML of a page
) -> str:  # the same with columns of numbers set to the right
    "Set columns of numbers to the right, so that their digits stand under each other."

    def one(m):
        rows = [CELL.findall(r) for r in re.findall(r"<tr\b.*?</tr>", m[0], re.S)]
        body = [r for r in rows if r and any(k == "d" for k, _, _ in r)]
        width = max(map(len, rows), default=0)
        columns = [[words_of(r[i][2]) for r in body if len(r) > i] for i in range(width)]
        empty = ("", "-", "–", "—", "NaN", "nan")
        right = {
            i
            for i, c in enumerate(columns)
            if any(x not in empty for x in c) and all(x in empty or NUMBER.fullmatch(x) for x in c)
        }

        def row(r):
            count = iter(range(width + 1))

            def cell(c):
                if next(count) not in right or "class=" in c[2]:
                    return c[0]
                return f'<t{c[1]} class="number"{c[2]}>{c[3]}</t{c[1]}>'

            return CELL.sub(cell, r[0])

        return re.sub(r"<tr\b.*?</tr>", row, m[0], flags=re.S) if right else m[0]

    page = re.sub(r"<style scoped>.*?</style>", "", page, flags=re.S)
    page = re.sub(
        r"<table border=\"1\" class=\"dataframe\">", '<table class="dataframe table">', page
    )
    return re.sub(r"<table\b.*?</table>", one, page, flags=re.S)


# What stands around the text ------------------------------------------------------------------------------------------


def with_search(
    page: str,  # HTML of a page
    up: str,  # way from the page to the top of the site, such as ../
) -> str:  # the same with the site's own search, outside of the menu that folds on phones
    "Replace smalldocs' search, which looks for letters anywhere, by the site's own."
    page = re.sub(
        r'<script src="[^"]*fuse\.min\.js"></script>',
        f'<script src="{up}assets/search.js" defer></script>',
        page,
    )
    box = re.search(r'<div class="quarto-navbar-tools">.*?</div></div></div>', page, re.S)
    if not box:
        return page
    new = (
        f'<form class="site-search" role="search" data-up="{up}">'
        '<input type="search" name="q" class="form-control form-control-sm" placeholder="Search" '
        'aria-label="Search these pages" autocomplete="off" role="combobox" aria-expanded="false" '
        'aria-controls="search-results" aria-autocomplete="list">'
        '<div id="search-results" role="listbox" aria-label="Search results" hidden></div></form>'
    )
    page = page.replace(box[0], "", 1)
    return page.replace('<button class="navbar-toggler"', new + '<button class="navbar-toggler"', 1)


def with_ways(
    page: str,  # HTML of a page
) -> str:  # the same for people who use a keyboard, a screen reader or a phone
    "A way to skip to the text, a table of contents in the page for phones, names for what has none."
    skip = '<a class="skip-link" href="#quarto-document-content">Skip to the text</a>'
    page = re.sub(r"(<body\b[^>]*>)", rf"\1{skip}", page, count=1)
    page = page.replace('<main class="content"', '<main tabindex="-1" class="content"', 1)
    # a link without an address is no link, and a button needs no role
    page = re.sub(
        r'<a class="(sidebar-item-t[^"]*)"((?: data-bs-[\w-]+="[^"]*")+) role="navigation"([^>]*)>(.*?)</a>',
        r'<button type="button" class="\1"\2\3>\4</button>',
        page,
    )
    page = re.sub(r'<i (class="bi[^"]*") role="img"', r'<i \1 aria-hidden="true"', page)
    page = page.replace('<i class="bi"></i>', '<i class="bi" aria-hidden="true"></i>')
    page = page.replace(
        'class="code-copy-button"', 'class="code-copy-button" aria-label="Copy to clipboard"'
    )
    page = page.replace('<nav class="navbar', '<nav aria-label="Main" class="navbar', 1)
    page = page.replace(
        '<nav class="quarto-secondary-nav"',
        '<nav aria-label="Place" class="quarto-secondary-nav"',
        1,
    )
    page = page.replace(
        '<nav id="quarto-sidebar"', '<nav aria-label="Pages" id="quarto-sidebar"', 1
    )
    page = page.replace(
        '<nav class="page-navigation"',
        '<nav aria-label="Before and after" class="page-navigation"',
        1,
    )
    page = page.replace(
        '<nav id="TOC" role="doc-toc"', '<nav id="TOC" aria-label="On this page"', 1
    )
    page = re.sub(
        r'(<div id="quarto-margin-sidebar")',
        r'\1 role="complementary" aria-label="Contents"',
        page,
        count=1,
    )
    page = page.replace(
        'class="quarto-color-scheme-toggle nav-link" href=""',
        'class="quarto-color-scheme-toggle nav-link" href="#" role="button" aria-label="Dark or light"',
        1,
    )
    page = re.sub(r"<pre(?= class=\"sourceCode)", '<pre tabindex="0"', page)
    page = re.sub(r'(<div class="cell-output[^"]*">\s*)<pre>', r'\1<pre tabindex="0">', page)
    page = page.replace('<div class="sd-table">', '<div class="sd-table" tabindex="0">')
    toc = re.search(
        r'<nav id="TOC"[^>]*>.*?(<ul>.*?</ul>)\s*(?:<div class="quarto-|</nav>)', page, re.S
    )
    if toc:
        inner = re.sub(r' (?:id|class|data-scroll-target)="[^"]*"', "", toc[1])
        fold = f'<details class="page-toc"><summary>On this page</summary>{inner}</details>'
        page = re.sub(
            r"(</header>)(?=(?:(?!</header>).)*\Z)", rf"\1{fold}", page, count=1, flags=re.S
        )
    return page


def notebook_links(
    name: str,  # a notebook's path in nbs/
    url: str,  # address of the repository
    up: str,  # way from the page to the top of the site
) -> str:  # HTML
    "Open in Colab, download, source: under the title of each page that is a notebook."
    colab = url.replace("https://github.com", "https://colab.research.google.com/github")
    return (
        f'{TOP}<a href="{colab}/blob/main/nbs/{name}">Open in Colab</a>'
        f'<a href="{up}notebooks/{name}" download>Download the notebook</a>'
        f'<a href="{url}/blob/main/nbs/{name}">Source</a></div>'
    )


def polished(
    page: str,  # HTML of a page
    up: str,  # way from the page to the top of the site
    links: str = "",  # HTML of the notebook's links
) -> str:  # the page as readers get it
    "One page, polished."
    page = with_ways(with_search(with_right_numbers(with_formulas(page)), up))
    where = '<details class="page-toc">' if '<details class="page-toc">' in page else None
    if links and where:
        page = page.replace(where, links + where, 1)
    elif links:
        page = re.sub(
            r"(</header>)(?=(?:(?!</header>).)*\Z)", rf"\1{links}", page, count=1, flags=re.S
        )
    return page


# Search ---------------------------------------------------------------------------------------------------------------


class Sections(HTMLParser):
    "The sections of a page: heading, anchor, prose. Code, outputs and what stands around the text are left out."

    VOID = {"img", "br", "hr", "input", "meta", "link", "wbr", "col", "source"}

    def __init__(
        self,
        page: str,  # HTML of a page
        public: set = frozenset(),  # names of functions and classes
    ):
        super().__init__()
        self.main, self.skip, self.stack, self.public = False, 0, [], public
        self.title, self.description, self.heading = "", "", None
        self.sections = [dict(anchor="", heading="", text=[], names=[])]
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if tag == "meta" and a.get("name") == "description":
            self.description = a.get("content", "")
        if tag == "main":
            self.main = True
        if tag in self.VOID or not self.main:
            return
        cls = a.get("class") or ""
        hidden = tag in ("pre", "nav", "details", "math", "script", "style", "button") or (
            "page-links" in cls or "code-copy" in cls or cls == "anchorjs-link"
        )
        if "cell-output" in cls and "markdown" not in cls:
            hidden = True
        self.stack.append((tag, hidden))
        self.skip += hidden
        if tag == "h1":
            self.heading = "title"
        elif tag in ("h2", "h3", "h4") and not self.skip:
            anchor = a.get("id") or a.get("data-anchor-id") or ""
            self.sections.append(dict(anchor=anchor, heading="", text=[], names=[]))
            self.heading = "section"

    def handle_endtag(self, tag):
        if tag == "main":
            self.main = False
        if not self.main or tag in self.VOID or tag not in [t for t, _ in self.stack]:
            return
        while self.stack:
            t, hidden = self.stack.pop()
            self.skip -= hidden
            if t == tag:
                break
        if tag in ("h1", "h2", "h3", "h4"):
            self.heading = None

    def handle_data(self, data):
        if not self.main or self.skip:
            return
        if self.heading == "title":
            self.title += data
        elif self.heading == "section":
            self.sections[-1]["heading"] += data
        else:
            self.sections[-1]["text"].append(data)
            if data in self.public:
                self.sections[-1]["names"].append(data)


def search_index(
    out: Path,  # the site
    public: set,  # names of functions and classes
) -> list:  # one entry a section: address, title, heading, description, names, text
    "What the search looks through: titles, headings, descriptions, names and prose of all pages."
    entries = []
    for p in sorted(out.rglob("*.html")):
        href = p.relative_to(out).as_posix()
        if href == "404.html":
            continue
        s = Sections(p.read_text(encoding="utf-8"), public)
        for i, c in enumerate(s.sections):
            text = " ".join(" ".join(c["text"]).split())
            text = re.sub(r"\bargument (?:type )?default what it (?:is|does) ", "", text)
            if not text and not c["heading"] and i:
                continue
            entries.append(
                dict(
                    href=href + (f"#{c['anchor']}" if c["anchor"] else ""),
                    title=s.title.strip(),
                    section=" ".join(c["heading"].split()),
                    description=s.description if i == 0 else "",
                    names=" ".join(sorted(set(c["names"]))),
                    text=text,
                )
            )
    return entries


# The whole site -------------------------------------------------------------------------------------------------------


def polish(
    out: Path,  # the rendered site
    root: Path,  # the repository
    cfg,  # settings.ini
):
    "Polish every page, copy the notebooks, write the search index; no stylesheet asks another host."
    from docs import plain_name
    from site_pages import names_of

    notebooks = {}
    for nb in (root / "nbs").rglob("*.ipynb"):
        name = nb.relative_to(root / "nbs")
        if any(o[0] in "._" for o in name.parts):
            continue
        page = (name.parent / plain_name(name.name)).with_suffix(".html").as_posix()
        notebooks[page] = name.as_posix()
        (out / "notebooks" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(nb, out / "notebooks" / name)
    for p in out.rglob("*.html"):
        name = p.relative_to(out).as_posix()
        up = "../" * name.count("/")
        links = notebook_links(notebooks[name], cfg["git_url"], up) if name in notebooks else ""
        p.write_text(polished(p.read_text(encoding="utf-8"), up, links), encoding="utf-8")
    for css in out.rglob("*.css"):
        text = css.read_text(encoding="utf-8")
        short = re.sub(r"@import url\([\"']?https?://[^)]*\);?", "", text)
        if short != text:
            css.write_text(short, encoding="utf-8")
    (out / "assets").mkdir(exist_ok=True)
    for f in ("search.js", "synonyms.json", "favicon.svg"):
        shutil.copy(root / "nbs/assets" / f, out / "assets" / f)
    modules = [p for p in (root / "eo_brew").glob("*/*.py") if p.stem != "__init__"]
    public = {name for p in modules for name, _, _ in names_of(p)}
    index = json.dumps(search_index(out, public), ensure_ascii=False)
    (out / "search.json").write_text(index, encoding="utf-8")
