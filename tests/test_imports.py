"""Who may import whom: `docs/design.md`, held to what the source says.

Every import counts, also one inside a function or under TYPE_CHECKING. A room is a folder (or a lone module) of a
package.
"""

import ast
import dataclasses
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Lowest layer first. A room imports from itself and from lower layers; rooms of one layer do not know each other.
LAYERS = {
    "mvsearch": (
        {"formats"},
        {"config"},
        {"study", "space"},
        {"models"},
        {"analysis", "samplers", "pool"},
        {"report", "evaluate"},
        {"driver"},
        {"export", "integrations"},
        {"terminal"},
        {"cli"},
    ),
    "mambavision": (
        {"layout", "look", "options", "released", "scan", "words"},
        {"card", "cost", "files", "mixers", "progress", "strip"},
        {"blocks"},
        {"model"},
        {"library", "onnx_export", "plots"},
        {"data", "timm_models", "training"},
        {"fine_tuning"},
        {"cli"},
    ),
}
# `study` is read where nothing but plain data is wanted, so it knows less than its layer allows.
STRICTER = {("mvsearch", "study"): {"space", "config"}}

# Where a heavy library may be imported: rooms, or single modules.
HOMES = {
    "optuna": ("mvsearch.space.parameters", "mvsearch.samplers", "mvsearch.driver", "mvsearch.integrations"),
    "ray": ("mvsearch.pool", "mvsearch.integrations"),
}
# `SearchSpace` names Optuna's types in its signatures, and imports them for the type checker alone.
FOR_TYPES = {("mvsearch.space.space", "optuna")}
LIGHT = ("study", "analysis", "report")


@dataclasses.dataclass(frozen=True)
class Arrow:
    """One import of one module.

    Attributes:
        importer: dotted name of the module that imports.
        imported: of the module that is imported: of ours to its last part, of others as it is written.
        line: of the import.
        for_types: whether it stands under ``if TYPE_CHECKING``.
    """

    importer: str
    imported: str
    line: int
    for_types: bool = False

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}: imports {self.imported}"


def modules_of(root: Path) -> dict[str, Path]:
    """The modules of both packages by dotted name; a folder's ``__init__`` by the folder's."""
    found = {}
    for package in LAYERS:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def arrows_of(root: Path) -> list[Arrow]:
    """Every import of both packages, wherever it stands in its module."""
    modules = modules_of(root)
    found = []
    for importer, path in modules.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        guards = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
        typed = {id(inner) for guard in guards for statement in guard.body for inner in ast.walk(statement)}
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{importer}, line {node.lineno}: a relative import; write the whole name"
                inside = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [name if name in modules else str(node.module) for name in inside]
            found += [Arrow(importer, name, node.lineno, id(node) in typed) for name in names if name != importer]
    return found


def room(module: str) -> tuple[str, str]:
    """Package and room of one of our modules; the room of a package's own ``__init__`` is empty."""
    package, _, rest = module.partition(".")
    return package, rest.partition(".")[0]


def ours(module: str) -> bool:
    return module.partition(".")[0] in LAYERS


def upward(arrows: list[Arrow]) -> list[Arrow]:
    """Arrows to a room of the same layer or a higher one, from the library to the search, and to rooms denied."""
    floors = {
        (package, name): at for package, layers in LAYERS.items() for at, own in enumerate(layers) for name in own
    }
    wrong = []
    for arrow in arrows:
        if not ours(arrow.imported):
            continue
        (package, name), (other, target) = room(arrow.importer), room(arrow.imported)
        if package != other:
            wrong += [arrow] if package == "mambavision" else []
        elif name and target and name != target:
            denied = target in STRICTER.get((package, name), ())
            wrong += [arrow] if denied or floors[other, target] >= floors[package, name] else []
    return wrong


def circle(arrows: list[Arrow]) -> list[str]:
    """Modules that import each other in a circle, the first that is found; empty where there is none."""
    graph: dict[str, set[str]] = {}
    for arrow in arrows:
        if ours(arrow.imported):
            graph.setdefault(arrow.importer, set()).add(arrow.imported)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def homeless(arrows: list[Arrow]) -> list[Arrow]:
    """Imports of a heavy library outside its `HOMES`."""
    wrong = []
    for arrow in arrows:
        library = arrow.imported.partition(".")[0]
        at_home = any(f"{arrow.importer}.".startswith(f"{home}.") for home in HOMES.get(library, ()))
        allowed = arrow.for_types and (arrow.importer, library) in FOR_TYPES
        wrong += [arrow] if library in HOMES and not at_home and not allowed else []
    return wrong


@pytest.fixture(scope="module")
def arrows() -> list[Arrow]:
    return arrows_of(ROOT)


def test_every_room_has_a_layer() -> None:
    rooms = {room(module) for module in modules_of(ROOT)} - {(package, "") for package in LAYERS}
    known = {(package, name) for package, layers in LAYERS.items() for own in layers for name in own}
    assert not rooms - known, "give it a layer here and in docs/design.md"


@pytest.mark.parametrize("package", LAYERS)
def test_the_design_page_lists_the_same_layers(package: str) -> None:
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    lines = [", ".join(f"`{name}`" for name in sorted(names)) for names in LAYERS[package]]
    listed = re.findall(r"^\d+\. ((?:`\w+`(?:, )?)+)", page, flags=re.MULTILINE)
    assert "\n".join(lines) in "\n".join(listed)


def test_no_import_goes_up(arrows: list[Arrow]) -> None:
    assert not [str(arrow) for arrow in upward(arrows)]


def test_no_modules_import_each_other(arrows: list[Arrow]) -> None:
    assert not circle(arrows)


def test_optuna_and_ray_stay_in_their_rooms(arrows: list[Arrow]) -> None:
    assert not [str(arrow) for arrow in homeless(arrows)]


@pytest.mark.parametrize("name", LIGHT)
def test_study_analysis_and_report_load_nothing_heavy(name: str) -> None:
    modules = [module for module in modules_of(ROOT) if room(module) == ("mvsearch", name)]
    code = f"import sys, {', '.join(modules)}; print(sorted({{'torch', 'optuna', 'ray'}} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("name", LIGHT)
def test_study_analysis_and_report_name_nothing_heavy(arrows: list[Arrow], name: str) -> None:
    heavy = {"torch", "torchvision", "timm", "optuna", "ray"}
    own = [arrow for arrow in arrows if room(arrow.importer) == ("mvsearch", name)]
    assert own
    assert not [str(arrow) for arrow in own if arrow.imported.partition(".")[0] in heavy]


# What each rule would say of a fault; without this a walk that finds nothing would pass as well.
@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("mvsearch/study/data.py", "from mvsearch.driver.search import Search", upward),
        ("mvsearch/study/data.py", "def f():\n    import mvsearch.analysis.noise", upward),
        ("mvsearch/report/page.py", "if TYPE_CHECKING:\n    from mvsearch.evaluate import proxy", upward),
        ("mvsearch/study/data.py", "from mvsearch.config import values", upward),
        ("mambavision/model.py", "from mvsearch.study import data", upward),
        ("mambavision/layout.py", "from mambavision.model import MambaVision", upward),
        ("mvsearch/space/space.py", "import optuna", homeless),
        ("mvsearch/space/layouts.py", "if TYPE_CHECKING:\n    import optuna", homeless),
        ("mvsearch/driver/search.py", "def f():\n    from ray import tune", homeless),
        ("mvsearch/study/front.py", "def f():\n    from mvsearch.study import data", circle),
        ("mvsearch/study/front.py", "if TYPE_CHECKING:\n    from mvsearch.study.data import StudyData", circle),
    ],
)
def test_a_planted_import_is_found(tmp_path: Path, module: str, source: str, found) -> None:
    for name in LAYERS:
        for path in (ROOT / name).rglob("*.py"):
            target = tmp_path / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    assert not found(arrows_of(tmp_path))
    with (tmp_path / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{source}\n")
    assert found(arrows_of(tmp_path))


def test_no_test_file_imports_another_or_changes_the_path() -> None:
    for file in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.startswith("test_")], f"{file.name}, line {node.lineno}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) != ("sys", "path"), f"{file.name}, line {node.lineno}"
