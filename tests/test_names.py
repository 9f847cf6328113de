"""A public name means one thing in both packages."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("mambavision", "mvsearch")

# One meaning at two places, on purpose.
SAME_MEANING = {
    "DATA_SETS",  # names alone, so that a configuration is checked without torch; test_config.py ties them
    "percent",  # as the library's, and a dash for what is not known
    "scaled",  # likewise
}


def public_names(path: Path) -> list[tuple[str, type[ast.stmt]]]:
    """Classes, functions and constants that a module defines at its top, with the kind of their statement."""
    found: list[tuple[str, type[ast.stmt]]] = []
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef):
            names = [statement.name]
        elif isinstance(statement, ast.Assign):
            names = [n.id for target in statement.targets for n in ast.walk(target) if isinstance(n, ast.Name)]
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            names = [statement.target.id]
        else:
            names = []
        found += [(name, type(statement)) for name in names if not name.startswith("_")]
    return found


def homes() -> dict[str, list[tuple[str, type[ast.stmt]]]]:
    """Where each public name is defined: every module and kind of statement."""
    found: dict[str, list[tuple[str, type[ast.stmt]]]] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for name, kind in public_names(path):
                # A verb of a command line has the name of the function that it calls.
                if path.name != "cli.py" or kind is not ast.FunctionDef:
                    found.setdefault(name, []).append((str(path.relative_to(ROOT)), kind))
    return found


def test_no_two_classes_have_one_name() -> None:
    classes = {name: [path for path, kind in at if kind is ast.ClassDef] for name, at in homes().items()}
    assert {"HybridLayout", "StudyData", "Findings"} <= {name for name, at in classes.items() if len(at) == 1}
    assert not {name: at for name, at in classes.items() if len(at) > 1}


def test_no_name_means_two_things() -> None:
    # `app` is what each command line calls its own.
    twice = {name: [path for path, _ in at] for name, at in homes().items() if len(at) > 1 and name != "app"}
    assert not {name: at for name, at in twice.items() if name not in SAME_MEANING}
