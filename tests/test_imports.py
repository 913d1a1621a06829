"""The rules of the house, held by reading every import: they run downwards, late and safely."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

NATIVE = ("faststy.kernels", "faststy._C")
# From the bottom up. A module imports from its own part and from those below.
LAYERS = (
    ("faststy", *(f"faststy.{m}" for m in ("errors", "files", "pictures", "page", "assets"))),
    ("faststy.tensors",),
    NATIVE,
    ("faststy.ops",),
    ("faststy.nn",),
    ("faststy.model_file",),
    ("faststy.training", "faststy.stylization"),
    ("faststy.evaluation",),
    ("faststy.sweep",),
    ("faststy.cli",),
    ("faststy.__main__",),
)
LIGHT = (*LAYERS[0], "faststy.cli")  # no torch
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


class Import(NamedTuple):
    file: str
    line: int
    importer: str
    imported: str
    late: bool  # inside a function

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.imported}"


def modules() -> dict[str, Path]:
    """Every module of the package by its installed name."""
    found = {}
    for folder, package in ((ROOT / "faststy", "faststy"), (ROOT / "kernels", "faststy.kernels")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports() -> Iterator[Import]:
    """Imports of every module: statements, and import_module("...") of a literal name."""
    for name, path in MODULES.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        tree = ast.parse(path.read_text(encoding="utf-8"))
        late = {
            id(inner)
            for outer in ast.walk(tree)
            if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            or (isinstance(outer, ast.If) and "TYPE_CHECKING" in ast.unparse(outer.test))
            for inner in ast.walk(outer)
        }
        for node in ast.walk(tree):
            for target in targets(node, package):
                yield Import(
                    str(path.relative_to(ROOT)), node.lineno, name, target, id(node) in late
                )


def targets(node: ast.AST, package: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parent = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*parent, *([base] if base else [])])
        full = [f"{base}.{alias.name}" for alias in node.names]
        return [name if name in MODULES or name == "faststy._C" else base for name in full]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        name = node.args[0]
        return [name.value] if isinstance(name, ast.Constant) else []
    return []


IMPORTS = list(imports())


def part(module: str) -> str:
    """The entry of LAYERS that a module of faststy belongs to."""
    return ".".join(module.split(".")[:2])


def test_every_module_has_its_place_in_the_layers():
    assert {part(name) for name in MODULES} <= set(LEVEL)


def test_every_folder_with_code_is_a_package():
    """Otherwise setup.py leaves it out, which an editable install does not show."""
    bare = {path.parent for path in MODULES.values()}
    assert not [folder for folder in bare if not (folder / "__init__.py").exists()]


def test_imports_run_downwards():
    upwards = [
        str(i)
        for i in IMPORTS
        if i.imported.split(".")[0] == "faststy"
        and i.importer != "faststy"  # its names are lazy: see below
        and part(i.imported) != part(i.importer)
        and LEVEL[part(i.imported)] >= LEVEL[part(i.importer)] > 0
    ]
    assert not upwards


def test_the_bottom_imports_no_torch_and_nothing_above():
    bad = [
        str(i)
        for i in IMPORTS
        if part(i.importer) in LAYERS[0]
        and not i.late
        and (i.imported.split(".")[0] == "torch" or LEVEL.get(part(i.imported), 0) > 0)
    ]
    assert not bad


def test_kernels_import_only_torch_triton_and_themselves():
    allowed = {"torch", "triton", *sys.stdlib_module_names}
    bad = [
        str(i)
        for i in IMPORTS
        if part(i.importer) == "faststy.kernels"
        and part(i.imported) != "faststy.kernels"
        and i.imported.split(".")[0] not in allowed
    ]
    assert not bad


def test_only_ops_touch_kernels_and_the_extension_and_only_late():
    bad = [
        str(i)
        for i in IMPORTS
        if part(i.importer) != "faststy.kernels"
        and (part(i.imported) in NATIVE or i.imported.split(".")[0] == "triton")
        and not (part(i.importer) == "faststy.ops" and i.late)
    ]
    assert not bad


def test_commands_import_torch_and_what_needs_it_late():
    heavy = LEVEL.keys() - LIGHT
    bad = [
        str(i)
        for i in IMPORTS
        if part(i.importer) == "faststy.cli"
        and not i.importer.startswith("faststy.cli._")  # helpers, imported late themselves
        and not i.late
        and (i.imported.split(".")[0] in ("torch", "numpy") or part(i.imported) in heavy)
        and i.imported != "faststy.training.config"  # settings and their defaults: no torch
    ]
    assert not bad


def test_nothing_is_unpickled():
    bad = [str(i) for i in IMPORTS if i.imported.split(".")[0] in ("pickle", "dill", "joblib")]
    for path in MODULES.values():
        text = path.read_text(encoding="utf-8")
        bad += [
            f"{path}:{node.lineno}: {ast.unparse(node)}"
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "np.load")
        ]
    assert not bad


def test_the_rules_see_a_breach():
    """The reader above must notice each way of writing an import."""
    source = (
        "import a.b\nfrom c import d\nfrom .. import ops\nimport_module('faststy.kernels.gram')"
    )
    found = [t for node in ast.walk(ast.parse(source)) for t in targets(node, "faststy.nn")]
    assert found == ["a.b", "c", "faststy.ops", "faststy.kernels.gram"]


def python(code: str, **kwargs) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **kwargs
    )


@pytest.mark.parametrize("module", ["faststy", "faststy.cli", "faststy.pictures"])
def test_importing_brings_in_no_torch(module):
    done = python(f"import sys, {module}; print({{'torch', 'triton'}} & set(sys.modules))")
    assert done.stdout == "set()\n", done.stderr


def test_import_starts_no_cuda_and_needs_neither_triton_nor_the_extension():
    done = python(
        "import sys\n"
        "sys.modules.update({'triton': None, 'faststy._C': None})\n"
        "import torch, faststy\n"
        "x = torch.arange(8.0).view(1, 2, 2, 2)\n"
        "assert faststy.ops.gram(x).shape == (1, 2, 2)\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    assert done.returncode == 0, done.stderr


def test_kernels_cannot_be_imported_a_second_time_under_their_folder_name():
    done = python("import kernels", cwd=ROOT)
    assert done.returncode == 1
    assert "import faststy.kernels, not 'kernels'" in done.stderr


def test_the_public_names_resolve():
    done = python(
        "import faststy\n"
        "for name in set(dir(faststy)) - set(vars(faststy)): faststy.__getattr__(name)\n"
        "assert faststy.errors.FaststyError is faststy.FaststyError\n"
        "faststy.nn.Generator, faststy.ops.gram, faststy.evaluation.evaluate\n"
        "faststy.Painting, faststy.Progress, faststy.TrainResult, faststy.paint_video\n"
    )
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_is_an_attribute_error():
    import faststy

    with pytest.raises(AttributeError, match="'faststy' has no attribute 'nonsense'"):
        faststy.nonsense  # noqa: B018
