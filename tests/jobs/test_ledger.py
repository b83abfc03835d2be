"""The ledger, under damage, and the writing of pictures, killed at every step."""

import hashlib
import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdcli.errors import OutputError, OutputExists
from sdcli.jobs import ledger, making
from sdcli.recipe.recipe import Recipe

# The forked children do nothing that threads could have locked.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


def picture(data: bytes) -> dict:
    return {"status": "done", "path": None, "sha256": hashlib.sha256(data).hexdigest(), "warnings": []}


def test_what_was_recorded_counts_while_the_picture_is_as_it_was(tmp_path):
    with ledger.opened(tmp_path / "out") as book:
        ledger.record(book, "job", "fox.png", picture(b"fox"))
        assert ledger.finished(book, "job") is None
        (tmp_path / "out" / "fox.png").write_bytes(b"fox")
        assert ledger.finished(book, "job") == ("fox.png", picture(b"fox"))
    with ledger.opened(tmp_path / "out") as book:
        assert ledger.finished(book, "job") == ("fox.png", picture(b"fox"))
        assert ledger.finished(book, "other") is None
        (tmp_path / "out" / "fox.png").write_bytes(b"fix")
        assert ledger.finished(book, "job") is None
        (tmp_path / "out" / "fox.png").unlink()
        (tmp_path / "out" / "fox.png").mkdir()
        assert ledger.finished(book, "job") is None


def test_the_last_record_of_a_job_counts(tmp_path):
    (tmp_path / "fox-2.png").write_bytes(b"fox")
    with ledger.opened(tmp_path) as book:
        ledger.record(book, "job", "fox.png", picture(b"old"))
        ledger.record(book, "job", "fox-2.png", picture(b"fox"))
    with ledger.opened(tmp_path) as book:
        assert ledger.finished(book, "job") == ("fox-2.png", picture(b"fox"))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_ledger_torn_anywhere_keeps_its_whole_lines_and_takes_new_ones(tmp_path, data):
    path = tmp_path / ledger.NAME
    path.unlink(missing_ok=True)
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(name.encode())
    with ledger.opened(tmp_path) as book:
        ledger.record(book, "job a", "a", picture(b"a"))
        whole = path.stat().st_size
        ledger.record(book, "job b", "b", picture(b"b"))
    cut = data.draw(st.integers(whole, path.stat().st_size))
    path.write_bytes(path.read_bytes()[:cut] + data.draw(st.binary(max_size=5)))
    with ledger.opened(tmp_path) as book:
        ledger.record(book, "job c", "c", picture(b"c"))
    with ledger.opened(tmp_path) as book:
        assert ledger.finished(book, "job a") is not None
        assert ledger.finished(book, "job c") is not None


@pytest.mark.parametrize(
    "line", ["[]", "7", "{}", '{"job": 1}', '{"job": "x", "name": "y", "line": 3}', "[" * 100_000, "\0\0\0",
             '{"job": "x", "name": "\\u0000", "line": {"sha256": "y"}}', '{"job": "x", "name": "y", "line": {}}']
)  # fmt: skip
def test_lines_that_are_none_of_ours_say_nothing(tmp_path, line):
    (tmp_path / ledger.NAME).write_text(line + "\n")
    with ledger.opened(tmp_path) as book:
        assert book.entries == {}


def test_two_batches_cannot_have_one_directory(tmp_path):
    with (
        ledger.opened(tmp_path),
        pytest.raises(OutputError, match="another sdcli batch"),
        ledger.opened(tmp_path),
    ):
        pass
    with ledger.opened(tmp_path):
        pass


def test_what_a_killed_batch_has_staged_is_removed_even_in_folders(tmp_path):
    (tmp_path / "sub").mkdir()
    with ledger.opened(tmp_path) as book:
        ledger.record(book, "job", "sub/fox.png", picture(b"fox"))
    staged = [tmp_path / ledger.STAGING, tmp_path / "sub" / ledger.STAGING]
    for path in staged:
        path.write_bytes(b"half")
    with ledger.opened(tmp_path):
        assert not any(path.exists() for path in staged)


@pytest.mark.parametrize("kind", ["file", "unwritable"])
def test_a_directory_that_cannot_be_is_an_output_error(tmp_path, kind, monkeypatch):
    if kind == "file":
        (tmp_path / "out").write_text("")
    else:
        monkeypatch.setattr(ledger, "_append", lambda *arguments: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OutputError), ledger.opened(tmp_path / "out") as book:
        ledger.record(book, "job", "fox.png", picture(b"fox"))


JOBS = 3


def recipe(seed: int) -> Recipe:
    flat = {"model": "m", "prompt": "fox", "steps": 1, "guidance_scale": 1.0, "scheduler": "ddim", "seed": seed}
    return Recipe.from_dict({**flat, "width": 64, "height": 64})


def batch(directory: Path) -> list[dict]:
    """What `making` does with JOBS pictures once they are made; two of them want one name, one is in a folder."""
    lines = []
    with ledger.opened(directory) as book:
        out = io.BytesIO()
        run = making._Run(making.Batch((), str(directory)), out, book)
        for number in range(JOBS):
            name = "sub/named.png" if number == 2 else None
            job = SimpleNamespace(line=1, id=str(number), key=f"job {number}", recipe=recipe(7), name=name, varies=())
            data = b"picture %d" % number
            if ledger.finished(book, job.key) is None:
                making._save(run, job, picture(data), data)
        lines += map(json.loads, out.getvalue().splitlines())
    return lines


def killed_at(step: int, directory: Path) -> bool:
    """Run `batch` in a child that dies, as by kill -9, at its `step`-th call that touches the disk."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    left = step

    def dying(function):
        def call(*arguments, **options):
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(9)
            return function(*arguments, **options)

        return call

    try:
        for name in ("fsync", "link", "unlink", "mkdir", "open"):
            setattr(os, name, dying(getattr(os, name)))
        ledger._append = dying(half(ledger._append))
        batch(directory)
    finally:
        os._exit(0)


def half(append):
    """An append that writes in two parts, with a step between them."""

    def call(file, data):
        file.write(data[: len(data) // 2])
        os.fsync(file.fileno())
        append(file, data[len(data) // 2 :])

    return call


def test_killed_at_any_step_and_run_again_there_is_each_picture_once(tmp_path):
    step = 0
    while killed_at(step, tmp_path / str(step)):
        directory = tmp_path / str(step)
        batch(directory)
        found = {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*.png")}
        assert sorted(found.values()) == [b"picture 0", b"picture 1", b"picture 2"], step
        assert found["sub/named.png"] == b"picture 2"
        everything = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
        assert everything == {*found, ledger.NAME}
        assert batch(directory) == []
        step += 1
    assert step > 20


def test_killed_again_and_again_it_comes_to_an_end(tmp_path):
    for step in (3, 9, 14, 19):
        killed_at(step, tmp_path)
    batch(tmp_path)
    assert len(list(tmp_path.rglob("*.png"))) == JOBS


def test_a_name_that_is_taken_meanwhile_is_passed_over(tmp_path, monkeypatch):
    """Another program takes the name between the look and the link."""
    record = ledger.record

    def and_then_somebody_else(book, key, name, line):
        record(book, key, name, line)
        if name == "fox-7.png":
            (tmp_path / name).write_bytes(b"somebody else's")

    monkeypatch.setattr(ledger, "record", and_then_somebody_else)
    lines = batch(tmp_path)
    assert [Path(line["path"]).name for line in lines] == ["fox-7-2.png", "fox-7-3.png", "named.png"]
    assert (tmp_path / "fox-7.png").read_bytes() == b"somebody else's"
    with ledger.opened(tmp_path) as book:
        assert ledger.finished(book, "job 0")[0] == "fox-7-2.png"


@pytest.mark.parametrize("force", [False, True])
def test_a_named_picture_that_is_there_is_kept_unless_forced(tmp_path, force):
    (tmp_path / "fox.png").write_bytes(b"mine")
    job = SimpleNamespace(line=1, id="x", key="job", recipe=recipe(7), name="fox.png", varies=())
    with ledger.opened(tmp_path) as book:
        run = making._Run(making.Batch((job,), str(tmp_path), force=force), io.BytesIO(), book)
        if force:
            assert making._write(run, job, picture(b"new"), b"new") == "fox.png"
        else:
            with pytest.raises(OutputExists, match="already exists"):
                making._write(run, job, picture(b"new"), b"new")
    assert (tmp_path / "fox.png").read_bytes() == (b"new" if force else b"mine")


def test_a_file_in_place_of_a_folder_is_the_job_s_failure(tmp_path):
    (tmp_path / "sub").write_bytes(b"a file")
    lines = batch(tmp_path)
    assert [line["status"] for line in lines] == ["done", "done", "failed"]
    assert "is a file" in lines[2]["error"]


def test_an_empty_file_of_a_killed_batch_takes_no_name(tmp_path):
    (tmp_path / "mine.png").write_bytes(b"")
    with ledger.opened(tmp_path) as book:
        ledger.record(book, "job", "fox.png", picture(b"fox"))
        ledger.record(book, "other", "owl.png", picture(b"owl"))
    (tmp_path / "fox.png").write_bytes(b"")
    (tmp_path / "owl.png").write_bytes(b"changed")
    with ledger.opened(tmp_path):
        assert sorted(path.name for path in tmp_path.glob("*.png")) == ["mine.png", "owl.png"]


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("name", [None, "sub/fox.png"])
def test_a_directory_that_goes_while_a_batch_runs_ends_it(tmp_path, again, name):
    place = tmp_path / "out"
    job = SimpleNamespace(line=1, id="x", key="job", recipe=recipe(7), name=name, varies=())
    with ledger.opened(place) as book:
        run = making._Run(making.Batch((job,), str(place)), io.BytesIO(), book)
        place.rename(tmp_path / "moved")
        if again:
            place.mkdir()
        with pytest.raises(OutputError, match="removed or replaced"):
            making._save(run, job, picture(b"new"), b"new")
    assert not place.exists() or list(place.iterdir()) == []
    assert [path.name for path in (tmp_path / "moved").iterdir()] == [ledger.NAME]
