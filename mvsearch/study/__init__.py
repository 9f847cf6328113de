"""What a study is on disk: records, ledger, folder, and what is read back of them."""

from typing import TYPE_CHECKING

from mvsearch import lazily

if TYPE_CHECKING:
    from mvsearch.study.data import StudyData, load_study
    from mvsearch.study.files import StudyError
    from mvsearch.study.folder import StudyFolder, find_study, list_studies

__all__ = ["StudyData", "StudyError", "StudyFolder", "find_study", "list_studies", "load_study"]

__getattr__ = lazily(
    __name__,
    {
        "StudyFolder": "folder",
        "find_study": "folder",
        "list_studies": "folder",
        "StudyData": "data",
        "load_study": "data",
        "StudyError": "files",
    },
)
