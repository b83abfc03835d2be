"""The OpenAI images API by the official client, and what that client would never send."""

import asyncio
import hashlib
import http.client
import io
import json
import re
import socket
import time
from base64 import b64decode
from contextlib import closing
from urllib.parse import urlsplit

import pytest
from PIL import Image

from sdcli.files import metadata
from sdcli.serving import edits
from tests import tiny_flow

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def client(warm):
    with openai.OpenAI(base_url=warm.url, api_key="none is needed", max_retries=0, timeout=60) as ready:
        yield ready


def call(warm, method="POST", path="/v1/images/generations", body=None, **headers):
    """Status, headers and JSON of a request as anybody could send it."""
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    with closing(http.client.HTTPConnection(urlsplit(warm.url).netloc, timeout=60)) as connection:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, data, {"Content-Type": "application/json", **sent})
        response = connection.getresponse()
        return response.status, response.headers, json.loads(response.read())


def test_the_official_client_makes_the_pictures_that_generate_makes(client, run, warm, sd15, tmp_path):
    made = client.images.generate(
        model=str(sd15), prompt="a fox", n=2, size="64x64", extra_body={"seed": 7, "steps": 2, "dtype": "float32"}
    )
    assert made.output_format == "png"
    assert made.size == "64x64"
    assert abs(made.created - time.time()) < 60
    pictures = [b64decode(each.b64_json) for each in made.data]
    done = run(
        "generate", "a fox", "-m", sd15, "-n", 2, "-s", 7, "--steps", 2, "--dtype", "float32", "-o", "x-{seed}.png",
        env={"SDCLI_SOCKET": warm.socket},
    )  # fmt: skip
    assert pictures == [(tmp_path / name).read_bytes() for name in done.lines]
    with Image.open(io.BytesIO(pictures[0])) as image:
        assert (image.format, image.size) == ("PNG", (64, 64))


def test_the_bare_minimum_is_a_picture_of_the_first_model_with_a_seed_drawn(client, sd15, tmp_path):
    made = [client.images.generate(prompt="x", extra_body={"steps": 1}).data[0] for _ in range(2)]
    (tmp_path / "x.png").write_bytes(b64decode(made[0].b64_json))
    recipe = metadata.read(tmp_path / "x.png").recipe
    assert (recipe["model"], recipe["width"], recipe["seed"]) == (str(sd15), 64, made[0].seed)
    assert made[0].seed != made[1].seed


def test_what_has_no_other_meaning_may_be_said(client):
    client.images.generate(
        prompt="x", n=1, size="auto", quality="auto", background="opaque", moderation="auto", output_format="png",
        response_format="b64_json", user="me", output_compression=100, stream=False,
        extra_body={"steps": 1, "negative_prompt": None},
    )  # fmt: skip


def test_what_has_no_effect_is_accepted_with_a_warning(client):
    asked = {"quality": "hd", "style": "vivid", "moderation": "low", "background": "transparent"}
    made = client.images.generate(prompt="x", **asked, extra_body={"steps": 1, "input_fidelity": "low"})
    warned = [each for each in made.data[0].warnings if "has no effect" in each]
    assert {each.split()[0] for each in warned} == {*asked, "input_fidelity"}
    assert made.background == "opaque"


def test_a_reply_has_the_warnings_that_generate_prints(client):
    for prompt, warnings in (("x", []), (" ", ["the prompt is empty"])):
        made = client.images.generate(prompt=prompt, extra_body={"steps": 2, "dtype": "float32"})
        assert [each for each in made.data[0].warnings if "one colour" not in each] == warnings


def test_models_are_listed(client, sd15):
    listed = client.models.list().data
    assert listed[0].id == str(sd15)
    assert client.models.retrieve(str(sd15)).object == "model"
    with pytest.raises(openai.NotFoundError, match="no model 'dall-e-3'"):
        client.models.retrieve("dall-e-3")


@pytest.mark.parametrize(
    ("options", "param", "said"),
    [
        ({"size": "65x64"}, "size", "nearest valid sizes are 64 and 72"),
        ({"size": "2100x2100"}, "size", "the limit is 4.2 megapixels"),
        ({"size": "large"}, "size", "512x512"),
        ({"size": "4096x4096"}, "size", "16.8 megapixels"),
        ({"size": "16384x16384"}, "size", "268.4 megapixels"),
        ({"n": 11}, "n", "n is 11; n must be at most 10"),
        ({"n": "many"}, "n", "n must be a whole number"),
        ({"quality": "best"}, "quality", "quality must be one of 'auto'"),
        ({"background": "green"}, "background", "'opaque' or 'transparent'"),
        ({"extra_body": {"partial_images": 1}}, "partial_images", "no effect without stream"),
        ({"extra_body": {"strength": 0.5}}, "strength", "unknown parameter"),
        ({"extra_body": {"stream": "maybe"}}, "stream", "true or false"),
        ({"extra_body": {"lora": "/etc/passwd"}}, "lora", "no LoRA '/etc/passwd'"),
        ({"extra_body": {"refiner": "/etc"}}, "refiner", "a refiner cannot be chosen over the API"),
        ({"extra_body": {"hires": "2", "hires_upscaler": "/etc/passwd"}}, "upscaler", "no upscaler '/etc/passwd'"),
        ({"extra_body": {"sigmas": "karras", "scheduler": "pndm"}}, "sigmas", "use sigmas default"),
        ({"extra_body": {"device": "mps"}}, "device", "choose device auto"),
        ({"prompt": "x" * 8001}, "prompt", "8,001 characters"),
        ({"extra_body": {"negative_prompt": "x" * 8001}}, "negative_prompt", "8,001 characters"),
        ({"response_format": "url"}, "response_format", "b64_json"),
        ({"output_format": "webp"}, "output_format", "png"),
        ({"extra_body": {"steps": 0}}, "steps", "between 1 and 1000"),
        ({"extra_body": {"scheduler": "eular"}}, "scheduler", "did you mean"),
        ({"extra_body": {"seed": 2**32 - 1}, "n": 2}, "seed", "4294967295"),
        ({"extra_body": {"width": 64}}, "width", "unknown parameter"),
        ({"prompt": None}, "prompt", "prompt must be text"),
    ],
)
def test_what_cannot_be_is_refused_by_name(client, options, param, said):
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(**{"prompt": "x", **options})
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert said in caught.value.message
    assert not re.search(r"(?<![\w+-])-(-|\w\b)", caught.value.message)  # no options of a command line


def test_models_are_those_that_are_served_and_no_paths(client, sd15):
    for name in ("dall-e-3", str(sd15.parent), "sdxl"):
        with pytest.raises(openai.NotFoundError) as caught:
            client.images.generate(prompt="x", model=name)
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def png_of(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def striped(mode="RGB"):
    """72×80 pixels that no model would make, and a mask whose right half is transparent."""
    image = Image.new(mode, (72, 80), (200, 40, 40, 255)[: len(mode)])
    image.paste((20, 90, 220, 255)[: len(mode)], (0, 0, 72, 40))
    mask = Image.new("RGBA", (72, 80), "black")
    mask.paste((0, 0, 0, 0), (36, 0, 72, 80))
    return image, mask


def test_the_official_client_edits_what_is_transparent_in_the_mask_and_nothing_else(client, warm, sd15, tmp_path):
    image, mask = striped()
    files = {"image": ("scene.png", png_of(image)), "mask": ("mask.png", png_of(mask))}
    made = client.images.edit(**files, prompt="a fox", extra_body={"seed": 7, "steps": 2, "dtype": "float32"})
    (tmp_path / "edited.png").write_bytes(b64decode(made.data[0].b64_json))
    with Image.open(tmp_path / "edited.png") as edited:
        assert (made.size, edited.size) == ("72x80", (72, 80))
        assert edited.crop((0, 0, 20, 80)).tobytes() == image.crop((0, 0, 20, 80)).tobytes()
        assert edited.crop((48, 0, 72, 80)).tobytes() != image.crop((48, 0, 72, 80)).tobytes()
    recipe = metadata.read(tmp_path / "edited.png").recipe
    assert (recipe["image"], recipe["mask_image"], recipe["seed"]) == ("scene.png", "mask.png", 7)
    assert recipe["image_sha256"] == hashlib.sha256(files["image"][1]).hexdigest()


def test_without_a_mask_the_image_s_own_transparency_is_repainted_or_all_of_it(client):
    image, mask = striped("RGBA")
    image.putalpha(mask.getchannel("A"))
    options = {"prompt": "a fox", "n": 2, "extra_body": {"seed": 7, "steps": 2, "dtype": "float32"}}
    first, second = (b64decode(each.b64_json) for each in client.images.edit(image=png_of(image), **options).data)
    with Image.open(io.BytesIO(first)) as one, Image.open(io.BytesIO(second)) as other:
        kept = (0, 0, 20, 80)
        assert one.crop(kept).tobytes() == other.crop(kept).tobytes() == image.crop(kept).tobytes()
        assert one.tobytes() != other.tobytes()
    redrawn = client.images.edit(image=png_of(striped()[0]), prompt="a fox", extra_body={"seed": 7, "steps": 2})
    with Image.open(io.BytesIO(b64decode(redrawn.data[0].b64_json))) as whole:
        assert whole.crop(kept).tobytes() != striped()[0].crop(kept).tobytes()


def half_clear():
    """An image with transparent pixels, and a mask that repaints its opaque half."""
    image, mask = striped("RGBA")
    image.putalpha(mask.getchannel("A"))
    mask.putalpha(mask.getchannel("A").transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    return image, mask


@pytest.mark.parametrize("background", [None, "auto", "opaque", "transparent"])
def test_the_background_of_the_reply_is_that_of_the_picture(client, background):
    image, mask = map(png_of, half_clear())
    options = {} if background is None else {"background": background}
    made = client.images.edit(image=image, mask=mask, prompt="a fox", **options, extra_body={"steps": 2})
    with Image.open(io.BytesIO(b64decode(made.data[0].b64_json))) as picture:
        assert picture.getchannel("A").getextrema()[0] == 0
    assert made.background == "transparent"
    assert [each for each in made.data[0].warnings if "background" in each] == (
        ["background has no effect: the transparent pixels of the image that are not repainted are kept"]
        if background == "opaque"
        else []
    )


@pytest.mark.parametrize("text", ["u-1", "12345", "true", "null", "[[", "1e999", "", "\N{OWL}"])
def test_the_texts_of_a_form_are_texts(client, text):
    client.images.edit(image=png_of(striped()[0]), prompt=text or "x", user=text, extra_body={"steps": "2"})


@pytest.mark.parametrize(
    ("files", "options", "param", "said"),
    [
        ({"image": b"no picture"}, {}, "image", "not a picture"),
        ({"image": b""}, {}, "image", "is empty"),
        ({"image": png_of(striped()[0]), "mask": b"no picture"}, {}, "mask", "not a picture"),
        ({"image": png_of(striped()[0]), "mask": png_of(striped()[0])}, {}, "mask", "no transparent part"),
        ({"image": png_of(striped()[0]), "mask": png_of(striped("RGBA")[0])}, {}, "mask", "no part of it is transpar"),
        ({"image": png_of(striped()[0]), "mask": png_of(striped()[1].resize((8, 8)))}, {}, "mask", "8×8 and .* 72×80"),
        ({"image": png_of(Image.new("1", (6000, 5000)))}, {}, "image", "30 megapixels; the limit is 25"),
        ({"image": png_of(striped()[0])}, {"size": "512x512"}, "size", "use 72x80"),
        ({"image": [png_of(striped()[0])] * 2}, {}, "image", "2 files named image"),
        ({"image": png_of(striped()[0])}, {"extra_body": {"steps": 0}}, "steps", "between 1 and 1000"),
        ({"image": png_of(striped()[0])}, {"extra_body": {"steps": "few"}}, "steps", "a whole number"),
        (
            {"image": png_of(striped()[0])},
            {"extra_body": {"mask_image": "/etc/passwd"}},
            "mask_image",
            "unknown parameter",
        ),
        ({"image": png_of(striped()[0])}, {"n": 99}, "n", "n must be at most 10"),
        ({"image": png_of(striped()[0])}, {"quality": "[" * 100_000}, "quality", "must be one of"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_edits_that_cannot_be_are_refused(client, files, options, param, said):
    with pytest.raises(openai.BadRequestError, match=said) as caught:
        client.images.edit(**files, prompt="x", **options)
    assert caught.value.param == param
    assert "--" not in caught.value.message


def form(*parts: tuple[str, bytes], kind: str = "multipart/form-data; boundary=B"):
    """The body and content type of a form with these headers and contents."""
    head = "--B\r\nContent-Disposition: form-data; "
    body = b"".join(head.encode() + header + b"\r\n\r\n" + data + b"\r\n" for header, data in parts)
    return {"path": "/v1/images/edits", "body": body + b"--B--\r\n", "Content_Type": kind}


@pytest.mark.parametrize(
    "parts",
    [
        [(b'name="prompt"', b"caf\xe9")],
        [(b'name="user"', b"\xff\xfe")],
        [(b'name="caf\xe9"', b"x")],
        [(b'name="image"; filename="caf\xe9.png"', png_of(Image.new("RGB", (64, 64)))), (b'name="prompt"', b"x")],
    ],
    ids=["prompt", "user", "name", "file name"],
)
def test_text_of_a_form_that_is_not_utf_8_is_refused(warm, parts):
    status, _, answer = call(warm, **form(*parts))
    assert status == 400
    assert "not valid utf-8" in answer["error"]["message"]


def test_a_broken_form_is_refused_and_the_library_says_nothing(capfd):
    from fastapi import HTTPException, Request

    async def receive():
        return {"type": "http.request", "body": b"--B\r\nContent-Disp\xd5: x\r\n\r\n", "more_body": False}

    async def read():
        headers = [(b"content-type", b"multipart/form-data; boundary=B")]
        async with edits.read_form(Request({"type": "http", "headers": headers}, receive)):
            pass

    with pytest.raises(HTTPException, match="Invalid multipart data"):
        asyncio.run(read())
    assert capfd.readouterr() == ("", "")


def test_a_file_is_recorded_by_the_last_part_of_its_name(warm, tmp_path):
    for name in (b"../../etc/fox.png", b"C:/pictures/fox.png"):
        data = (b'name="image"; filename="' + name + b'"', png_of(striped()[0]))
        status, _, answer = call(warm, **form(data, (b'name="prompt"', b"x"), (b'name="steps"', b"2")))
        assert status == 200, answer
        (tmp_path / "x.png").write_bytes(b64decode(answer["data"][0]["b64_json"]))
        assert metadata.read(tmp_path / "x.png").recipe["image"] == "fox.png"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "localhost:1"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:3000"}, 200),
    ],
)
def test_web_pages_of_others_are_refused(warm, headers, status):
    assert call(warm, "GET", "/v1/models", **headers)[0] == status


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"body": b"{"}, 400),
        ({"body": b"[]"}, 400),
        ({"body": b'{"prompt": "' + b"x" * 2**20 + b'"}'}, 413),
        ({"body": b"x" * (65 * 2**20), "path": "/v1/images/edits"}, 413),
        ({"method": "GET", "path": "/v1/images/generations"}, 405),
        ({"method": "GET", "path": "/pictures"}, 404),
        ({"body": {"path": "/", "recipes": []}, "path": "/pictures"}, 404),
        ({"method": "GET", "path": "/docs"}, 404),
        ({"body": b'{"prompt": "x", "model": "\\ud800"}'}, 404),
        ({"body": b'{"prompt": "caf\xe9"}'}, 400),
        ({"body": b"[" * 100_000}, 400),
    ],
    ids=lambda value: str(value)[:40],
)
def test_nonsense_has_openai_s_error_object(warm, request_, status):
    found, _, answer = call(warm, **request_)
    assert found == status
    assert set(answer["error"]) == {"message", "type", "param", "code"}


def test_a_body_of_no_stated_type_is_not_taken(warm):
    """A form of a web page can send text/plain to any host, without asking first."""
    assert call(warm, body={"prompt": "x", "steps": 1}, Content_Type="text/plain")[0] == 400


def test_the_server_says_what_it_is_and_that_it_is_ready(warm, sd15):
    status, _, answer = call(warm, "GET", "/")
    assert (status, answer["name"], answer["models"][0]) == (200, "sdcli", str(sd15))
    assert call(warm, "GET", "/health")[::2] == (200, {"status": "ok", "waiting": 0})
    status, _, answer = call(warm, "GET", "/openapi.json")
    assert status == 200
    edit = answer["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert {"image", "mask", "prompt", "n", "size"} <= set(edit["properties"])
    assert "/v1/images/generations" in answer["paths"]


def test_who_goes_away_cancels(warm, client):
    body = json.dumps({"prompt": "x", "steps": 900, "n": 10}).encode()
    head = "POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    for _ in range(2):
        address = urlsplit(warm.url)
        with socket.create_connection((address.hostname, address.port)) as gone:
            gone.sendall(head.encode() + body)
            time.sleep(0.5)
    started = time.monotonic()
    client.images.generate(prompt="x", extra_body={"steps": 1})
    assert time.monotonic() - started < 10  # ten thousand steps take far longer


def test_images_are_references_for_a_model_that_takes_them(serve, run, tmp_path):
    """Two images under the same name, and no mask: the picture that `sdcli edit` makes of them, at a given size."""
    folder = tiny_flow.make_folder("flux2-klein", tmp_path / "klein")
    images = [png_of(striped()[0]), png_of(striped()[0].transpose(Image.Transpose.FLIP_LEFT_RIGHT))]
    for place, data in enumerate(images):
        (tmp_path / f"{place}.png").write_bytes(data)
    options = {"seed": 7, "steps": 1, "dtype": "float32"}
    with serve("-m", folder) as warm, openai.OpenAI(base_url=warm.url, api_key="none", max_retries=0) as client:
        uploads = [("image.png", data) for data in images]
        made = client.images.edit(image=uploads, prompt="night", size="64x80", extra_body=options)
        one = client.images.edit(image=uploads[0], prompt="night", size="64x80", extra_body=options)
        with pytest.raises(openai.BadRequestError, match="not a picture"):
            client.images.edit(image=("image.png", b"x"), prompt="night")
    flags = ("-s", 7, "--steps", 1, "--dtype", "float32", "-W", 64, "-H", 80, "-m", folder, "-o", "x.png")
    assert run("edit", "0.png", "1.png", "night", *flags).status == 0
    (picture,) = made.data
    with Image.open(tmp_path / "x.png") as ours, Image.open(io.BytesIO(b64decode(picture.b64_json))) as theirs:
        assert ours.tobytes() == theirs.tobytes()
        assert (made.size, theirs.size) == ("64x80", (64, 80))
    assert one.data[0].b64_json != picture.b64_json
