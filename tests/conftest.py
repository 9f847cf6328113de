import os
import sys
from pathlib import Path

# Small tensors: a second thread costs more than it gives, most of all beside another test. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# A loaded machine is no failure; and where a change is judged, the same examples must decide for everybody.
settings.register_profile("project", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("project")

# Ray's workers unpickle the test suite's fake workers by name, so they need its folders on their path too.
_FOLDERS = [str(Path(__file__).parent / name) for name in ("mvsearch", "mambavision")]
sys.path[:0] = [folder for folder in _FOLDERS if folder not in sys.path]
os.environ["PYTHONPATH"] = os.pathsep.join([*_FOLDERS, os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's own library or caches."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("MAMBAVISION_LIBRARY", str(home / "library"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
