"""Streams of the images API, by the official client and as they are sent."""

import http.client
import io
import json
from base64 import b64decode
from contextlib import closing
from urllib.parse import urlsplit

import pytest
from PIL import Image

from sdcli.serving.events import GENERATION, Wanted

openai = pytest.importorskip("openai")
OPTIONS = {"seed": 7, "steps": 4, "dtype": "float32"}


@pytest.fixture(scope="module")
def client(warm):
    with openai.OpenAI(base_url=warm.url, api_key="any", max_retries=0, timeout=60) as ready:
        yield ready


def picture_of(event):
    with Image.open(io.BytesIO(b64decode(event.b64_json))) as image:
        image.load()
    return image


def test_partial_images_and_the_picture_that_comes_without_a_stream(client):
    events = list(client.images.generate(prompt="a fox", stream=True, partial_images=2, extra_body=OPTIONS))
    partial, completed = "image_generation.partial_image", "image_generation.completed"
    assert [each.type for each in events] == [partial, partial, completed]
    assert [each.partial_image_index for each in events[:2]] == [0, 1]
    assert {picture_of(each).size for each in events} == {(64, 64)}
    assert picture_of(events[0]).tobytes() != picture_of(events[1]).tobytes()
    (whole,) = client.images.generate(prompt="a fox", extra_body=OPTIONS).data
    assert events[-1].b64_json == whole.b64_json
    assert (events[-1].size, events[-1].output_format, events[-1].background) == ("64x64", "png", "opaque")


def test_edits_stream_too_and_several_pictures_come_one_after_the_other(client):
    buffer = io.BytesIO()
    Image.new("RGBA", (64, 64), (200, 30, 30, 0)).save(buffer, "PNG")
    files = {"image": ("a.png", buffer.getvalue()), "prompt": "x", "stream": True, "n": 2}
    events = list(client.images.edit(**files, extra_body={**OPTIONS, "strength": 0.5}))
    assert [each.type for each in events] == ["image_edit.completed"] * 2
    assert [each.seed for each in events] == [7, 8]


def sent(warm, **body):
    """The events of a request, by name and content."""
    with closing(http.client.HTTPConnection(urlsplit(warm.url).netloc, timeout=60)) as connection:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/images/generations", json.dumps({"prompt": "a fox", **body}), headers)
        response = connection.getresponse()
        assert (response.status, response.headers["content-type"].split(";")[0]) == (200, "text/event-stream")
        for part in response.read().decode().strip().split("\n\n"):
            name, data = part.split("\n")
            content = json.loads(data.removeprefix("data: "))
            assert name == f"event: {content['type']}"
            yield content


def test_progress_is_told_after_each_step_and_the_recipe_and_the_command_at_the_end(warm):
    *steps, last = sent(warm, stream=True, progress=True, **OPTIONS)
    assert [(each["step"], each["total"]) for each in steps] == [(0, None), (1, 4), (2, 4), (3, 4), (4, 4)]
    with Image.open(io.BytesIO(b64decode(steps[1]["b64_json"]))) as preview:
        assert preview.size == (8, 8)  # one pixel for each latent of the tiny model
    assert last["recipe"]["seed"] == 7
    assert last["command"].startswith("sdcli generate 'a fox'")
    assert last["warnings"] == []


def test_an_error_of_a_picture_ends_the_stream(client):
    body = {"steps": 2, "dtype": "float16", "guidance_scale": 100.0, "device": "cpu"}
    with pytest.raises(openai.APIError) as caught:
        list(client.images.generate(prompt="x", stream=True, extra_body={**body, "embedding": ["missing"]}))
    assert "missing" in str(caught.value)


@pytest.mark.parametrize(("count", "total", "steps"), [(0, 4, []), (1, 4, [2]), (3, 20, [5, 10, 15]), (3, 2, [1])])
def test_partial_images_are_spread_over_the_steps(count, total, steps):
    class Step:
        def __init__(self, index):
            self.index, self.total = index, total

    wanted = Wanted(GENERATION, (64, 64), count)
    assert [index for index in range(1, total + 1) if wanted.is_partial(Step(index))] == steps
