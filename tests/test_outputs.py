import errno
import multiprocessing
import os
import re
import socket
import stat
import subprocess
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sdcli.errors import ExitStatus, OutputError, OutputExists, UsageError
from sdcli.files import atomic, names
from sdcli.files.names import MAX_SLUG_BYTES, slug
from sdcli.files.outputs import Destination, plan, write
from sdcli.recipe.recipe import Recipe

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40


def recipe(prompt: str = "Arctic fox", seed: int = 7, model: str = "kit", **others) -> Recipe:
    return Recipe.from_dict(
        {
            "model": model,
            "prompt": prompt,
            "seed": seed,
            "width": 64,
            "height": 64,
            "steps": 2,
            "guidance_scale": 1.0,
            "scheduler": "ddim",
        }
        | others
    )


def series(count: int) -> list[Recipe]:
    return [recipe(seed=7 + index) for index in range(count)]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def everything_in(directory: Path) -> list[str]:
    return sorted(each.name for each in directory.iterdir())


def paths(*arguments, **options) -> list[str]:
    return [each.path for each in plan(*arguments, **options)]


# Slugs


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("arctic fox", "arctic-fox"),
        ("  An arctic FOX,\n(red:1.3) -- $HOME/../x; rm -rf *  ", "an-arctic-fox-red-1-3-home-x-rm-rf"),
        ("the fox's den", "the-foxs-den"),
        ("Café Ångström ﬁn ½", "cafe-angstrom-fin-1-2"),
        ("北极狐 在雪地", "北极狐-在雪地"),
        ("Полярная лиса", "полярная-лиса"),
        ("आर्कटिक लोमड़ी", "आर्कटिक-लोमड़ी"),
        ("북극 여우", "북극-여우"),
        ("キツネが", "キツネか" + "\u3099"),
        ("🦊✨", "picture"),
        ("", "picture"),
        ("-rf .hidden ../..", "rf-hidden"),
    ],
)
def test_slug(prompt, expected):
    assert slug(prompt) == unicodedata.normalize("NFC", expected)


@given(st.text(max_size=300))
@example("İ" * 100)
@example("x" * 500)
@example("狐" * 500)
@example("狐狐 " * 100)
@example("word " * 100)
@example("\ud800 fox")
@example("e\u0301\u0301 \u0301 狐\ufe0f")
def test_slug_is_fit_for_files_and_shells(prompt):
    made = slug(prompt)
    assert made
    assert 0 < len(made.encode()) <= MAX_SLUG_BYTES
    assert all(each == "-" or unicodedata.category(each)[0] in "LNM" for each in made)
    assert not made.startswith("-")
    assert not made.endswith("-")
    assert "--" not in made
    assert made.casefold() == made.lower().casefold()
    assert slug(made) == made
    if prompt.isascii():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", made)


def test_long_prompts_are_cut_between_words():
    made = slug("seven snowy foxes " * 20)
    assert MAX_SLUG_BYTES - len("-foxes") < len(made) <= MAX_SLUG_BYTES
    assert set(made.split("-")) == {"seven", "snowy", "foxes"}


@given(st.text(max_size=200), st.integers(0, 2**32 - 1))
def test_any_prompt_gives_a_name_a_file_system_takes(tmp_path_factory, prompt, seed):
    directory = tmp_path_factory.mktemp("any")
    (destination,) = plan(f"{directory}/", [recipe(prompt, seed)])
    path = write(destination, PNG)
    assert len(Path(path).name.encode()) < 255
    assert Path(path).read_bytes() == PNG


# Plans


def test_default_names_are_here():
    assert plan(None, series(2)) == (
        Destination("arctic-fox-7.png", unique=True),
        Destination("arctic-fox-8.png", unique=True),
    )


@pytest.mark.parametrize("given_as", ["out", "out/", "./out", "./out//", "../{here}/out"])
def test_in_a_directory_the_path_stays_as_given(here, given_as):
    (here / "out").mkdir()
    given_as = given_as.replace("{here}", here.name)
    (path,) = paths(given_as, [recipe()])
    assert path == given_as + ("" if given_as.endswith("/") else "/") + "arctic-fox-7.png"


def test_a_directory_ending_in_a_slash_is_made(here):
    assert paths("a/b/", [recipe()]) == ["a/b/arctic-fox-7.png"]
    assert (here / "a/b").is_dir()
    assert everything_in(here / "a/b") == []


def test_a_directory_may_be_a_template():
    assert paths("by-{model}/", [recipe(model="me/My Model")]) == ["by-my-model/arctic-fox-7.png"]


def test_a_directory_with_braces_is_no_template(here):
    (here / "a{b}").mkdir()
    assert paths("a{b}", [recipe()]) == ["a{b}/arctic-fox-7.png"]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{prompt}_{model}_{seed}_{index}.png", "arctic-fox_kit_7_1.png"),
        ("./x{index:03}.png", "./x001.png"),
        ("{{{seed}}}.png", "{7}.png"),
        ("fox-1.5", "fox-1.5"),
        ("fox.PNG", "fox.PNG"),
        ("fox", "fox"),
    ],
)
def test_templates_and_plain_names(template, expected):
    assert paths(template, [recipe()]) == [expected]


def test_model_paths_become_names():
    assert paths("{model}.png", [recipe(model="/models/Dream Shaper_8.safetensors")]) == ["dream-shaper-8.png"]


def test_a_template_takes_any_key_of_a_recipe():
    made = recipe(steps=8, scheduler="dpm++-2m", guidance_scale=7.5, negative_prompt="Blurry, dark")
    template = "{steps:03}-{scheduler}-{guidance_scale}-{negative_prompt}-{prompt_weights}-{strength}-{image}.png"
    assert paths(template, [made]) == ["008-dpm-2m-7.5-blurry-dark-on-none-none.png"]
    assert default_names(made, ["steps", "scheduler", "seed"]) == "arctic-fox-steps-8-dpm-2m-7.png"
    assert default_names(made, ["guidance_scale", "prompt"]) == "arctic-fox-guidance-scale-7.5-7.png"
    long = recipe(negative_prompt="x" * 300, scheduler="ddim")
    assert len(default_names(long, ["negative_prompt", "scheduler", "steps", "width", "height", "eta"])) < 255


def default_names(made, varies):
    return names.default_name(made, ".png", varies)


def test_directories_of_a_template_with_fields_are_made(here):
    assert paths("new/{prompt}/{seed}.png", [recipe()]) == ["new/arctic-fox/7.png"]
    with pytest.raises(OutputError, match="No such file"):
        paths("other/{seed}.png", [recipe()])


def test_indices_count_from_one():
    assert paths("fox-{index}.png", series(3)) == ["fox-1.png", "fox-2.png", "fox-3.png"]


@pytest.mark.parametrize(
    ("output", "count", "hint"),
    [
        ("{sead}.png", 1, "did you mean 'seed'?"),
        ("{}.png", 1, "{seed} {prompt} {model} {steps}"),
        ("{0}.png", 1, "{seed} {prompt} {model} {steps}"),
        ("{seed.real}.png", 1, "seed"),
        ("{seed.png", 1, "{{"),
        ("seed}.png", 1, "}}"),
        ("{seed!r}.png", 1, "{index:03}"),
        ("{seed:x}.png", 1, "{index:03}"),
        ("{seed:999999999}.png", 1, "{index:03}"),
        ("{prompt:9}.png", 1, "{index:03}"),
        ("fox.png", 2, "fox-{index}.png"),
        ("fox", 2, "fox-{index}"),
        ("{prompt}.png", 2, "{prompt}-{index}.png"),
        ("fox.jpg", 1, "fox.png"),
        ("fox-{seed}.WebP", 1, "fox-{seed}.png"),
        ("", 1, "file.png"),
        ("a\0b", 1, "file.png"),
        ("\ud800.png", 1, "file.png"),
    ],
)
def test_names_that_cannot_be_meant_are_usage_errors(here, output, count, hint):
    with pytest.raises(UsageError) as caught:
        plan(output, series(count))
    assert caught.value.exit_status == ExitStatus.USAGE
    assert hint in caught.value.hint
    assert everything_in(here) == []


@given(st.text(alphabet="{}{}:!.aseedindexpromptmodel/0 ", max_size=25))
def test_templates_fill_or_are_refused(template):
    try:
        filled = names.fill(template, recipe(), 1)
    except UsageError:
        assert "{" in template or "}" in template
    else:
        assert filled == template or "{" in template or "}" in template


def test_named_file_that_exists_is_refused_unless_forced(here):
    (here / "fox.png").write_bytes(b"old")
    with pytest.raises(OutputExists) as caught:
        plan("fox.png", [recipe()])
    assert caught.value.exit_status == ExitStatus.OUTPUT
    assert "--force" in caught.value.hint
    assert plan("fox.png", [recipe()], force=True) == (Destination("fox.png", force=True),)
    assert (here / "fox.png").read_bytes() == b"old"


def test_a_dangling_link_is_a_name_that_is_taken(here):
    (here / "fox.png").symlink_to("nowhere.png")
    with pytest.raises(OutputExists):
        plan("fox.png", [recipe()])


def test_missing_parent_is_an_output_error_that_says_what_to_do(here):
    with pytest.raises(OutputError) as caught:
        plan("a b/c/fox.png", [recipe()])
    assert caught.value.hint == "create the directory first: mkdir -p 'a b/c'"
    assert everything_in(here) == []


def unwritable(name: str) -> str:
    """A directory where not even root writes, without mounting anything."""
    return {"below a file": "file/out.png", "virtual": "/proc/self/out.png", "too long": "x" * 256 + ".png"}[name]


@pytest.mark.parametrize("name", ["below a file", "virtual", "too long"])
def test_unwritable_places_are_found_before_anything_is_made(here, name):
    (here / "file").write_bytes(b"")
    with pytest.raises(OutputError) as caught:
        plan(unwritable(name), [recipe()])
    assert caught.value.exit_status == ExitStatus.OUTPUT
    assert caught.value.hint
    with pytest.raises(OutputError):
        write(Destination(unwritable(name)), PNG)
    assert everything_in(here) == ["file"]


def test_a_directory_that_cannot_be_made_is_an_output_error(here):
    (here / "file").write_bytes(b"")
    with pytest.raises(OutputError):
        plan("file/", [recipe()])


@pytest.mark.parametrize("name", ["fifo", "socket"])
def test_force_spares_what_is_no_regular_file(here, name):
    """Kin of /dev/null, which is kept out of it: if this fails where root runs it, the device would be lost."""
    os.mkfifo(here / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    with pytest.raises(OutputExists, match="not a regular file"):
        plan(name, [recipe()], force=True)
    with pytest.raises(OutputExists, match="not a regular file"):
        write(Destination(name, force=True), PNG)
    assert not (here / name).is_file()


# Writing


@pytest.mark.parametrize("options", [{}, {"unique": True}, {"force": True}])
def test_write_leaves_the_file_and_nothing_else(here, options):
    assert write(Destination("./fox.png", **options), PNG) == "./fox.png"
    assert everything_in(here) == ["fox.png"]
    assert (here / "fox.png").read_bytes() == PNG


def test_taken_names_get_numbers(here):
    destination = Destination("./fox-7.png", unique=True)
    assert [write(destination, PNG) for _ in range(3)] == ["./fox-7.png", "./fox-7-2.png", "./fox-7-3.png"]
    assert everything_in(here) == ["fox-7-2.png", "fox-7-3.png", "fox-7.png"]


def test_a_name_taken_after_the_plan_is_not_overwritten(here):
    (destination,) = plan("fox.png", [recipe()])
    (here / "fox.png").write_bytes(b"theirs")
    with pytest.raises(OutputExists):
        write(destination, PNG)
    assert (here / "fox.png").read_bytes() == b"theirs"
    assert everything_in(here) == ["fox.png"]


def test_force_replaces_the_file_behind_a_link(here):
    (here / "album").mkdir()
    (here / "album/fox.png").write_bytes(b"old")
    (here / "fox.png").symlink_to("album/fox.png")
    (destination,) = plan("fox.png", [recipe()], force=True)
    assert write(destination, PNG) == "fox.png"
    assert (here / "fox.png").is_symlink()
    assert (here / "album/fox.png").read_bytes() == PNG
    assert everything_in(here / "album") == ["fox.png"]


def test_readers_of_a_replaced_file_keep_the_old_one_whole(here):
    (here / "fox.png").write_bytes(b"old")
    with (here / "fox.png").open("rb") as reader:
        write(Destination("fox.png", force=True), PNG)
        assert reader.read() == b"old"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_mode_follows_the_umask(here, mask):
    before = os.umask(mask)
    try:
        write(Destination("fox.png"), PNG)
    finally:
        os.umask(before)
    assert stat.S_IMODE((here / "fox.png").stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("at", ["fsync", "link", "replace"])
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, OSError(28, "No space left on device")])
def test_an_interruption_leaves_nothing_half_written(here, monkeypatch, at, interruption):
    def interrupt(*arguments, **options):
        raise interruption

    (here / "fox.png").write_bytes(b"old")
    monkeypatch.setattr(os, at, interrupt)
    expected = OutputError if isinstance(interruption, OSError) else interruption
    options = {"force": True} if at == "replace" else {"unique": True}
    with pytest.raises(expected):
        write(Destination("fox.png", **options), PNG)
    assert everything_in(here) == ["fox.png"]
    assert (here / "fox.png").read_bytes() == b"old"


@pytest.mark.parametrize("options", [{}, {"unique": True}])
def test_without_hard_links_names_are_still_never_taken_twice(here, monkeypatch, options):
    def refuse(*arguments, **keywords):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert write(Destination("fox.png", **options), PNG) == "fox.png"
    assert (here / "fox.png").read_bytes() == PNG
    if options:
        assert write(Destination("fox.png", **options), b"second") == "fox-2.png"
    else:
        with pytest.raises(OutputExists):
            write(Destination("fox.png"), b"second")
    assert (here / "fox.png").read_bytes() == PNG
    assert len(everything_in(here)) == 1 + bool(options)


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
def test_without_hard_links_a_name_is_taken_at_once_and_never_overwritten(here, monkeypatch):
    def refuse(*arguments, **keywords):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "replace", None)  # which would need a name that is reserved before
    assert write(Destination("fox.png"), b"a") == "fox.png"
    assert write(Destination("fox.png", unique=True), b"b") == "fox-2.png"
    with pytest.raises(OutputExists):
        write(Destination("fox.png"), b"c")
    assert {path.name: path.read_bytes() for path in here.iterdir()} == {"fox.png": b"a", "fox-2.png": b"b"}


def test_a_disk_that_fails_while_names_are_synced_is_an_error(here, monkeypatch):
    sync = os.fsync

    def fail(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    number = errno.EIO
    with pytest.raises(OutputError, match="Input/output error"):
        write(Destination("fox.png"), b"a")
    number = errno.EINVAL  # what a file system says that cannot
    assert write(Destination("owl.png"), b"a") == "owl.png"


def test_made_directories_are_synced_in_their_parents(here, monkeypatch):
    synced = []
    monkeypatch.setattr(atomic, "sync_name", synced.append)
    atomic.make_directories(here / "a" / "b")
    assert synced == [here, here / "a"]
    atomic.make_directories(here / "a" / "b")
    assert len(synced) == 2
    (here / "file").write_text("")
    with pytest.raises(OSError):
        atomic.make_directories(here / "file" / "c")


def test_without_hard_links_an_interruption_frees_the_name(here, monkeypatch):
    def refuse(*arguments, **keywords):
        raise PermissionError(1, "Operation not permitted")

    def interrupt(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic, "_renamed", lambda *paths: False)
    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(Destination("fox.png"), PNG)
    assert everything_in(here) == []


def test_threads_racing_for_one_name_each_get_their_own(here):
    def write_one(number: int) -> tuple[str, bytes]:
        data = b"%03d" % number * 5000
        return write(Destination("fox.png", unique=True), data), data

    with ThreadPoolExecutor(8) as pool:
        written = dict(pool.map(write_one, range(40)))
    assert len(written) == 40
    assert {path: Path(path).read_bytes() for path in written} == written
    assert everything_in(here) == sorted(written)


def _race(barrier, number: int, results) -> None:
    barrier.wait()
    try:
        results.put((number, write(Destination("fox.png"), b"%d" % number * 100_000)))
    except OutputExists:
        results.put((number, None))


def test_of_processes_racing_for_one_named_file_one_wins(here):
    context = multiprocessing.get_context("forkserver")
    barrier, results = context.Barrier(3), context.Queue()
    racers = [context.Process(target=_race, args=(barrier, number, results)) for number in range(3)]
    for racer in racers:
        racer.start()
    outcome = dict(results.get(timeout=60) for _ in racers)
    for racer in racers:
        racer.join(timeout=60)
    (winner,) = [number for number, path in outcome.items() if path]
    assert (here / "fox.png").read_bytes() == b"%d" % winner * 100_000
    assert everything_in(here) == ["fox.png"]


def test_a_file_size_limit_ends_in_exit_status_8_and_no_file(here):
    code = (
        "import resource, sys\n"
        "from sdcli.errors import OutputError\n"
        "from sdcli.files.outputs import Destination, write\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: write(Destination('fox.png', unique=True), bytes(10_000))\n"
        "except OutputError as error: print(error.hint); sys.exit(error.exit_status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=here,
                          env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)})  # fmt: skip
    assert (done.returncode, done.stderr) == (8, "")
    assert "free some space" in done.stdout
    assert everything_in(here) == []


FULL_DISK = """
set -e
mkdir disk
mount -t tmpfs -o size=64k tmpfs disk
"$1" -c '
import os, sys
from sdcli.errors import OutputError
from sdcli.files.outputs import Destination, plan, write
from tests.test_outputs import recipe
try: write(Destination("disk/fox.png"), bytes(200_000))
except OutputError as error: print(error.message, error.exit_status, os.listdir("disk"))
os.system("mount -o remount,ro disk")
try: plan("disk/", [recipe()])
except OutputError as error: print(error.message, error.exit_status)
'
"""


def test_full_and_read_only_disks(here, mounts):
    if mounts is None:
        pytest.skip("this user may not mount a file system, not even in a namespace of its own")
    done = subprocess.run(
        [*mounts, "bash", "-c", FULL_DISK, "-", sys.executable],
        capture_output=True, text=True, check=False, cwd=here,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "cannot write disk/fox.png: No space left on device 8 []",
        "cannot write disk: Read-only file system 8",
    ]
