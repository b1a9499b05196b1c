"""Imports go downward only, as the table in CONTRIBUTING.md allows: in exported cells and in demonstrations alike."""

import ast
import re

import pytest

from project import NBS, ROOT, code_cells, module_name, nb_id, notebooks, parse

PACKAGE = ROOT / "eo_brew"
PUBLIC_DOOR = "all"


def read_table(
    text: str,
) -> dict:  # package -> (packages that it may import, packages that it may also be shown with)
    "Rows `| core | what | may import | to demonstrate, also |` of the layers table, lowest first."
    head = text.index("| package | holds |")
    rows = []
    for line in text[head:].splitlines()[2:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip(" `") for cell in line.strip("|").split("|")])
    names = [row[0] for row in rows]

    def packages(spec, above):
        if spec == "all":
            return set(names[:above])
        return set() if spec == "-" else {name.strip(" `") for name in spec.split(",")}

    return {row[0]: (packages(row[-2], i), packages(row[-1], i)) for i, row in enumerate(rows)}


TABLE = read_table((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
MODULES = sorted(
    p for p in PACKAGE.rglob("*.py") if p.stem not in ("__init__", "__main__", "_modidx")
)
NUMBERED = [p for p in notebooks() if p.parent.name in TABLE]
ORDER = {module_name(p): (list(TABLE).index(p.parent.name), p.name) for p in NUMBERED}


def module_of(path):
    "Dotted name below `eo_brew` of a module's file."
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imported(
    tree: ast.AST,  # syntax tree
    package: str = "",  # package that the code stands in, for relative imports
) -> set:  # dotted modules below `eo_brew`, wherever the import stands
    "What `tree` imports of eo_brew."
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name.removeprefix("eo_brew.") for a in node.names if "eo_brew." in a.name}
        elif isinstance(node, ast.ImportFrom):
            found |= {m for m in _from(node, package) if m not in ("", "__version__", "_modidx")}
    return {_known(m) for m in found}


def _from(node, package):
    name = node.module or ""
    if node.level == 1:
        base = [package, name]
    elif node.level == 2:
        base = [name]
    elif name == "eo_brew" or name.startswith("eo_brew."):
        base = [name.removeprefix("eo_brew").lstrip(".")]
    else:
        return set()
    base = ".".join(b for b in base if b)
    return (
        {base}
        if "." in base or base == PUBLIC_DOOR
        else {f"{base}.{a.name}".strip(".") for a in node.names}
    )


def _known(module):
    "`core.sensors.get_sensor` is `core.sensors`."
    return ".".join(module.split(".")[:2])


def upward(module, imports, shown=False):
    "Those of `imports` that `module` may not see."
    package = module.split(".")[0]
    allowed = TABLE[package][0] | (TABLE[package][1] if shown else set())
    return sorted(
        m
        for m in imports - {module}
        if (m.split(".")[0] not in allowed | {package})
        or (
            m.split(".")[0] == package and not shown and ORDER.get(m, (0, ""))[1] > ORDER[module][1]
        )
    )


def test_the_table_is_read():
    text = "| package | holds | a | b |\n|---|---|---|---|\n"
    text += "| core | x | - | - |\n| up | x | core | - |\n| top | x | all | core |\n"
    assert read_table(text) == {
        "core": (set(), set()),
        "up": ({"core"}, set()),
        "top": ({"core", "up"}, {"core"}),
    }
    assert len(TABLE) == 14


def test_the_table_goes_downward():
    names = list(TABLE)
    up = [(n, a) for i, n in enumerate(names) for a in TABLE[n][0] if a not in names[:i]]
    assert not up, f"rows that allow an import from above or from nowhere: {up}"


@pytest.mark.parametrize(
    "src",
    [
        "from eo_brew.methods.deo import deo_learner",
        "import eo_brew.methods.deo",
        "def f():\n from ..methods.deo import x",
        "from ..methods import deo",
        "from eo_brew.methods import deo",
        "from eo_brew import methods\nfrom eo_brew.methods import deo",
    ],
)
def test_an_upward_import_is_seen(src):
    assert "methods.deo" in imported(ast.parse(src), "train")
    assert upward("train.targets", imported(ast.parse(src), "train"))


def test_an_import_from_a_later_room_of_the_same_package_is_seen():
    assert imported(ast.parse("from .show import x"), "core") == {"core.show"}
    assert upward("core.sensors", {"core.show"}) and not upward("core.show", {"core.sensors"})


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_module_imports_downward(path):
    module = module_of(path)
    if module == PUBLIC_DOOR:
        return
    assert "." in module, f"{module} is in no package"
    bad = upward(module, imported(ast.parse(path.read_text(encoding="utf-8")), path.parent.name))
    assert not bad, f"{module} may not import {bad}"


@pytest.mark.parametrize(
    "nb",
    [p for p in notebooks() if p.parent not in (NBS, NBS / "tutorials", NBS / "guide")],
    ids=nb_id,
)
def test_notebook_is_in_the_table(nb):
    "A notebook exports the module of its place; its demonstrations import no more than the row allows."
    package, module = nb.parent.name, module_name(nb)
    assert package in TABLE, f"{package} has no row in the layers table of CONTRIBUTING.md"
    assert module == f"{package}.{re.sub(r'^[0-9]+_', '', nb.stem)}"
    for i, src in code_cells(nb):
        bad = upward(module, imported(parse(src), package), shown=True)
        assert not bad, (
            f"cell {i} imports {bad}; {package} may be shown with {sorted(TABLE[package][1])}"
        )
