from faststy.training.log import Log


def test_events_with_any_line_break_are_kept_on_resume(tmp_path):
    path = tmp_path / "log.jsonl"
    Log(path, -1).tell(3, "a\u2028b\x85c\nd: cannot be read")
    before = path.read_bytes()
    Log(path, 3)
    assert path.read_bytes() == before
    Log(path, 2)  # it will happen again
    assert path.read_bytes() == b""
