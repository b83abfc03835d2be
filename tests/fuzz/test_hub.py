"""Hostile answers of a hub: exit status 3 or 0, and no file outside the cache."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Finished
from tests.fuzz.test_models import change
from tests.hub.conftest import REPO, around, hub, model_files, models  # noqa: F401  fixtures
from tests.hub.server import Hub

COUNT = 60
ETAGS = ('"../../../../victim"', '"/tmp/victim"', "", '"x', '"' + "a" * 5000 + '"')


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(COUNT))
def test_a_hostile_answer(hub: Hub, models: Callable[..., Finished], tmp_path: Path, seed: int) -> None:  # noqa: F811
    chance = random.Random(seed)
    files = model_files()
    hub.put(REPO, files)
    (tmp_path / "victim").write_text("mine")

    def relist(data: bytes) -> bytes:
        if chance.random() < 0.1:
            return data[: chance.randrange(len(data))]
        content = json.loads(data)
        change(content, chance)
        return json.dumps(content).encode()

    hub.relist = relist
    if chance.random() < 0.3:
        hub.etag = chance.choice(ETAGS)
    if chance.random() < 0.2:
        hub.endless = chance.choice(sorted(name for name in files if name.endswith(".json")))
    done = models("pull", REPO)
    assert done.status in (0, 3), done.stderr
    assert "\x1b" not in done.stderr
    inside = (".cache/", ".local/share/sdcli/")
    names = {str(each.relative_to(tmp_path)) for each in tmp_path.rglob("*") if not each.is_dir()}
    assert {name for name in names if not name.startswith(inside)} == {"victim"}
    assert (tmp_path / "victim").read_text() == "mine"
    assert sum(each.stat().st_size for each in tmp_path.rglob("*") if each.is_file()) < 20_000_000
