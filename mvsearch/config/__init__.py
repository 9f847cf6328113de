"""The configuration of a study: what its YAML may say, and reading it."""

from typing import TYPE_CHECKING

from mvsearch import lazily

if TYPE_CHECKING:
    from mvsearch.config.reading import load_config
    from mvsearch.config.sections import StudyConfig
    from mvsearch.config.values import ConfigError

__all__ = ["ConfigError", "StudyConfig", "load_config"]

__getattr__ = lazily(__name__, {"StudyConfig": "sections", "ConfigError": "values", "load_config": "reading"})
