import os
from pathlib import Path

# Small tensors: a second thread costs more than it gives, most of all beside another test. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# A loaded machine is no failure; and where a change is judged, the same examples must decide for everybody.
settings.register_profile("project", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("project")

# Ray's workers and the tests' own processes find tests/support by it; pyproject.toml sets it for this process.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, (str(Path(__file__).parent / "support"), os.environ.get("PYTHONPATH")))
)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's own library or caches."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("MAMBAVISION_LIBRARY", str(home / "library"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
