"""Makes the pages of the site that no notebook holds: the index of names, the command line, and the project's files.

Quarto and smalldocs run it before they render (`pre-render` in _quarto.yml), in the folder of processed notebooks.
"""

import ast
import re
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def escaped(
    text: str,  # one line for a cell of a table
) -> str:  # without what would end the cell
    "Text that a Markdown table can hold."
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "\\<")


def table(
    header: list,  # names of the columns
    rows: list,  # lists of cells
) -> str:  # Markdown
    "A Markdown table."
    lines = ["| " + " | ".join(r) + " |" for r in [header, ["---"] * len(header), *rows]]
    return "\n".join(lines) + "\n"


def page(
    title: str,  # the page's title
    description: str,  # one sentence: shown under the title and found by the search
    body: str,  # Markdown
    **front,  # more front matter
) -> str:  # Markdown with front matter
    "A page with its title and description."
    head = {"title": title, "description": description, **front}
    return (
        "---\n"
        + "".join(f"{k}: {v!r}\n" for k, v in head.items())
        + "---\n\n"
        + body.strip()
        + "\n"
    )


# Reference ------------------------------------------------------------------------------------------------------------


def packages() -> dict:  # package -> what it holds
    "The packages in the order of the imports, as the table of layers in CONTRIBUTING.md has them."
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = text.split("| package | holds |")[1].splitlines()[2:]
    cells = [[c.strip() for c in r.strip("|").split("|")] for r in rows if r.startswith("|")]
    return {r[0]: r[1] for r in cells}


def names_of(
    path: Path,  # an exported module
) -> list:  # (name, kind, first line of its docstring) of what it offers
    "What a module's `__all__` names, with the first line of each docstring."
    tree = ast.parse(path.read_text(encoding="utf-8"))
    public = next(
        (
            ast.literal_eval(n.value)
            for n in tree.body
            if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"
        ),
        [],
    )
    res = []
    for n in tree.body:
        name = getattr(n, "name", "")
        if name in public and name not in [r[0] for r in res]:
            kind = "class" if isinstance(n, ast.ClassDef) else "function"
            doc = (ast.get_docstring(n) or "").split("\n")[0]
            res.append((name, kind, doc))
    return res


def door() -> list:  # names that `from eo_brew.all import *` brings
    "The public names."
    tree = ast.parse((ROOT / "eo_brew/all.py").read_text(encoding="utf-8"))
    return next(
        ast.literal_eval(n.value)
        for n in tree.body
        if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"
    )


def reference() -> str:  # the index of names
    "One table a package: name, what it does, and the page that explains it."
    public, parts = door(), []
    for package, holds in packages().items():
        rows = []
        for path in sorted((ROOT / "eo_brew" / package).glob("*.py")):
            for name, kind, doc in names_of(path):
                mark = " ★" if name in public else ""
                link = f"[`{name}`](../{package}/{path.stem}.html#{name.lower()}){mark}"
                rows.append([link, kind, escaped(doc), f"`eo_brew.{package}.{path.stem}`"])
        if rows:
            rows = sorted(rows, key=lambda r: r[0].lower())
            parts.append(
                f"## {package}\n\n{holds[:1].upper() + holds[1:]}.\n\n"
                + table(["name", "kind", "what it does", "module"], rows)
            )
    note = (
        "Names with a star ★ are what `from eo_brew.all import *` brings. Everything else is imported "
        "from its module.\n\n"
    )
    return page(
        "All names",
        "The API: an index of the public functions and classes, package by package.",
        note + "\n".join(parts),
    )


# The command line -----------------------------------------------------------------------------------------------------


class Asked(Exception):
    "Carries the parser whose help was asked for."


def parser_of(
    argv: list,  # arguments that end in --help
):  # the argparse parser that answers
    "The parser that would print this help."
    import argparse

    from eo_brew.app import cli

    def caught(self, *args, **kwargs):
        raise Asked(self)

    with patch.object(argparse.ArgumentParser, "print_help", caught), redirect_stdout(StringIO()):
        try:
            cli.main(argv)
        except Asked as e:
            return e.args[0]
    raise SystemExit(f"eo_brew {' '.join(argv)} shows no help")


def options(
    parser,  # an argparse parser
) -> str:  # Markdown tables of its arguments, one for each group
    "Every argument of a command: how it is written, its default, what it does."
    import argparse

    res = []
    for group in parser._action_groups:
        rows = []
        for a in group._group_actions:
            if isinstance(a, (argparse._HelpAction, argparse._SubParsersAction)):
                continue
            value = (
                ""
                if a.nargs == 0
                else a.metavar or (a.dest.upper() if a.option_strings else a.dest)
            )
            if a.choices and not a.metavar:
                value = "{" + ",".join(map(str, a.choices)) + "}"
            value = " ".join(value) if isinstance(value, tuple) else value
            flags = ", ".join(f"`{o}`" for o in a.option_strings)
            shown = f"{flags} `{value}`".strip() if value else flags
            none = a.default in (None, False, argparse.SUPPRESS) or a.default == []
            default = "" if none else f"`{a.default}`"
            text = (a.help or "") % dict(vars(a), prog=parser.prog) if a.help else ""
            told = re.search(r"\s*\(?default: ([^()]*(?:\([^()]*\)[^()]*)*)\)?$", text)
            if told:  # what the help says of the default goes to its column
                text = text[: told.start()]
                default = f"`{told[1]}`" if str(a.default) == told[1] else escaped(told[1])
            rows.append([shown.replace("|", "\\|"), default.replace("|", "\\|"), escaped(text)])
        if rows:
            title = (group.title or "options").capitalize()
            title = {"Positional arguments": "What it reads"}.get(title, title)
            shown = table(["argument", "default", "what it does"], rows)
            res.append(f"**{title}**\n\n::: {{.arguments .options}}\n{shown}:::\n")
    return "\n".join(res)


def command_line() -> str:  # the page of the command line
    "Every command with every option, as the parser itself tells them."
    import argparse

    top = parser_of(["--help"])
    subs = next(a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    helps = {a.dest: a.help or "" for a in subs._choices_actions}
    rows = [[f"[`eo_brew {n}`](#{n})", escaped(helps.get(n, ""))] for n in subs.choices]
    parts = [table(["command", "what it does"], rows)]
    for name in subs.choices:
        p = parser_of([name, "--help"])
        about = " ".join((p.description or helps.get(name, "")).split())
        about = escaped(about[:1].upper() + about[1:]).rstrip(".") + "."
        read = [a for a in p._actions if not a.option_strings]
        call = " ".join(["eo_brew", name, *(a.dest.upper() for a in read), "[options]"])
        parts.append(f"## {name}\n\n{about}\n\n```\n{call}\n```\n\n{options(p)}")
        if p.epilog:
            parts.append(f"```\n{p.epilog.strip()}\n```\n")
    return page(
        "Command line",
        "Every command of eo_brew with every option, its default and what it does.",
        "\n\n".join(parts),
    )


# Errors ---------------------------------------------------------------------------------------------------------------


def shown_message(
    node,  # syntax tree of what an exception is called with
) -> str:  # the message, … where a value stands
    "The text of a message, as far as the source shows it."
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(
            shown_message(v) if isinstance(v, ast.Constant) else "…" for v in node.values
        )
    if isinstance(node, ast.BinOp):
        return shown_message(node.left) + shown_message(node.right)
    return "…"


def messages(
    path: Path,  # an exported module
) -> list:  # (message, exception)
    "The errors that a module tells its users."
    res = []
    for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call) and n.exc.args:
            text = " ".join(shown_message(n.exc.args[0]).split())
            kind = ast.unparse(n.exc.func)
            if len(text.replace("…", "").split()) > 3 and kind != "NotImplementedError":
                res.append((re.sub("…+", "…", text), kind))
    return res


def errors() -> str:  # the page of errors
    "Messages of other libraries with their remedy (nbs/guide/_errors.md), then every message of this one."
    first = (ROOT / "nbs/guide/_errors.md").read_text(encoding="utf-8").strip()
    parts = [re.sub(r"/\d+[a-z]?_(\w+)\.ipynb", r"/\1.html", first)]
    parts.append("## Messages of eo_brew\n\nEach says what to do; … stands for a value of yours.")
    for package, holds in packages().items():
        rows = []
        for path in sorted((ROOT / "eo_brew" / package).glob("*.py")):
            for text, kind in messages(path):
                where = f"[{path.stem}](../{package}/{path.stem}.html)"
                said = re.sub(r"([*_`\[\]$~])", r"\\\1", escaped(text))
                rows.append([said, f"`{kind}`", where])
        if rows:
            rows = sorted({r[0]: r for r in rows}.values())
            parts.append(f"### {package}\n\n" + table(["message", "kind", "page"], rows))
    return page(
        "Errors",
        "Paste a message into the search, and land on its remedy.",
        "\n\n".join(parts),
    )


# The project's files --------------------------------------------------------------------------------------------------


def project_file(
    name: str,  # file at the top of the repository
    title: str,  # title of its page
    description: str,  # its one line
    url: str,  # address of the repository
) -> str:  # the page
    "A file of the repository as a page; its first heading is the page's title, its links lead to the repository."
    text = (ROOT / name).read_text(encoding="utf-8")
    text = re.sub(r"\A# .*\n", "", text)
    text = re.sub(r"\]\(nbs/(images/[^)]+)\)", r"](../\1)", text)
    text = re.sub(r"\]\((?!\w+:|#|\.\./)([^)]+)\)", rf"]({url}/blob/main/\1)", text)
    text = re.sub(r"(?<=[ (])#(\d+)\b", rf"[#\1]({url}/issues/\1)", text)
    return page(title, description, text)


def citation(
    url: str,  # address of the repository
) -> str:  # the page
    "How to cite, from CITATION.cff."
    import yaml

    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    bib = [
        "@software{eo_brew,",
        f"  title   = {{{cff['title']}}},",
        f"  author  = {{{{{cff['authors'][0].get('name', 'eo_brew contributors')}}}}},",
        f"  version = {{{cff['version']}}},",
        f"  year    = {{{str(cff.get('date-released', '2026'))[:4]}}},",
        f"  url     = {{{url}}}",
        "}",
    ]
    papers = [
        f"- {', '.join(a.get('family-names', a.get('name', '')) for a in r.get('authors', []))}"
        f"{': ' if r.get('authors') else ''}*{r['title']}*, [{r['url'].split('/')[-1]}]({r['url']})"
        for r in cff.get("references", [])
    ]
    body = (
        "Cite the software, and the paper of the method that you used.\n\n## The software\n\n"
        f"```bibtex\n{chr(10).join(bib)}\n```\n\n## The papers\n\n" + "\n".join(papers) + "\n\n"
        "An encoder that you distil from a teacher also rests on that teacher's work and licence: "
        "`encoder.safetensors` names both in its metadata, and `eo_brew info encoder.safetensors` prints them.\n"
    )
    return page("How to cite", "Citation of the software and of the papers behind it.", body)


def missing_page() -> str:  # what a browser shows for an address that is none
    "The page for addresses that lead nowhere."
    return page(
        "Page not found",
        "This address leads to no page of eo_brew.",
        "The page may have moved. Search above, or begin at [the first page](index.html), "
        "[the frequent questions](guide/faq.html) or [the index of all names](reference/index.html).",
    )


def pages(
    to: Path,  # folder of the processed notebooks
):
    "Write all pages into `to`."
    from docs import settings

    url = settings()["git_url"]
    made = {
        "reference/index.md": reference(),
        "reference/cli.md": command_line(),
        "reference/errors.md": errors(),
        "project/citation.md": citation(url),
        "404.md": missing_page(),
    }
    for file, title, what in (
        ("CHANGELOG.md", "Changelog", "What changed from version to version."),
        (
            "CONTRIBUTING.md",
            "Contributing",
            "Layers, house rules, how to add a sensor, a loss or a method.",
        ),
        (
            "SECURITY.md",
            "Security",
            "How to report a vulnerability, and which files are safe to open.",
        ),
    ):
        made[f"project/{file.lower()}"] = project_file(file, title, what, url)
    for name, text in made.items():
        path = to / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tools"))
    here = Path.cwd()
    if here.name != "_proc":
        raise SystemExit("run by Quarto or smalldocs in the folder of processed notebooks, _proc")
    pages(here)
