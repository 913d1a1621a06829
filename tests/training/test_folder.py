import os
from pathlib import Path

import pytest

from faststy.errors import FaststyError
from faststy.training.folder import refuse_closed


def test_a_folder_that_cannot_be_made_is_told_whatever_is_missing_of_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("no folder")
    Path("closed/run").mkdir(parents=True)
    usable = os.access
    monkeypatch.setattr(
        "os.access", lambda path, mode: "closed" not in str(path) and usable(path, mode)
    )
    for out in ("new", "new/run", ".", str(tmp_path), "../new"):
        refuse_closed(Path(out))
    for out, reason in {
        "file": "a part of the path is a file, not a folder",
        "file/a/run": "a part of the path is a file, not a folder",
        "closed/new/run": "no permission",
        "closed/run": "no permission",
        "x" * 300: "File name too long",
        "a\0b": ".*embedded null .*",  # in the words of each Python
    }.items():
        sentence = f"{out}: cannot be made a folder to write into \\({reason}\\)"
        with pytest.raises(FaststyError, match=f"^{sentence}$"):
            refuse_closed(Path(out))
