"""Names of the user's own: added, listed, used, removed; and what is refused."""

import json
import shutil
from pathlib import Path

import pytest

from sdcli import config
from sdcli.errors import ModelCorrupt, ModelNotFound, ModelUnsafe, UsageError
from sdcli.models import families, registry, user_models


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model as far as configs go."""
    return Path(shutil.copytree(families.config_folder("sd15"), tmp_path / "ink"))


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "sdcli"


def test_a_folder_gets_a_name_that_works_everywhere(run, folder, tmp_path):
    done = run("models", "add", "ink", "ink")
    assert (done.status, done.stderr) == (0, "")
    assert done.lines == [str(tmp_path / ".config" / "sdcli" / "models.toml")]
    rows = [json.loads(line) for line in run("models", "list", "--json").lines]
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    expected = {"name": "ink", "present": True, "origin": done.lines[0], "kind": "model", "description": ""}
    assert rows[-1] == {**expected, "bytes": size}
    assert rows[0]["origin"] == "sdcli"
    listed = run("models", "list").lines
    assert listed[0].split() == ["NAME", "STATE", "SIZE", "KIND", "FROM", "DESCRIPTION"]
    assert listed[-1].split()[:2] + listed[-1].split()[4:] == ["ink", "here", "model", "you", str(folder)]
    (tmp_path / "elsewhere").mkdir()
    shown = json.loads(run("models", "show", "ink", "--json", cwd=tmp_path / "elsewhere").stdout)
    assert (shown["path"], shown["native_size"]) == (str(folder), 512)
    refused = run("generate", "x", "-m", "ink", "-W", 250)
    assert (refused.status, "248 and 256" in refused.stderr) == (2, True)
    assert run("models", "rm", "ink").status == 0
    assert run("models", "show", "ink").status == 0  # the folder of that name, which is still there
    assert len(run("models", "list").lines) == len(registry.shipped()) + 1


def test_a_repository_gets_a_name_and_is_pulled_under_it(home):
    user_models.add("mine", "somebody/some-model")
    entry = registry.find("mine")
    assert (entry.repo, entry.folder) == ("somebody/some-model", None)
    with pytest.raises(ModelNotFound) as caught:
        registry.locate(entry)
    assert "sdcli models pull mine" in caught.value.hint


def test_the_file_keeps_what_its_owner_wrote(home, folder):
    user_models.add("ink", str(folder))
    path = home / "models.toml"
    path.write_text("# my models\n" + path.read_text() + 'description = "ink" # pen\ndefaults = { steps = 9 }\n')
    user_models.add("other", "somebody/some-model")
    user_models.add("ink", "somebody/inks", force=True)
    text = path.read_text()
    assert text.startswith("# my models\n")
    entry = registry.find("ink")
    assert (entry.repo, entry.folder, entry.description) == ("somebody/inks", None, "ink")
    assert entry.user_defaults["steps"].value == 9
    user_models.remove("ink")
    assert "# my models" in path.read_text()
    assert list(config.read_models()) == ["other"]


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("sd15", "shipped with", "[models.sd15.defaults]"),
        ("a/b", "is a path", "NAME PATH"),
        (".hidden", "is a path", "NAME PATH"),
        ("ink.safetensors", "is a path", "NAME PATH"),
        ("my model", "not a valid name", "letters"),
        ("", "not a valid name", "letters"),
        ("taken", "already exists", "--force"),
        ("elsewhere", "is defined in", "there"),
    ],
)
def test_names_that_cannot_be_given(home, folder, name, message, hint):
    user_models.add("taken", str(folder))
    (home / "config.toml").write_text('[models.elsewhere]\nrepo = "a/b"\n')
    before = (home / "models.toml").read_text()
    with pytest.raises(UsageError) as caught:
        user_models.add(name, str(folder))
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert (home / "models.toml").read_text() == before


def test_what_is_no_model_gets_no_name(home, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights.ckpt").write_bytes(b"\x80")
    (tmp_path / "text.safetensors").write_bytes(b"text")
    for source, error in (
        ("empty", ModelCorrupt),
        ("weights.ckpt", ModelUnsafe),
        ("text.safetensors", ModelCorrupt),
        ("none.safetensors", ModelNotFound),
    ):
        with pytest.raises(error):
            user_models.add("x", str(tmp_path / source))
    for source in ("none", "./some/where", "a/b/c", "a/b.safetensors", "../x"):
        with pytest.raises(ModelNotFound):
            user_models.add("x", source)
    assert not (home / "models.toml").exists()


def test_what_cannot_be_removed(run, folder, tmp_path):
    (tmp_path / "my.toml").write_text('[models.other]\nfolder = "ink"\n')
    for arguments, status, said in (
        (["kit"], 2, "comes with sdcli"),
        (["sd15"], 3, "not on this machine"),
        (["./ink"], 2, "is a path"),
        (["nonsense"], 3, "no model"),
    ):
        done = run("models", "rm", *arguments)
        assert done.status == status
        assert said in done.stderr
    done = run("--config", "my.toml", "models", "rm", "other")
    assert (done.status, "remove it there" in done.stderr) == (2, True)
    assert folder.exists()
