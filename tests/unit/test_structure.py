"""How the package is built: functions are one thought, imports run one way, reports need no torch."""

import ast
import subprocess
import sys

import pytest
from support import ROOT

FILES = sorted((ROOT / "neutreno").rglob("*.py"))
LAYERS = [  # what stands further down may import what stands above, never the other way round
    {"errors", "stopping"},
    {"config"},
    {"files", "records", "console", "functional", "sliding_window"},
    {"variants"},
    {"runs"},
    {"tablefiles"},
    {"reports"},
    {"checkpoints", "attention"},
    {"results"},
    {"data", "parallel"},
    {"models"},
    {"tasks"},
    {"oversmoothing"},
    {"evaluation", "callbacks"},
    {"launchers", "preflight"},
    {"sweep", "training", "evaluating"},
    {"cli", "hub"},
    {"api"},
    {"neutreno"},
    {"__main__"},
]
LONGEST = 60


def module_of(file):
    names = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


MODULES = {module_of(file): file for file in FILES}


def imported(file):
    """Modules of the package that a file imports, anywhere in it; what only a type checker reads is left out."""
    tree = ast.parse(file.read_text())
    checked = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    unseen = {inner for outer in checked for inner in ast.walk(outer)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node not in unseen and (node.module or "").startswith("neutreno"):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module
        elif isinstance(node, ast.Import) and node not in unseen:
            yield from (alias.name for alias in node.names if alias.name in MODULES)


def part_of(module):
    return module.split(".")[1] if "." in module else module


@pytest.mark.parametrize("module", MODULES)
def test_no_function_is_long(module):
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= LONGEST, f"{node.name} has {length} lines"


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    level = {part: number for number, parts in enumerate(LAYERS) for part in parts}
    own = part_of(module)
    for other in imported(MODULES[module]):
        assert part_of(other) == own or level[part_of(other)] < level[own], f"{module} imports {other}"


def test_no_module_imports_itself_through_others():
    graph = {module: {other for other in imported(file) if other != module} for module, file in MODULES.items()}
    done = set()

    def visit(module, path):
        assert module not in path, " → ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in graph[module]:
                visit(other, [*path, module])
            done.add(module)

    for module in graph:
        visit(module, [])


def test_reports_need_no_torch():
    reports = [module for module in MODULES if part_of(module) == "reports"]
    code = f"import sys, {', '.join(reports)}; assert not {{'torch', 'lightning', 'timm'}} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_profile_needs_neither_lightning_nor_before_its_table_pandas():
    code = "import sys, neutreno; neutreno.profile; assert not {'lightning', 'pandas'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
