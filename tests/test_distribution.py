"""The wheel and the sdist hold all of the two packages, and work where nothing else of the checkout is."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHIPPED = {"mambavision": "mambavision", "mvsearch": "mvsearch", "search_spaces": "mvsearch/search_spaces"}
PRINT_WHAT_IS_INSTALLED = """
import importlib.resources, json
import mambavision, mvsearch

print(json.dumps({
    "folders": [mambavision.__path__[0], mvsearch.__path__[0]],
    "typed": [importlib.resources.files(name).joinpath("py.typed").is_file() for name in ("mambavision", "mvsearch")],
    "spaces": [str(file) for file in importlib.resources.files("mvsearch.search_spaces").iterdir()],
}))
"""

pytestmark = pytest.mark.slow


def run(*command, folder, **environment):
    """Run a command, show what it said if it fails, and return its output."""
    done = subprocess.run(command, cwd=folder, env=environment or None, text=True, capture_output=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the wheel and the sdist, both built from a copy, so that no old build/ gets in."""
    copy, built = tmp_path_factory.mktemp("source") / "checkout", tmp_path_factory.mktemp("built")
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "studies")
    shutil.copytree(ROOT, copy, ignore=ignored)
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--wheel", "--outdir", built, copy, folder=copy)
    return built


@pytest.fixture(params=["*.whl", "*.tar.gz"], ids=["wheel", "sdist"])
def installed(request, built, tmp_path):
    """The commands' folder of an environment of its own, which finds nothing but what is depended on elsewhere."""
    [distribution] = built.glob(request.param)
    # The pip of this environment has to see setuptools, and must leave the mvsearch that it sees there in peace.
    venv.create(tmp_path / "env", symlinks=os.name != "nt")
    scripts = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin")
    [packages] = (tmp_path / "env").glob("[Ll]ib/**/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [scripts / "python", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--ignore-installed"]
    run(*pip, "--no-build-isolation", distribution, folder=tmp_path)
    return scripts


def wheel_files(built):
    """The names of all files in the wheel but for its metadata."""
    [wheel] = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_every_file_of_the_packages_and_no_other(built):
    expected = {
        f"{shipped}/{file.relative_to(ROOT / folder).as_posix()}"
        for folder, shipped in SHIPPED.items()
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert wheel_files(built) == expected


def test_the_sdist_holds_what_the_wheel_is_made_of_and_no_tests(built):
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {name.replace("mvsearch/search_spaces/", "search_spaces/") for name in wheel_files(built)}
    assert sources <= names
    assert not [name for name in names if name.split("/")[0] in ("tests", "benchmarks", "studies")]


def test_it_works_without_the_checkout(installed, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    clean = {"PATH": os.defpath, "HOME": str(empty), "MAMBAVISION_LIBRARY": str(empty / "library")}
    found = json.loads(run(installed / "python", "-c", PRINT_WHAT_IS_INSTALLED, folder=empty, **clean))
    environment = installed.parent.resolve()
    assert all(Path(folder).resolve().is_relative_to(environment) for folder in found["folders"])
    assert found["typed"] == [True, True]
    assert all(Path(file).resolve().is_relative_to(environment) for file in found["spaces"])
    spaces = {Path(file).name for file in found["spaces"] if file.endswith(".yaml")}
    assert spaces == {file.name for file in (ROOT / "search_spaces").glob("*.yaml")}

    assert "launch" in run(installed / "mvsearch", "--help", folder=empty, **clean)
    assert "stage" in run(installed / "mvsearch", "space", "stagewise", folder=empty, **clean)
    assert "mambavision_t" in run(installed / "mambavision", "list", folder=empty, **clean)
