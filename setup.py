"""The packages of the distribution; everything else stands in pyproject.toml.

They are found, but for one that pyproject.toml could add only by listing them all: search_spaces/ lies at the top,
where people look for it, and ships inside mvsearch.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["mambavision*", "mvsearch*"]), "mvsearch.search_spaces"],
    package_dir={"mvsearch.search_spaces": "search_spaces"},
)
