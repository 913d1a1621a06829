import os
import resource
import stat
import subprocess
import sys
import textwrap

import pytest

from faststy import files
from faststy.errors import FaststyError, UnwritableError
from faststy.files import check_output, replacing, write_bytes, write_text


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "a.bin"
    with replacing(path) as file:
        file.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one"
    assert names(tmp_path) == ["a.bin"]


def test_the_old_content_stays_until_the_new_is_whole(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, FaststyError])
def test_an_error_leaves_the_old_content_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def half():
        with replacing(path) as file:
            file.write(b"half")
            raise error("stop")

    with pytest.raises(error):
        half()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_text_is_utf8_and_lines_end_as_written(tmp_path):
    write_text(tmp_path / "λ.txt", "λ\n·\n")
    assert (tmp_path / "λ.txt").read_bytes() == "λ\n·\n".encode()


def test_a_name_may_be_as_long_as_the_system_allows_and_no_longer(tmp_path):
    longest = tmp_path / ("a" * os.pathconf(tmp_path, "PC_NAME_MAX"))
    write_bytes(longest, b"x")
    assert longest.read_bytes() == b"x"
    with pytest.raises(FaststyError, match="name too long") as caught:
        write_bytes(tmp_path / (longest.name + "a"), b"x")
    assert not isinstance(caught.value, UnwritableError)  # others can be written
    assert names(tmp_path) == [longest.name]


def test_a_folder_that_is_not_there_is_an_error_of_the_user(tmp_path):
    with pytest.raises(FaststyError, match=r"a\.bin: cannot be written \(No such file") as caught:
        write_bytes(tmp_path / "absent" / "a.bin", b"x")
    assert str(tmp_path) in str(caught.value)
    assert names(tmp_path) == []


def test_a_folder_is_not_replaced(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(FaststyError, match=r"/a: cannot be written"):
        write_bytes(tmp_path / "a", b"x")
    assert names(tmp_path) == ["a"]


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_are_those_of_any_new_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "a.bin", b"x")
    finally:
        assert os.umask(before) == umask  # as it was found
    assert stat.S_IMODE((tmp_path / "a.bin").stat().st_mode) == 0o666 & ~umask


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
def test_a_full_disk_leaves_the_old_content_and_nothing_else(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    program = textwrap.dedent("""
        import resource, signal, sys
        from pathlib import Path
        from faststy.errors import FaststyError, UnwritableError
        from faststy.files import write_bytes
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_bytes(Path(sys.argv[1]), bytes(100_000))
        except FaststyError as error:
            print(error)
    """)
    command = [sys.executable, "-c", program, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == f"{path}: cannot be written (File too large)\n"
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000


def test_a_failing_sync_leaves_nothing(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FaststyError, match="No space left on device"):
        write_bytes(tmp_path / "a.bin", b"x")
    assert names(tmp_path) == []


def test_leftovers_of_a_killed_process_are_removed_and_nothing_else(tmp_path):
    from faststy.files import TEMPORARY, remove_leftovers

    (tmp_path / f".state.x1y2{TEMPORARY}").write_bytes(b"half")
    (tmp_path / ".hidden").write_bytes(b"keep")
    (tmp_path / "state").write_bytes(b"keep")
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "absent")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".hidden", "state"]


@pytest.mark.skipif(os.name != "posix", reason="needs files that can be held")
def test_what_a_killed_process_left_is_removed_by_the_next_that_writes_there(tmp_path):
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        from faststy.files import replacing
        with replacing(Path(sys.argv[1])) as file:
            file.write(b"whole")
            file.flush()
            print(flush=True)
            input()
    """)

    def start(name):
        command = [sys.executable, "-c", program, str(tmp_path / name)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"\n"
        return process

    def temporaries():
        return {name for name in names(tmp_path) if name.endswith(files.TEMPORARY)}

    killed = start("a.bin")
    left = temporaries()
    killed.kill()
    killed.communicate()
    alive = start("b.bin")
    held = temporaries() - left
    assert (len(left), len(held)) == (1, 1)  # a new one is spared
    for name in temporaries():
        os.utime(tmp_path / name, (0, 0))
    write_bytes(tmp_path / "c.bin", b"x")
    assert temporaries() == held
    alive.communicate(b"\n")
    assert alive.returncode == 0
    assert names(tmp_path) == ["b.bin", "c.bin"]
    assert (tmp_path / "b.bin").read_bytes() == b"whole"


def test_what_can_be_written_is_told_before(tmp_path):
    (tmp_path / "a.html").touch()
    (tmp_path / "same").symlink_to("a.html")
    check_output(tmp_path / "a.html", [tmp_path / "absent"])
    check_output(tmp_path / "new/deep/b.html")
    assert names(tmp_path) == ["a.html", "same"]
    for path, sentence in [
        ("same", "is an input and will not be overwritten"),
        (".", "is a folder; name a file in it"),
        ("a.html/b.html", r"cannot be written \(a part of the path is a file"),
    ]:
        with pytest.raises(FaststyError, match=sentence):
            check_output(tmp_path / path, [tmp_path / "a.html"])


def test_a_folder_without_permission_is_told_before(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)  # root may write anywhere
    with pytest.raises(FaststyError, match=r"cannot be written \(no permission\)"):
        check_output(tmp_path / "new/a.png")
