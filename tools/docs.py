"""Builds what people read, from the notebooks, in pure Python: README.md and the documentation site.

    python tools/docs.py readme [--check]   README.md from nbs/index.ipynb (--check: only say whether it is up to date)
    python tools/docs.py site               the site, from _quarto.yml, into _docs/

With Quarto installed, `nbdev_readme` and `nbdev_docs` build the same from the same files.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from html import unescape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def cells(
    nb: Path,  # a notebook
) -> list:  # (kind, directives, source without them, outputs) of every cell
    "Read the cells of `nb`."
    res = []
    for c in json.loads(nb.read_text(encoding="utf-8"))["cells"]:
        lines = "".join(c["source"]).splitlines()
        if c["cell_type"] != "code":
            directives = []
        else:
            directives = [l[2:].strip() for l in lines if l.startswith("#|")]
            lines = [l for l in lines if not l.startswith("#|")]
        res.append((c["cell_type"], directives, "\n".join(lines).strip(), c.get("outputs", [])))
    return res


def settings() -> dict:  # settings.ini
    "What settings.ini says."
    cfg = ConfigParser(delimiters=["="])
    cfg.read(ROOT / "settings.ini", encoding="utf-8")
    return cfg["DEFAULT"]


# README ---------------------------------------------------------------------------------------------------------------


def output_text(
    out: dict,  # one stored output of a cell
) -> str:  # what a README can show of it
    "The text of an output; a picture belongs in nbs/images, where README and site both find it."
    if out["output_type"] == "stream":
        return "".join(out["text"]) if out["name"] == "stdout" else ""
    data = out.get("data", {})
    if "text/markdown" in data:
        return "".join(data["text/markdown"])
    if "image/png" in data:
        raise SystemExit(
            "index.ipynb: a cell draws a picture; save it in nbs/images/ and link it instead"
        )
    return "".join(data.get("text/plain", ""))


def as_markdown(
    cell: tuple,  # (kind, directives, source, outputs)
) -> str:  # Markdown; empty when the cell is hidden
    "One cell as Markdown, its code fenced and its output indented."
    kind, directives, src, outs = cell
    if kind == "markdown":
        return src
    if kind != "code" or {"hide", "include: false"} & set(directives):
        return ""
    parts = [] if "echo: false" in directives else [f"```python\n{src}\n```"]
    for o in outs:
        text, is_md = output_text(o).rstrip(), "text/markdown" in o.get("data", {})
        if text:
            parts.append(text if is_md else re.sub("^", "    ", text, flags=re.M))
    return "\n\n".join(parts)


def readme() -> str:  # the text of README.md
    "README.md from nbs/index.ipynb, links made relative to the top folder."
    body = "\n\n".join(filter(None, map(as_markdown, cells(ROOT / "nbs/index.ipynb"))))
    body = re.sub(
        r'(\]\(|src=")(?!\w+:|#|/)', r"\1nbs/", body
    )  # [text](x) and <img src="x">, not to the outside
    body = re.sub(r"\]\(" + re.escape(settings()["git_url"]) + r"/blob/\w+/", "](", body)
    return (
        "<!-- Made by `python tools/docs.py readme` from nbs/index.ipynb: edit that. -->\n\n"
        + body
        + "\n"
    )


# The site -------------------------------------------------------------------------------------------------------------


def plain_name(
    p: str,  # name of a notebook, such as losses/00_coding_rate.ipynb
) -> str:  # without its number: nbdev's and Quarto's address of the page
    "The address that `nbdev` gives the page of a numbered notebook."
    return re.sub(r"^\d+[a-zA-Z0-9]*_", "", p)


def tidy_signature(
    text: str,  # Markdown of a shown signature
) -> str:  # the same; inside code fences the links are names again
    "Take out the links that nbdev puts inside code fences, where they show as text."
    parts = re.split(r"(^```.*?^```)", text, flags=re.M | re.S)
    return "".join(
        re.sub(r"\[`([^`\]]+)`\]\([^)]*\)", r"\1", p) if p.startswith("```") else p for p in parts
    )


def tidy_notebook(
    nb: Path,  # a notebook that nbdev has processed
    proc: Path,  # folder of all of them
    host: str,  # address of the published site
    names: dict,  # name of every notebook file -> its name without the number
):
    "Rewrite a processed notebook so that its page and its links have the addresses that Quarto would give them."
    up = "../" * (len(nb.relative_to(proc).parts) - 1)

    def fix(s):
        s = re.sub(r"^output-file:.*\n?", "", tidy_signature(s), flags=re.M).replace(
            host.rstrip("/") + "/", up
        )
        return re.sub(r"[\w.-]+\.ipynb", lambda m: names.get(m[0], m[0]), s)

    d = json.loads(nb.read_text(encoding="utf-8"))
    for c in d["cells"]:
        if c["cell_type"] != "code":
            c["source"] = fix("".join(c["source"]))
        for o in c.get("outputs", []):
            if "text/markdown" in o.get("data", {}):
                o["data"]["text/markdown"] = fix("".join(o["data"]["text/markdown"]))
    nb.write_text(json.dumps(d, indent=1, ensure_ascii=False), encoding="utf-8")
    if nb.name in names:
        nb.rename(nb.with_name(names[nb.name]))


def with_formulas(
    page: str,  # HTML of a page
) -> str:  # the same with MathML, which browsers draw by themselves
    "Turn TeX into MathML, so that formulas need no script from a foreign host."
    from latex2mathml.converter import convert

    def one(m):
        tex, display = m[3].strip(), m[2] == "["
        return (
            f'<span class="math {m[1]}">'
            + convert(unescape(tex), display="block" if display else "inline")
            + "</span>"
        )

    page = re.sub(
        r'<span class="math (inline|display)">\\([(\[])(.*?)\\[)\]]</span>', one, page, flags=re.S
    )
    return re.sub(r"<(script|link)\b[^>]*katex[^>]*>(</script>)?\s*", "", page)


def run_imports_only():
    """Of a demonstration that imports something let nbdev run the imports alone: the rest needs
    cells that it does not run.
    """
    import ast
    from nbdev import processors

    original = processors.exec_show_docs.__call__

    def light(self, cell):
        trees = (
            cell.parsed_()
            if cell.cell_type == "code"
            and not cell.directives_.keys() & {"export", "exports", "exporti"}
            else None
        )
        imports = [t for t in trees or [] if isinstance(t, (ast.Import, ast.ImportFrom))]
        if not trees or len(imports) == len(trees) or processors._show_docs(trees):
            return original(self, cell)
        if (
            imports
            and hasattr(self, "k")
            and self.nb.has_docs_
            and cell.directives_.get("eval:", [""])[0] != "false"
        ):
            self.k.run_cell("\n".join(map(ast.unparse, imports)))

    processors.exec_show_docs.__call__ = light


def site() -> Path:  # folder of the site
    "Build the site: nbdev prepares the notebooks, smalldocs renders them from `_quarto.yml`."
    from nbdev.config import get_config
    from nbdev.serve import proc_nbs

    cfg = get_config()
    shutil.rmtree(ROOT / "_proc", ignore_errors=True)
    run_imports_only()
    proc = Path(
        proc_nbs(str(cfg.nbs_path), n_workers=0)
    )  # one process: what the notebooks import is imported once
    nbs = list(proc.rglob("*.ipynb"))
    expected = [
        p
        for p in cfg.nbs_path.rglob("*.ipynb")
        if not any(o[0] in "._" for o in p.relative_to(cfg.nbs_path).parts)
    ]
    if len(nbs) != len(expected):
        raise SystemExit(f"nbdev processed {len(nbs)} of {len(expected)} notebooks")
    names = {p.name: plain_name(p.name) for p in nbs}
    for p in nbs:
        tidy_notebook(p, proc, cfg.doc_host + cfg.doc_baseurl, names)
    yml = proc / "_quarto.yml"
    yml.write_text(
        re.sub(r"[\w.-]+\.ipynb", lambda m: names.get(m[0], m[0]), yml.read_text(encoding="utf-8")),
        encoding="utf-8",
    )
    subprocess.run(
        [sys.executable, "-m", "smalldocs.cli", "render", "--strict", str(proc)], check=True
    )
    out = ROOT / cfg.doc_path.name
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(proc / "_docs", out)
    for p in out.rglob("*.html"):
        p.write_text(with_formulas(p.read_text(encoding="utf-8")), encoding="utf-8")
    return out


def main():
    "Command line: see the top of this file."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["readme", "site"])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 when README.md is out of date"
    )
    args = parser.parse_args()
    if args.what == "site":
        return print(f"The site is in {site()}")
    path, text = ROOT / "README.md", readme()
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return print("README.md is up to date")
    if args.check:
        raise SystemExit("README.md is out of date: run `python tools/docs.py readme`")
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
