"""Builds what people read, from the notebooks, in pure Python: README.md and the documentation site.

    python tools/docs.py readme [--check]   README.md from nbs/index.ipynb (--check: only say whether it is up to date)
    python tools/docs.py site               the site, from _quarto.yml, into _docs/

The site takes three steps, and each has a file: nbdev runs the notebooks and shows the signatures (this file),
pages that no notebook holds are made from the package (site_pages.py), and the HTML of smalldocs gets what a
reader needs (site_polish.py). With Quarto installed, `nbdev_docs` renders the same sources.
"""

import argparse
import gc
import json
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
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
    # pages that exist on the site alone
    body = body.replace("](nbs/project/contributing.md)", "](CONTRIBUTING.md)")
    host = settings()["doc_host"] + settings()["doc_baseurl"]
    body = re.sub(r"\]\(nbs/(reference/\w+)\.md\)", rf"]({host}/\1.html)", body)
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


def pieces(
    text: str,  # code
    ends: str,  # letters that end a piece where no bracket and no quote holds them
) -> list:  # the pieces
    "Split code at `ends`, but not inside of brackets and quotes."
    parts, depth, quote = [""], 0, ""
    for c in text:
        if quote:
            quote = "" if c == quote else quote
        elif c in "'\"":
            quote = c
        else:
            depth += (c in "[({") - (c in "])}")
        if c in ends and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += c
    return parts


def plain_type(
    text: str,  # a type as Python shows it
) -> str:  # as a reader would write it
    "Take out the modules' names, and the type that is only the type of the default None."
    text = re.sub(r"\b(?:\w+\.)+(?=[A-Z]\w*)", "", text.strip())
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>|<function (\w+)[^>]*>", r"\1\2", text)
    return "" if text in ("NoneType", "_empty") else text


def code(
    text: str,  # code for a cell of a table
) -> str:  # as Markdown
    "Code in a table; nothing where there is nothing."
    return f"`{text}`".replace("|", "\\|") if text else ""


def parameters(
    lines: list,  # the lines between the brackets of a signature, as nbdev shows it
) -> list:  # (name, type, default, comment) of each
    "Read the parameters of a shown signature; a comment speaks for the last one of its line."
    rows = []
    for line in lines:
        *parts, last = pieces(line, "#")[:2] if "# " in line else (line,)
        names, comment = (parts[0], last.strip()) if parts else (last, "")
        found = [x.strip() for x in pieces(names, ",") if x.strip()]
        for i, x in enumerate(found):
            before, *default = pieces(x, "=")
            name, *kind = pieces(before, ":")
            default = plain_type("=".join(default)) if "<" in x else "=".join(default)
            said = comment if i == len(found) - 1 else ""
            rows.append((name.strip(), plain_type(":".join(kind)), default.strip(), said))
    return rows


def signature_table(
    fence: str,  # a signature as nbdev shows it, without the code fence
) -> str:  # the call, and its arguments as a table; the fence itself where it is none
    "Show a signature as one line and a table of arguments, with what the comments say of each."
    lines = fence.strip("\n").split("\n")
    m = re.match(r"^(?:def|class) (\w+)\($", lines[0]) if len(lines) > 2 else None
    back = re.match(r"^\)(?:->([^#]*?))?:?(?:\s*# (.*))?$", lines[-1]) if m else None
    rows = parameters(lines[1:-1]) if back else []
    if not rows or not all(re.fullmatch(r"\**\w+|\*|/", r[0]) for r in rows):
        return f"```python\n{fence}```"
    names = [n + ("=" + d if d else "") for n, _, d, _ in rows]
    shown = f"{m[1]}({', '.join(names)})"
    if len(shown) > 92:
        shown = f"{m[1]}(\n    " + ",\n    ".join(names) + "\n)"
    kind, comment = plain_type(back[1] or ""), back[2] or ""
    given = [r for r in rows if r[0] not in ("*", "/")]
    if (kind or comment) and kind != "None":
        given.append(("", kind, "", comment))
    table = ["| argument | type | default | what it is |", "|---|---|---|---|"]
    for name, kind, default, comment in given:
        said = re.sub(r"(?<!\\)([|<$])", r"\\\1", comment)
        table.append(f"| {code(name) or '**returns**'} | {code(kind)} | {code(default)} | {said} |")
    return f"```python\n{shown}\n```\n\n::: {{.arguments}}\n" + "\n".join(table) + "\n:::"


def tidy_signature(
    text: str,  # Markdown of a shown signature
) -> str:  # the same with a table of the arguments
    "Take out the links that nbdev puts inside code fences, where they show as text, and show a table."

    def fence(m):
        return signature_table(re.sub(r"\[`([^`\]]+)`\]\([^)]*\)", r"\1", m[1]))

    text = re.sub(r"\A---\n\n", "", text)
    return re.sub(r"^```python\n(.*?)^```", fence, text, flags=re.M | re.S)


def tidy_notebook(
    nb: Path,  # a notebook that nbdev has processed
    proc: Path,  # folder of all of them
    host: str,  # address of the published site
):
    "Rewrite a processed notebook so that its page and its links have the addresses that Quarto would give them."
    up = "../" * (len(nb.relative_to(proc).parts) - 1)

    def fix(s):
        s = re.sub(r"^output-file:.*\n?", "", s, flags=re.M).replace(host.rstrip("/") + "/", up)
        return with_plain_names(s)

    d = json.loads(nb.read_text(encoding="utf-8"))
    for c in d["cells"]:
        if c["cell_type"] != "code":
            c["source"] = fix("".join(c["source"]))
        for o in c.get("outputs", []):
            if "text/markdown" in o.get("data", {}):
                md = "".join(o["data"]["text/markdown"])
                md = tidy_signature(md) if "show_doc(" in "".join(c["source"]) else md
                o["data"]["text/markdown"] = fix(md)
    nb.write_text(json.dumps(d, indent=1, ensure_ascii=False), encoding="utf-8")
    nb.rename(nb.with_name(plain_name(nb.name)))


def with_plain_names(
    text: str,  # Markdown or YAML with names of notebooks
) -> str:  # the same with the names without numbers, addresses on other hosts aside
    "Notebooks lose their numbers in links; whole URLs keep them."
    return re.sub(
        r"https?://[^\s)\"'>]+|[\w.-]+\.ipynb",
        lambda m: m[0] if "://" in m[0] else plain_name(m[0]),
        text,
    )


def run_imports_only():
    "Let nbdev run the imports of a demonstration alone: the rest needs cells that it does not run."
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


def prepared(
    cfg,  # nbdev's configuration
) -> Path:  # folder of the processed notebooks
    "Let nbdev process the notebooks, and give them the addresses of their pages."
    from nbdev.serve import proc_nbs

    shutil.rmtree(ROOT / "_proc", ignore_errors=True)
    run_imports_only()
    # one process: what the notebooks import is imported once
    proc = Path(proc_nbs(str(cfg.nbs_path), n_workers=0))
    nbs = list(proc.rglob("*.ipynb"))
    expected = [
        p
        for p in cfg.nbs_path.rglob("*.ipynb")
        if not any(o[0] in "._" for o in p.relative_to(cfg.nbs_path).parts)
    ]
    if len(nbs) != len(expected):
        raise SystemExit(f"nbdev processed {len(nbs)} of {len(expected)} notebooks")
    for p in nbs:
        tidy_notebook(p, proc, cfg.doc_host + cfg.doc_baseurl)
    for p in [proc / "_quarto.yml", *proc.rglob("*.md")]:
        p.write_text(with_plain_names(p.read_text(encoding="utf-8")), encoding="utf-8")
    return proc


def site() -> Path:  # folder of the site
    "Build the site: nbdev prepares the notebooks, smalldocs renders them from `_quarto.yml`."
    from nbdev.config import get_config

    sys.path.insert(0, str(ROOT / "tools"))
    from site_polish import polish

    cfg = get_config()
    proc = prepared(cfg)
    subprocess.run(
        [sys.executable, "-m", "smalldocs.cli", "render", "--strict", str(proc)], check=True
    )
    out = ROOT / cfg.doc_path.name
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(proc / "_docs", out)
    polish(out, ROOT, settings())
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
        print(f"The site is in {site()}")
        gc.freeze()  # at the exit each notebook's shell collects garbage: that of a hundred took minutes
        return
    path, text = ROOT / "README.md", readme()
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return print("README.md is up to date")
    if args.check:
        raise SystemExit("README.md is out of date: run `python tools/docs.py readme`")
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
