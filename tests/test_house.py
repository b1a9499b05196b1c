"""The house rules of CONTRIBUTING.md that a program can check."""

import ast
import importlib
import re
import subprocess
import sys

import pytest

from project import (
    NBS,
    ROOT,
    code_cells,
    comment_lines,
    directives,
    is_export,
    module_name,
    nb_id,
    notebooks,
    parse,
)
from execnb.nbio import read_nb

MODULES = [p for p in notebooks() if module_name(p)]
TUTORIALS = [p for p in notebooks() if p.parent.name in ("tutorials", "guide")]
# what is asked for: 30, 15, 220, 60
CELL_LINES = 100
FUNC_LINES = 60
NB_LINES = 490
NB_CELLS = 70
modules = pytest.mark.parametrize("nb", MODULES, ids=nb_id)


def exported(nb):
    return [(i, src) for i, src in code_cells(nb) if is_export(src)]


def code_lines(src):
    return [l for l in src.splitlines() if l.strip() and not l.lstrip().startswith("#|")]


def functions(tree):
    return [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


def body_lines(
    f, src
):  # lines of a function's body that hold code, docstring and comments left out
    body = f.body[1:] if ast.get_docstring(f) is not None else f.body
    if not body:
        return 0
    lines = src.splitlines()[body[0].lineno - 1 : f.end_lineno]
    return len([l for l in lines if l.strip() and not l.strip().startswith("#")])


def public(
    src,
):  # (owner, function or class) of what a cell offers: public functions, classes, their methods, patches
    for n in parse(src).body:
        if isinstance(n, ast.ClassDef) and not n.name.startswith("_"):
            yield n.name, n
            for m in n.body:
                if isinstance(m, ast.FunctionDef) and (
                    m.name == "__init__" or not m.name.startswith("_")
                ):
                    yield f"{n.name}.{m.name}", m
        elif isinstance(n, ast.FunctionDef) and not n.name.startswith("_"):
            yield n.name, n


def is_overload(f):  # plum/typedispatch and properties tell the same thing elsewhere
    return any(
        "property" in ast.unparse(d) or "overload" in ast.unparse(d) for d in f.decorator_list
    )


def undocumented(f, src):  # names of the arguments of a function that no comment explains
    a = f.args
    args = a.posonlyargs + a.args + a.kwonlyargs
    if args and args[0].arg in ("self", "cls"):
        args = args[1:]
    comments, ends = comment_lines(src), {}
    for x in args:
        ends.setdefault(x.end_lineno, []).append(x.arg)
    defaults = {x.arg: d for x, d in zip(a.args[::-1], a.defaults[::-1])} | {
        x.arg: d for x, d in zip(a.kwonlyargs, a.kw_defaults) if d
    }
    missing = []
    for x in args:
        last = defaults[x.arg].end_lineno if x.arg in defaults else x.end_lineno
        alone = (
            ends[x.end_lineno][-1] == x.arg
        )  # a comment speaks for the last argument of its line
        if not (
            alone and (last in comments or x.lineno - 1 in comments and x.lineno - 1 > f.lineno)
        ):
            missing.append(x.arg)
    return missing


def test_pictures_are_told_in_words():
    'A cell that stores a picture has `#| fig-alt: "..."` on one line, which is what the site gives to screen readers.'
    mute = [
        f"{nb_id(nb)}, cell {i}"
        for nb in notebooks()
        for i, c in enumerate(read_nb(nb).cells)
        if "image/" in str([o.get("data", {}).keys() for o in c.get("outputs", [])])
        and not re.search(r'^#\| fig-alt: ".{25,}"$', c.source, re.M)
    ]
    assert not mute, mute


def test_links_between_pages_lead_somewhere():
    "Links of notebooks and guide to notebooks and other files of nbs/ are to files that are there; so is the sidebar."
    made = ("reference/", "project/")  # pages that the site makes
    lost = []
    for page in [*notebooks(), *NBS.glob("guide/*.md"), ROOT / "_quarto.yml"]:
        text = page.read_text(encoding="utf-8")
        found = re.findall(r"\]\(([^)\s#:\\\"]+\.(?:ipynb|md))[#)]", text)
        if page.suffix == ".yml":
            found = re.findall(r"^ +- ([\w/]+\.(?:ipynb|md))$", text, re.M)
        folder = NBS if page.suffix == ".yml" else page.parent
        for link in found:
            target = (folder / link).resolve()
            inside = target.is_relative_to(NBS) and target.relative_to(NBS).as_posix()
            if not target.exists() and not (inside and inside.startswith(made)):
                lost.append(f"{page.name}: {link}")
    assert not lost, lost


def test_ruff_finds_nothing():
    "Format, width (120) and plain mistakes, in notebooks too: `ruff format` and `ruff check` as pyproject.toml says."
    for command in (["format", "--check"], ["check"]):
        r = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", str(ROOT)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert r.returncode == 0, r.stdout[-3000:] + r.stderr[-1000:]


@pytest.mark.parametrize("exported_cells", [True, False], ids=["exported", "shown"])
def test_lines_are_read_at_once(exported_cells):
    "Nine lines of ten have at most 90 characters."
    cells = [src for nb in MODULES for _, src in code_cells(nb) if is_export(src) == exported_cells]
    lines = [line for src in cells for line in src.splitlines() if line.strip()]
    widths = sorted(len(line) for line in lines if not line.startswith("#|"))
    assert widths[len(widths) * 9 // 10] <= 90 and widths[-1] <= 120


@modules
def test_exported_cells_are_short(nb):
    long = {i: len(code_lines(src)) for i, src in exported(nb) if len(code_lines(src)) > CELL_LINES}
    assert not long, f"cells of more than {CELL_LINES} lines: {long}"


@modules
def test_functions_are_short(nb):
    long = {
        f.name: body_lines(f, src)
        for _, src in exported(nb)
        for f in functions(parse(src))
        if body_lines(f, src) > FUNC_LINES
    }
    assert not long, f"functions of more than {FUNC_LINES} lines: {long}"


@modules
def test_notebook_holds_one_idea(nb):
    n_lines, n_cells = sum(len(code_lines(src)) for _, src in exported(nb)), len(read_nb(nb).cells)
    assert n_lines <= NB_LINES, f"{n_lines} exported lines"
    assert n_cells <= NB_CELLS, f"{n_cells} cells"


@modules
def test_no_star_import_is_exported(nb):
    stars = [
        (i, n.module)
        for i, src in exported(nb)
        for n in ast.walk(parse(src))
        if isinstance(n, ast.ImportFrom) and any(a.name == "*" for a in n.names)
    ]
    assert not stars


@modules
def test_every_export_is_followed_by_an_example(nb):
    "At most three exported cells (a class and its patches) stand in a row before one that uses them."
    rows, row = [], []
    for i, src in code_cells(nb) + [(-1, "")]:
        if is_export(src):
            row += [(i, [n for n, _ in public(src)])] if list(public(src)) else []
        elif row:
            if "nbdev_export()" in src or i < 0 or len(row) > 3:
                rows.append(row)
            row = []
    assert not rows, f"exported cells without an example or a test behind: {rows}"


@modules
def test_public_names_have_docstrings_and_docments(nb):
    """One line on everything public; every argument of a function or constructor has a comment or
    stands in the docstring.
    """
    faults = []
    for i, src in exported(nb):
        inherited = {
            f"{c.name}.{m.name}"
            for c in parse(src).body
            if isinstance(c, ast.ClassDef) and c.bases
            for m in functions(c)
        }
        for name, n in public(src):
            patched = any("patch" in ast.unparse(d) for d in n.decorator_list)
            if ("." in name or patched) and body_lines(n, src) <= 3:
                continue  # what a line or two say by themselves
            doc = ast.get_docstring(n) or ""
            if (
                not doc
                and name not in inherited
                and name.split(".")[-1] not in ("__init__", "forward")
            ):
                faults.append(f"{name} (cell {i}): no docstring")
            if isinstance(n, ast.ClassDef) or is_overload(n):
                continue
            if "." not in name or name.endswith("__init__"):
                args = [
                    a for a in undocumented(n, src) if not a.startswith("_") and f"`{a}`" not in doc
                ]
                if args:
                    faults.append(f"{name} (cell {i}): no comment on {', '.join(args)}")
    assert not faults, "\n".join(faults)


@modules
def test_user_errors_are_not_assertions(nb):
    "No unfinished work and no bare exception is exported."
    for i, src in exported(nb):
        assert not re.search(r"\b(TODO|FIXME|XXX|NotImplementedError)\b", src), f"cell {i}"
        bare = [
            n for n in ast.walk(parse(src)) if isinstance(n, ast.ExceptHandler) and n.type is None
        ]
        assert not bare, f"bare except in cell {i}"
        raised = {
            ast.unparse(n.exc.func)
            for n in ast.walk(parse(src))
            if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call)
        }
        assert not raised & {"Exception", "AssertionError", "RuntimeError"}, (
            f"cell {i} raises {raised}"
        )


def bound(tree, deep=True):  # names that a cell binds: everywhere, or only those that outlive it
    res, todo = set(), [tree]
    while todo:
        n = todo.pop()
        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store):
            res.add(n.id)
        elif isinstance(n, (ast.Import, ast.ImportFrom)):
            res |= {(a.asname or a.name).split(".")[0] for a in n.names}
        elif isinstance(n, ast.arg):
            res.add(n.arg)
        elif isinstance(n, ast.ExceptHandler) and n.name:
            res.add(n.name)
        scope = isinstance(
            n,
            (
                ast.FunctionDef,
                ast.ClassDef,
                ast.Lambda,
                ast.ListComp,
                ast.SetComp,
                ast.DictComp,
                ast.GeneratorExp,
            ),
        )
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)):
            res.add(n.name)
        if deep or not scope:
            todo += ast.iter_child_nodes(n)
    return res


@modules
def test_cells_with_imports_need_no_others(nb):
    "To make the site, nbdev runs what exports and what imports, and no other cell: those must work without the rest."
    import builtins

    known, faults = set(dir(builtins)) | {"display", "get_ipython"}, []
    for i, src in code_cells(nb):
        tree = parse(src)
        imports = any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.walk(tree))
        if (
            directives(src).get("eval") == "false"
            or "nbdev_export()" in src
            or not (imports or is_export(src))
        ):
            continue
        missing = (
            {
                n.id
                for n in ast.walk(tree)
                if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)
            }
            - known
            - bound(tree)
        )
        known |= bound(tree, deep=False)
        if is_export(src):
            continue  # what it names inside functions may come later
        if missing:
            faults.append(
                f"cell {i} needs {sorted(missing)}; put its imports into a cell of their own\n{src[:120]}"
            )
    assert not faults, "\n".join(faults)


@modules
def test_quoted_annotations_are_known(nb):
    "nbdev shows a signature right after its cell: a quoted annotation must name something that is there by then."
    import builtins

    known, faults = set(dir(builtins)), []
    for i, src in code_cells(nb):
        tree = parse(src)
        if is_export(src) or any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in tree.body):
            known |= bound(tree, deep=False)
        if not is_export(src):
            continue
        quoted = [
            n.annotation
            for n in ast.walk(tree)
            if isinstance(n, (ast.arg, ast.AnnAssign)) and isinstance(n.annotation, ast.Constant)
        ]
        for a in quoted:
            if isinstance(a.value, str):
                late = {
                    n.id for n in ast.walk(ast.parse(a.value)) if isinstance(n, ast.Name)
                } - known
                if late:
                    faults.append((i, a.value))
    assert not faults, f"(cell, annotation) with names that come later: {faults}"


@modules
def test_notebook_starts_with_title_and_subtitle(nb):
    first = read_nb(nb).cells[0]
    assert first.cell_type == "markdown" and re.match(r"# .+\n+> .+", first.source), (
        "first cell: `# Title`, empty line, `> one line`"
    )


@modules
def test_default_exp_comes_once_and_export_last(nb):
    srcs = [s for _, s in code_cells(nb)]
    assert sum("default_exp" in directives(s) for s in srcs) == 1
    assert "nbdev_export()" in srcs[-1] and "hide" in directives(srcs[-1])


@pytest.mark.parametrize("nb", notebooks(), ids=nb_id)
def test_nothing_unfinished_is_told(nb):
    for i, c in enumerate(read_nb(nb).cells):
        assert not re.search(r"\b(TODO|FIXME|XXX)\b|lorem ipsum", c.source), f"cell {i}"


def test_the_package_needs_no_nbdev():
    "Exported modules import neither what only development needs nor, at their top, what only an extra brings."
    from configparser import ConfigParser

    cfg = ConfigParser(delimiters=["="])
    cfg.read(ROOT / "settings.ini")
    req = {
        re.split(r"[<>=!;\[~]", r)[0].lower().replace("-", "_")
        for r in cfg["DEFAULT"]["requirements"].split()
    }
    names = {"scikit_learn": "sklearn", "pillow": "PIL", "pyyaml": "yaml"}
    import sys

    known = {names.get(r, r) for r in req} | set(sys.stdlib_module_names) | {"eo_brew"}
    for p in sorted((ROOT / "eo_brew").rglob("*.py")):
        tree = ast.parse(p.read_text(encoding="utf-8"))
        anywhere, top = set(), set()
        for n in ast.walk(tree):
            mods = (
                [a.name for a in n.names]
                if isinstance(n, ast.Import)
                else [n.module or ""]
                if isinstance(n, ast.ImportFrom) and not n.level
                else []
            )
            anywhere |= {m.split(".")[0] for m in mods}
            if n in tree.body:
                top |= {m.split(".")[0] for m in mods}
        assert not anywhere & {"nbdev", "execnb", "pytest", "hypothesis", "ipykernel"}, p.name
        assert not top - known, (
            f"{p.name} imports {sorted(top - known)}: not in `requirements` of settings.ini "
            "(import extras inside the function that needs them)"
        )


@pytest.mark.parametrize(
    "src,names",
    [
        ("def f(a, # one\n      b=2, # two\n      ): pass", []),
        ("def f(a, b): pass", ["a", "b"]),
        ("def f(a:int, # one\n      b:str): pass", ["b"]),
        ("def f(a, b, # both\n    ): pass", ["a"]),
    ],
)
def test_docments_are_read(src, names):
    assert undocumented(parse(src).body[0], src) == names


def _shown_imports():
    "What code in prose imports from the package: page, module, names."
    pages = [
        (p, c.source) for p in notebooks() for c in read_nb(p).cells if c.cell_type == "markdown"
    ]
    files = [*NBS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    pages += [(p, p.read_text()) for p in files]
    for page, text in pages:
        for block in re.findall(r"```python\n(.*?)```", text, re.S):
            found = re.findall(r"^\s*from (eo_brew[\w.]*) import ([\w, ]+)", block, re.M)
            for module, names in found:
                yield page.name, module, [n.split(" as ")[0].strip() for n in names.split(",")]


def test_imports_shown_in_prose_exist():
    shown = list(_shown_imports())
    assert len(shown) > 5
    known = {m: importlib.import_module(m) for _, m, _ in shown}
    lost = [(p, m, n) for p, m, names in shown for n in names if not hasattr(known[m], n)]
    assert not lost, lost
