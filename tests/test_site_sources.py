"""The sources of the site hold only what Quarto and the site's own builder read alike; pictures are wide enough."""

import base64
import io
import json
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from project import NBS, ROOT, nb_id, notebooks

sys.path.insert(0, str(ROOT / "tools"))
from docs import signature_table

# what Quarto and nbdev know beside what this project's builder knows
DIRECTIVES = {
    "default_exp",
    "export",
    "exporti",
    "exec_doc",
    "hide",
    "eval",
    "echo",
    "fig-alt",
    "code-fold",
}
FLAGS = {"slow", "cuda", "network"}
# Markdown that only one of them knows, or each in a way of its own
ONE_KNOWS = {
    "a div or callout (:::)": r"^:::",
    "a shortcode": r"\{\{[<%]",
    "attributes in braces": r"(?:\]|\)|^#.*)\{[.#\w][^}]*\}",
    "HTML but <br>": r"</?(?!br\b)[a-zA-Z][\w-]*(?:\s[^>]*)?>",
    "a footnote": r"\[\^",
    "a definition list": r"^:\s",
    "a task list": r"^\s*[-*] \[[ xX]\]",
    "a cross-reference or citation": r"(?<![\w`/.])@[a-zA-Z]",
    "sub-, superscript or struck text": r"~\w|\^\w+\^",
    "an emoji by name": r"(?<![\w:]):[a-z_]+:(?!\w)",
    "a rule of dashes": r"^-{3,}$",
    "code by indentation": r"^(?: {4}|\t)(?![-*\d])",
    "a table without a header": r"^\|(?:\s*\|)+$",
}


def markdown(page: Path) -> str:  # the Markdown of a page but for its title
    if page.suffix == ".md":
        return re.sub(r"\A---\n.*?\n---\n", "", page.read_text(encoding="utf-8"), flags=re.S)
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"][1:]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def pages() -> list:
    return [*notebooks(), *sorted(NBS.rglob("*.md"))]


def only_one_knows(md: str) -> list:  # (what, line) of each construct that is not for both
    md = re.sub(r"^```.*?^```|`[^`\n]+`|\$\$.*?\$\$|\$[^$\n]+\$", "x", md, flags=re.S | re.M)
    return [(k, l) for k, p in ONE_KNOWS.items() for l in md.splitlines() if re.search(p, l)]


def test_sources_hold_what_both_builders_know():
    "No construct of Markdown and no directive that only Quarto or only the site's own builder understands."
    found = []
    for page in pages():
        md = markdown(page)
        found += [f"{page.relative_to(NBS)}: {k}: {l[:80]}" for k, l in only_one_knows(md)]
    for nb in notebooks():
        for c in json.loads(nb.read_text(encoding="utf-8"))["cells"]:
            flags = set(re.findall(r"^#\|\s*([\w-]+)", "".join(c["source"]), re.M))
            if c["cell_type"] == "code" and flags - DIRECTIVES - FLAGS:
                found.append(f"{nb_id(nb)}: #| {flags - DIRECTIVES - FLAGS}")
            if c["cell_type"] not in ("code", "markdown"):
                found.append(f"{nb_id(nb)}: a cell of type {c['cell_type']}")
    assert not found, "\n".join(found)


def test_a_construct_of_one_builder_is_seen():
    "The look itself: each forbidden construct is known, and what both know passes."
    samples = (
        "::: {.callout-note}",
        "{{< video x >}}",
        "[a]{.b}",
        "<details>",
        "a[^1]",
        ": b",
        "- [ ] c",
        "see @fig-a",
        "H~2~O",
        ":smile:",
        "---",
        "    x = 1",
        "| | |",
    )
    assert [only_one_knows(s)[0][0] for s in samples] == list(ONE_KNOWS)
    both = "## A\n\nb `::: c` $d^e^f$ <br> a@b.c 10:30:20\n\n- f\n    - g\n\n| h |\n|---|\n| i |\n"
    assert not only_one_knows(both)


class Shape(HTMLParser):
    "Words and elements of a piece of HTML, formulas counted and left out."

    SHOWN = {*"table tr li ul ol h2 h3 h4 pre blockquote a em strong code img dl sup sub".split()}

    def __init__(self, html):
        super().__init__()
        self.words, self.shape, self.hidden = [], Counter(), []
        self.feed(html)
        self.words = Counter(re.findall(r"\w+", "".join(self.words).lower()))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if self.hidden:
            if tag == self.hidden[-1]:
                self.hidden.append(tag)
        elif tag == "math" or "math" in (attrs.get("class") or "").split():
            self.shape["formula"] += 1
            self.hidden.append(tag)
        elif tag in self.SHOWN and "aria-hidden" not in attrs:
            self.shape[tag] += 1
        if tag not in ("span", "a", "code", "em", "strong"):
            self.words.append(" ")

    def handle_endtag(self, tag):
        if self.hidden and tag == self.hidden[-1]:
            self.hidden.pop()

    def handle_data(self, text):
        if not self.hidden:
            self.words.append(text)


@pytest.fixture(scope="module")
def readers():
    "Markdown texts to their shapes: as pandoc reads them, and as the site's own builder does."
    pypandoc = pytest.importorskip("pypandoc", reason="needs pandoc: pip install pypandoc-binary")
    render = pytest.importorskip("smalldocs.markdown").render

    def pandoc(texts):
        r = subprocess.run(
            [pypandoc.get_pandoc_path(), *"-f markdown -t html --mathml --wrap=none".split()],
            input="\n\nNEXTPAGE\n\n".join(texts),
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        assert r.returncode == 0 and not r.stderr, r.stderr[:2000]  # it warns of formulas, too
        return list(map(Shape, r.stdout.split("<p>NEXTPAGE</p>")))

    return pandoc, lambda texts: [Shape(render(t, {"title": "x"})) for t in texts]


def test_pandoc_reads_the_sources_alike(readers):
    "Pandoc, with which Quarto reads, sees the same words, lists, tables, links and formulas on every page."
    pandoc, own = readers
    texts = [markdown(p) for p in pages()]
    wrong, total = [], Counter()
    for page, a, b in zip(pages(), pandoc(texts), own(texts), strict=True):
        total += a.shape + Counter(words=sum(a.words.values()))
        if (a.words, a.shape) != (b.words, b.shape):
            wrong.append(
                f"{page.relative_to(NBS)}: only pandoc {a.words - b.words} {a.shape - b.shape}, "
                f"only here {b.words - a.words} {b.shape - a.shape}"
            )
    assert not wrong, "\n".join(wrong)
    print(dict(total))
    assert total["words"] > 40_000 and total["table"] > 50 and total["formula"] > 100


def test_pandoc_reads_signatures_alike(readers):
    "The table that the site makes of a signature is one for both."
    pandoc, own = readers
    text = signature_table("def f(\n    x:Tensor, # (B,C) | any\n    k:str='a', # < `2`\n)->int:\n")
    (a,), (b,) = pandoc([text]), own([text])
    assert (a.words, a.shape) == (b.words, b.shape) and a.shape["tr"] == 4


def test_two_readings_are_seen(readers):
    "The comparison itself: a list right below a line, and a formula with a mistake, are read in two ways."
    pandoc, own = readers
    assert pandoc(["a\n- b"])[0].shape != own(["a\n- b"])[0].shape
    with pytest.raises(AssertionError, match="Could not convert"):
        pandoc([r"$\\sigma^0$"])


@pytest.mark.parametrize("nb", notebooks(), ids=nb_id)
def test_pictures_are_wide_enough(nb):
    "A stored picture is at least 600 px wide, so that no page has to enlarge it, and at most 200 KB large."
    from PIL import Image

    wrong = []
    for i, c in enumerate(json.loads(nb.read_text(encoding="utf-8"))["cells"]):
        for o in c.get("outputs", []):
            for kind in {"image/png", "image/jpeg"} & o.get("data", {}).keys():
                data = base64.b64decode("".join(o["data"][kind]))
                width = Image.open(io.BytesIO(data)).width
                if width < 600 or len(data) > 200 * 1024:
                    wrong.append(f"cell {i}: {width} px, {len(data) // 1024} KB")
    assert not wrong, "\n".join(wrong)
