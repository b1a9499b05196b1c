"""Imports go downward only, as the table in CONTRIBUTING.md allows: in exported cells and in demonstrations alike."""
import ast, re

import pytest

from project import NBS, ROOT, code_cells, module_name, nb_id, notebooks, parse

NUMBER = r'\d\d[a-z]?'

def read_numbers(
    spec:str,   # '00-02, 06', '-' for none or 'all'
    num:str,    # number of the row
    names:dict, # number -> module, of all rows
)->set: # numbers
    "What one cell of the table allows"
    if spec in ('all', '-'): return {n for n in names if n < num} if spec == 'all' else set()
    res = set()
    for part in spec.split(','):
        m = re.fullmatch(rf'\s*({NUMBER})(?:-({NUMBER}))?\s*', part)
        assert m, f'row {num}: cannot read {part!r}'
        res |= {n for n in names if m[1] <= n <= (m[2] or m[1])}
    return res

def read_table(text:str)->dict: # number of a notebook -> (module, what exported cells, what demonstrations may import)
    "Rows `| 03_data | what | 00-02, 06 | 07 |` of the layers table"
    rows = [[c.strip(' `') for c in l.strip().strip('|').split('|')] for l in text.splitlines() if re.match(rf'\s*\|\s*`?{NUMBER}_\w+', l)]
    names = {re.match(NUMBER, r[0])[0]: r[0].split('_', 1)[1] for r in rows}
    return {n: (names[n], read_numbers(r[-2], n, names), read_numbers(r[-2], n, names) | read_numbers(r[-1], n, names))
            for r in rows for n in [re.match(NUMBER, r[0])[0]]}

TABLE = read_table((ROOT/'CONTRIBUTING.md').read_text(encoding='utf-8'))
ALLOWED = {mod: {TABLE[n][0] for n in nums} for mod,nums,_ in TABLE.values()}
SHOWN_WITH = {mod: {TABLE[n][0] for n in nums} for mod,_,nums in TABLE.values()}

def imported(tree:ast.AST)->set: # modules of eo_brew that `tree` imports, wherever the import stands
    res = set()
    for n in ast.walk(tree):
        if isinstance(n, ast.Import): res |= {a.name.split('.')[1] for a in n.names if a.name.startswith('eo_brew.')}
        elif isinstance(n, ast.ImportFrom):
            mod = n.module or ''
            if n.level == 1: res |= {mod.split('.')[0]} if mod else {a.name for a in n.names}
            elif mod == 'eo_brew': res |= {a.name for a in n.names}
            elif mod.startswith('eo_brew.'): res.add(mod.split('.')[1])
    return res - {'__version__', '_modidx'}


def test_the_table_is_read():
    assert read_table('| `00_a` | x | - | - |\n| 01_b | x | 00 | - |\n| 01b_c | x | 00 | 01 |\n| 02_d | x | all | - |') == {
        '00': ('a', set(), set()), '01': ('b', {'00'}, {'00'}), '01b': ('c', {'00'}, {'00', '01'}), '02': ('d', *[{'00', '01', '01b'}]*2)}
    assert len(TABLE) >= 21

def test_the_table_goes_downward():
    up = [(n, a) for n,(_,_,allowed) in TABLE.items() for a in allowed if a >= n]
    assert not up, f'rows that allow an import from above: {up}'

def test_an_upward_import_is_seen():
    for src in ('from eo_brew.deo import deo_learner', 'import eo_brew.deo', 'def f():\n from .deo import x', 'from . import deo', 'from eo_brew import deo'):
        assert imported(ast.parse(src)) == {'deo'}, src

@pytest.mark.parametrize('path', sorted((ROOT/'eo_brew').glob('[a-z]*.py')), ids=lambda p: p.stem)
def test_module_imports_downward(path):
    assert path.stem in ALLOWED, f'{path.stem} has no row in the layers table of CONTRIBUTING.md'
    bad = imported(ast.parse(path.read_text(encoding='utf-8'))) - ALLOWED[path.stem] - {path.stem}
    assert not bad, f'{path.stem} may import {sorted(ALLOWED[path.stem])}, not {sorted(bad)}'

@pytest.mark.parametrize('nb', [p for p in notebooks() if p.parent == NBS and re.match(NUMBER, p.name)], ids=nb_id)
def test_notebook_is_in_the_table(nb):
    "The numbered notebook exports the module of its row, and its demonstrations import no more than the row allows"
    num,mod = re.match(NUMBER, nb.name)[0], module_name(nb)
    assert num in TABLE and TABLE[num][0] == mod == nb.stem.split('_', 1)[1]
    for i,src in code_cells(nb):
        bad = imported(parse(src)) - SHOWN_WITH[mod] - {mod}
        assert not bad, f'cell {i} imports {sorted(bad)}; {mod} may be shown with {sorted(SHOWN_WITH[mod])}'
