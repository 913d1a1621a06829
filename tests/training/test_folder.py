import os
from pathlib import Path

import pytest

from faststy.errors import FaststyError
from faststy.training.folder import refuse_unmakeable


def test_a_folder_that_cannot_be_made_is_told_whatever_is_missing_of_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("no folder")
    Path("closed/run").mkdir(parents=True)
    usable = os.access
    monkeypatch.setattr(
        "os.access", lambda path, mode: "closed" not in str(path) and usable(path, mode)
    )
    for out in ("new", "new/run", ".", str(tmp_path), "../new"):
        refuse_unmakeable(Path(out))
    for out, sentence in (
        ("file", "file: cannot be made a folder (Not a directory)"),
        ("file/a/run", "file/a/run: cannot be made a folder (Not a directory)"),
        ("closed/new/run", "closed/new/run: cannot be made a folder (Permission denied)"),
        ("closed/run", "closed/run: cannot be written into (Permission denied)"),
    ):
        with pytest.raises(FaststyError) as told:
            refuse_unmakeable(Path(out))
        assert str(told.value) == sentence
