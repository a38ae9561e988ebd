"""The rules of the tree: mirrors, import arrows, budgets, exports, environment, forbidden calls.

Each rule is a function from the root of a tree to its violations, one sentence each; every rule is
shown to hold here and to catch a violation in a small tree made for it.
"""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vlakern import env

ROOT = Path(__file__).parents[1]

# A room may import itself and the rooms before it; the empty name is the package's own modules.
ORDER = (
    ("", "_native"),
    ("testing", "trials"),
    ("ops",),
    ("space",),
    ("flow",),
    ("models",),
    ("data",),
    ("infer",),
    ("train",),
    ("robot",),
    ("serve",),
    ("sim",),
    ("blind",),
    ("bench",),
    ("cli",),
)
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}

# module -> why it has no test file of its own
WITHOUT_TEST = {
    "vlakern/errors.py": "class statements; test_public.py resolves the names",
    "vlakern/types.py": "records without behaviour",
    "vlakern/blind/results.py": "records without behaviour",
}
OP_FILES = ("__init__.py", "reference.py")
CODE = ("vlakern", "python_tests", "benchmarks", "examples")
BUDGETS = {".py": 400, ".cpp": 400, ".h": 400, ".hpp": 400, ".cu": 600, ".cuh": 600}
EXAMPLE_BUDGET = 120

FORBIDDEN_IMPORTS = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "yaml.load", "yaml.unsafe_load"}
TABLE_BEGIN, TABLE_END = "<!-- environment variables -->", "<!-- end of environment variables -->"


def files(root: Path, *folders: str, suffix: str = ".py") -> Iterator[Path]:
    for folder in folders:
        yield from sorted((root / folder).rglob(f"*{suffix}"))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def missing_mirrors(root: Path) -> list[str]:
    """Every module has its test file, except ``__init__``, ``_private`` and the listed ones."""
    package, found = root / "vlakern", []
    for path in files(root, "vlakern"):
        inside = path.relative_to(package)
        if path.name.startswith("_") or inside.parts[0] == "ops":
            continue
        if path.relative_to(root).as_posix() in WITHOUT_TEST:
            continue
        mirror = Path("python_tests", inside.parent, f"test_{path.name}")
        if not (root / mirror).exists():
            found.append(f"{path.relative_to(root)} has no {mirror}")
    return found


def incomplete_ops(root: Path) -> list[str]:
    """Every op has its files in every room that it says it has a backend for."""
    found = []
    for folder in sorted((root / "vlakern/ops").glob("[a-z]*/")):
        inside = folder.relative_to(root)
        found += [
            f"op {folder.name} has no {name}"
            for name in op_files(inside, declared_backends(folder / "__init__.py"))
            if not (root / name).exists()
        ]
    return found


def op_files(folder: Path, backends: set[str]) -> list[str]:
    """What an op with these backends consists of; a reference alone has nothing to compare."""
    op, inside = folder.name, folder.as_posix()
    names = [f"{inside}/{name}" for name in OP_FILES] + [f"python_tests/ops/test_{op}.py"]
    if backends - {"reference"}:
        names += [f"{inside}/cases.py", f"benchmarks/ops/bench_{op}.py"]
    if backends & {"cpu", "cuda"}:
        names.append(f"csrc/{op}/{op}.h")
    names += [f"csrc/{op}/{op}_cpu.cpp"] if "cpu" in backends else []
    names += [f"csrc/{op}/{op}_cuda.cu"] if "cuda" in backends else []
    names += [f"{inside}/triton_kernels.py"] if "triton" in backends else []
    return names


def declared_backends(path: Path) -> set[str]:
    """The first arguments of the ``Backend(...)`` calls of a module."""
    if not path.exists():
        return set()
    calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    named = [call.args[0] for call in calls if dotted(call.func).endswith("Backend") and call.args]
    return {str(name.value) for name in named if isinstance(name, ast.Constant)}


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of a name or an attribute, ``""`` of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a module imports, wherever in the module."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def room_of(root: Path, name: str) -> str:
    """The room of an imported ``vlakern.x.y``: ``x`` if it is a folder or known, else the base."""
    parts = name.split(".")
    room = parts[1] if len(parts) > 1 else ""
    return room if room in RANK or (root / "vlakern" / room).is_dir() else ""


def wrong_arrows(root: Path) -> list[str]:
    """Imports go from later rooms to earlier ones, by full name."""
    found = []
    for path in files(root, "vlakern"):
        inside = path.relative_to(root / "vlakern").parts
        if inside == ("__init__.py",):
            continue
        room = inside[0] if len(inside) > 1 else ""
        for line, name in imported(path):
            where = f"{path.relative_to(root)}:{line}"
            if name.startswith("."):
                found.append(f"{where} imports {name} relatively")
            if name.split(".")[0] != "vlakern":
                continue
            target = room_of(root, name)
            unknown = [one for one in (room, target) if one not in RANK]
            found += [f"{where}: the room {one!r} has no place in ORDER" for one in unknown]
            if not unknown and target != room and RANK[target] >= RANK[room]:
                found.append(f"{where}: {room or 'the base'} may not import {name}")
    return found


def over_budget(root: Path) -> list[str]:
    """No file is longer than its kind allows."""
    found = []
    for suffix, kind in BUDGETS.items():
        for path in files(root, *CODE, "csrc", suffix=suffix):
            example = path.relative_to(root).parts[0] == "examples"
            budget = EXAMPLE_BUDGET if example else kind
            lines = len(path.read_text().splitlines())
            if lines > budget:
                found.append(f"{path.relative_to(root)} has {lines} lines, at most {budget}")
    return found


def bound_names(module: ast.Module) -> set[str]:
    """Names that a module's top level binds, also inside ``if`` and ``try``."""
    names: set[str] = set()
    pending: list[ast.AST] = list(module.body)
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        pending += ast.iter_child_nodes(node)
    return names


def bad_exports(root: Path) -> list[str]:
    """Every module has a docstring and a literal ``__all__`` whose names it binds."""
    found = []
    for path in files(root, "vlakern"):
        where, module = path.relative_to(root), tree(path)
        if not ast.get_docstring(module):
            found.append(f"{where} has no docstring")
        values = [
            node.value
            for node in module.body
            if isinstance(node, ast.Assign) and [dotted(t) for t in node.targets] == ["__all__"]
        ]
        if len(values) != 1 or not isinstance(values[0], (ast.List, ast.Tuple)):
            found.append(f"{where} has no literal __all__")
            continue
        names = [e.value if isinstance(e, ast.Constant) else dotted(e) for e in values[0].elts]
        lost = sorted(set(map(str, names)) - bound_names(module))
        found += [f"{where}: __all__ names {name}, which it does not bind" for name in lost]
    return found


def environment_readers(root: Path) -> list[str]:
    """Only ``vlakern/env.py`` reads or writes the environment."""
    words = {"os.environ", "os.environb", "os.getenv", "os.putenv", "os.unsetenv"}
    found = []
    for path in files(root, "vlakern"):
        if path == root / "vlakern/env.py":
            continue
        used = [(n.lineno, dotted(n)) for n in ast.walk(tree(path)) if isinstance(n, ast.Attribute)]
        touched = {(line, name) for line, name in [*used, *imported(path)] if name in words}
        found += [f"{path.relative_to(root)}:{line} uses {name}" for line, name in sorted(touched)]
    return found


def readme_table(root: Path) -> list[str]:
    """The README's table of environment variables is the one in ``vlakern.env``."""
    text = (root / "README.md").read_text()
    if TABLE_BEGIN not in text or TABLE_END not in text:
        return ["README.md has no table of environment variables"]
    shown = text.split(TABLE_BEGIN)[1].split(TABLE_END)[0].strip().splitlines()[2:]
    declared = [f"| `{v.name}` | {v.values} | {v.default} | {v.meaning} |" for v in env.VARIABLES]
    return [f"README.md lacks the row {row}" for row in declared if row not in shown] + [
        f"README.md has a row that vlakern.env has not: {row}"
        for row in shown
        if row not in declared
    ]


def forbidden(root: Path) -> list[str]:
    """Nothing unpickles, evaluates text, or swallows every error."""
    found = []
    for path in files(root, *CODE):
        where = path.relative_to(root)
        for line, name in imported(path):
            if name.split(".")[0] in FORBIDDEN_IMPORTS or name in FORBIDDEN_CALLS:
                found.append(f"{where}:{line} imports {name}")
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call):
                found += [f"{where}:{node.lineno} {reason}" for reason in bad_call(node)]
            if isinstance(node, ast.ExceptHandler) and catches_all(node):
                found.append(f"{where}:{node.lineno} catches everything")
    return found


def bad_call(call: ast.Call) -> list[str]:
    name = dotted(call.func)
    reasons = [f"calls {name}"] if name in FORBIDDEN_CALLS else []
    for word in call.keywords:
        allowed = isinstance(word.value, ast.Constant) and word.value.value is False
        if word.arg == "allow_pickle" and not allowed:
            reasons.append(f"calls {name} with allow_pickle")
    return reasons


def catches_all(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or dotted(kind) in {"Exception", "BaseException"} for kind in kinds)


Rule = Callable[[Path], list[str]]
RULES: tuple[Rule, ...] = (
    missing_mirrors,
    incomplete_ops,
    wrong_arrows,
    over_budget,
    bad_exports,
    environment_readers,
    readme_table,
    forbidden,
)
VIOLATIONS: tuple[tuple[Rule, dict[str, str], str], ...] = (
    (missing_mirrors, {"vlakern/data/new.py": ""}, "has no python_tests/data/test_new.py"),
    (missing_mirrors, {"vlakern/top.py": ""}, "has no python_tests/test_top.py"),
    (incomplete_ops, {"vlakern/ops/a/cases.py": ""}, "has no vlakern/ops/a/reference.py"),
    (incomplete_ops, {"vlakern/ops/a/reference.py": ""}, "has no python_tests/ops/test_a.py"),
    (incomplete_ops, {"vlakern/ops/a/__init__.py": "Backend('cpu')"}, "no csrc/a/a_cpu.cpp"),
    (incomplete_ops, {"vlakern/ops/a/__init__.py": "Backend('cuda')"}, "no csrc/a/a_cuda.cu"),
    (incomplete_ops, {"vlakern/ops/a/__init__.py": "Backend('cuda')"}, "no csrc/a/a.h"),
    (incomplete_ops, {"vlakern/ops/a/__init__.py": "Backend('triton')"}, "a/triton_kernels.py"),
    (incomplete_ops, {"vlakern/ops/a/__init__.py": "Backend('triton')"}, "a/cases.py"),
    (incomplete_ops, {"vlakern/ops/a/__init__.py": "Backend('cpu')"}, "ops/bench_a.py"),
    (wrong_arrows, {"vlakern/ops/x.py": "import vlakern.models.mot"}, "ops may not import"),
    (wrong_arrows, {"vlakern/files.py": "from vlakern import ops"}, "the base may not import"),
    (wrong_arrows, {"vlakern/trials/x.py": "from vlakern.testing import y"}, "may not import"),
    (wrong_arrows, {"vlakern/data/x.py": "def f():\n  from vlakern.train import y"}, "x.py:2"),
    (wrong_arrows, {"vlakern/flow/x.py": "from vlakern.data import y"}, "flow may not import"),
    (wrong_arrows, {"vlakern/data/x.py": "from . import y"}, "relatively"),
    (wrong_arrows, {"vlakern/attic/x.py": "import vlakern.env"}, "no place in ORDER"),
    (over_budget, {"vlakern/x.py": "1\n" * 401}, "401 lines, at most 400"),
    (over_budget, {"csrc/x/x.cpp": "\n" * 401}, "at most 400"),
    (over_budget, {"csrc/x/x_sm80.cuh": "\n" * 601}, "at most 600"),
    (over_budget, {"examples/x.py": "\n" * 121}, "at most 120"),
    (bad_exports, {"vlakern/x.py": '"""Doc."""'}, "no literal __all__"),
    (bad_exports, {"vlakern/x.py": '__all__ = ["y"]\ny = 1'}, "no docstring"),
    (bad_exports, {"vlakern/x.py": '"""Doc."""\n__all__ = ["z"]'}, "names z"),
    (environment_readers, {"vlakern/x.py": "import os\nos.environ['A']"}, "x.py:2"),
    (environment_readers, {"vlakern/x.py": "from os import getenv"}, "uses os.getenv"),
    (readme_table, {"README.md": "nothing"}, "has no table"),
    (readme_table, {"README.md": f"{TABLE_BEGIN}\n{TABLE_END}"}, "lacks the row"),
    (readme_table, {"README.md": f"{TABLE_BEGIN}\n||\n||\n|new|\n{TABLE_END}"}, "|new|"),
    (forbidden, {"vlakern/x.py": "import pickle"}, "imports pickle"),
    (forbidden, {"vlakern/x.py": "from torch import load"}, "imports torch.load"),
    (forbidden, {"benchmarks/x.py": "torch.load(p)"}, "calls torch.load"),
    (forbidden, {"examples/x.py": "eval('1')"}, "calls eval"),
    (forbidden, {"vlakern/x.py": "np.load(p, allow_pickle=True)"}, "allow_pickle"),
    (forbidden, {"vlakern/x.py": "np.load(p, allow_pickle=flag)"}, "allow_pickle"),
    (forbidden, {"vlakern/x.py": "try:\n  f()\nexcept:\n  pass"}, "catches everything"),
    (forbidden, {"vlakern/x.py": "try:\n  f()\nexcept (E, Exception):\n  pass"}, "x.py:3"),
)
FINE = {
    "vlakern/__init__.py": '"""Doc."""\n__all__ = []\nfrom vlakern.cli import main',
    "vlakern/env.py": '"""Doc."""\nimport os\n__all__ = ["A"]\nA = os.environ',
    "python_tests/test_env.py": "",
    "vlakern/models/mot.py": '"""Doc."""\n__all__ = ["f"]\nimport vlakern.ops\ndef f(): m.eval()',
    "python_tests/models/test_mot.py": "",
    "vlakern/ops/a/__init__.py": '"""Doc."""\n__all__ = []\nBackend("reference")',
    "vlakern/ops/a/reference.py": '"""Doc."""\n__all__ = []',
    "python_tests/ops/test_a.py": "",
}


def plant(root: Path, contents: dict[str, str]) -> Path:
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds_here(rule: Rule) -> None:
    """The repository keeps the rule."""
    found = rule(ROOT)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("rule", "contents", "sentence"), VIOLATIONS)
def test_rule_catches_a_violation(
    rule: Rule, contents: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    """A tree with one violation gives a sentence that names it."""
    found = rule(plant(tmp_path, contents))
    assert any(sentence in line for line in found), found


@pytest.mark.parametrize("rule", [r for r in RULES if r is not readme_table])
def test_rule_accepts_a_tree_that_keeps_it(rule: Rule, tmp_path: Path) -> None:
    """A small tree in order gives no violation."""
    assert rule(plant(tmp_path, FINE)) == []


def test_exemptions_exist() -> None:
    """The list of modules without a test file names only modules that exist."""
    assert [name for name in WITHOUT_TEST if not (ROOT / name).exists()] == []
