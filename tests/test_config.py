"""What a user sets once: the order of places, the lines that errors name, and what cannot be."""

import json
import threading
import time
from pathlib import Path

import pytest
import tomlkit
from hypothesis import given, settings
from hypothesis import strategies as st

from sdcli import config
from sdcli.errors import OutputError, UsageError
from sdcli.files import toml_files
from sdcli.files import user_files as files
from sdcli.models import registry
from sdcli.planning import resolve
from sdcli.recipe import parts, recipe, schedulers


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "sdcli").mkdir()
    return tmp_path / "sdcli"


def settled(model: str, **options):
    return resolve.settings(registry.find(model), options, None)


def complaint(home: Path, text: str | bytes, file: str = "config.toml") -> UsageError:
    (home / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError) as caught:
        registry.entries()
    return caught.value


# Each row adds a place that comes before all the rows above it.
PLACES = [
    ("built-in", lambda home, monkeypatch: None, {}, 25),
    ("[defaults]", lambda home, monkeypatch: (home / "config.toml").write_text("[defaults]\nsteps = 31\n"), {}, 31),
    (
        "models.toml of the user",
        lambda home, monkeypatch: (home / "models.toml").write_text(
            '[mine]\nrepo = "a/b"\ndefaults = { steps = 32 }\n'
        ),
        {},
        32,
    ),
    (
        "[models.mine.defaults]",
        lambda home, monkeypatch: (home / "config.toml").write_text(
            "[defaults]\nsteps = 31\n[models.mine.defaults]\nsteps = 33\n"
        ),
        {},
        33,
    ),
    ("SDCLI_STEPS", lambda home, monkeypatch: monkeypatch.setenv("SDCLI_STEPS", "34"), {}, 34),
    ("the option", lambda home, monkeypatch: None, {"steps": 35}, 35),
]


def test_each_place_comes_before_those_it_should(home, monkeypatch):
    (home / "models.toml").write_text('[mine]\nrepo = "a/b"\n')
    for name, prepare, options, expected in PLACES:
        prepare(home, monkeypatch)
        assert settled("mine", **options)["steps"].value == expected, name


def test_a_general_default_beats_what_is_good_for_a_model_but_not_what_it_needs(home, monkeypatch):
    (home / "config.toml").write_text('[defaults]\nsteps = 40\nguidance_scale = 9.0\nscheduler = "euler"\n')
    classic, turbo, kit = settled("sd15"), settled("sdxl-turbo"), settled("kit")
    assert (classic["steps"].value, classic["guidance_scale"].value, classic["scheduler"].value) == (40, 9.0, "euler")
    assert (turbo["steps"].value, turbo["guidance_scale"].value, turbo["scheduler"].value) == (2, 0.0, "euler-a")
    assert (kit["steps"].value, kit["scheduler"].value) == (40, "dpm++-2m")
    assert turbo["steps"].place == "models.toml"
    assert classic["steps"].place == f"{home / 'config.toml'}:2"
    with (home / "config.toml").open("a") as file:
        file.write("[models.sdxl-turbo.defaults]\nsteps = 3\n")
    assert settled("sdxl-turbo")["steps"].value == 3
    monkeypatch.setenv("SDCLI_STEPS", "4")
    assert settled("sdxl-turbo")["steps"].value == 4


def test_settings_of_the_user_can_be_left_out(home, monkeypatch):
    (home / "config.toml").write_text("[defaults]\nsteps = 40\n[models.sd15.defaults]\neta = 0.5\n")
    monkeypatch.setenv("SDCLI_SEED", "7")
    plain = resolve.settings(registry.find("sd15"), {}, None, user=False)
    assert (plain["steps"].value, plain["eta"].value, "seed" in plain) == (25, 0.0, False)


@pytest.mark.parametrize(
    ("scheduler", "sigmas"),
    [("euler-a", "default"), ("euler", "karras"), ("nonsense", "karras"), (["x"], "karras")],
)
def test_sigmas_stay_with_the_schedulers_that_take_them(scheduler, sigmas):
    assert settled("sd15")["sigmas"].value == "karras"
    assert settled("sd15", scheduler=scheduler)["sigmas"].value == sigmas
    assert settled("sd15", scheduler=scheduler, sigmas="beta")["sigmas"].value == "beta"


def test_eta_stays_with_the_schedulers_that_take_it(monkeypatch):
    monkeypatch.setenv("SDCLI_ETA", "0.5")
    assert settled("kit", scheduler="ddim")["eta"].value == 0.5
    assert settled("kit", scheduler="euler")["eta"].value == 0.0


def test_a_model_s_own_file_is_relative_to_the_file_that_names_it(home):
    (home / "config.toml").write_text('[models.mine]\nfolder = "../models/ink"\ndescription = "ink"\n')
    entry = registry.find("mine")
    assert Path(entry.folder or "") == home / ".." / "models" / "ink"
    assert (entry.origin, entry.description) == (str(home / "config.toml"), "ink")


def test_a_shipped_entry_is_changed_key_by_key(home):
    (home / "config.toml").write_text('[models.sdxl]\nrepo = "me/my-sdxl"\n')
    entry = registry.find("sdxl")
    assert (entry.repo, entry.variant, entry.origin) == ("me/my-sdxl", "fp16", registry.SHIPPED)


@pytest.mark.parametrize(
    ("text", "line", "message", "hint"),
    [
        ("\n[defaults]\nstpes = 3\n", 3, "unknown key 'defaults.stpes'", "'steps'"),
        ("[defaults]\n\n# few\nsteps = 0\n", 4, "steps is 0", "between 1 and 1000"),
        ('[defaults]\nsteps = "3"\n', 2, "steps is '3'", "whole number"),
        ("defaults = { width = 64,  steps = true }\n", 1, "steps is True", "whole number"),
        ('[defaults]\nscheduler = "eular"\n', 2, "eular", "'euler'"),
        ('[defaults]\nprompt = "a fox"\n', 2, "cannot have a default", "command line"),
        ("[defaults]\nmodel = 7\n", 2, "model is 7", "text"),
        ("[default]\nsteps = 3\n", 1, "unknown table 'default'", "'defaults'"),
        ("steps = 3\n", 1, "not in a table", "[defaults]"),
        ("defaults = 3\n", 1, "defaults is 3", "[defaults]"),
        ("[models.sd15]\nsteps = 3\n", 2, "recipe key", "[models.sd15.defaults]"),
        ("[models.sd15]\nrepos = 'a/b'\n", 2, "unknown key", "'repo'"),
        ("[models.sd15.defaults]\nmodel = 'kit'\n", 2, "unknown key", "steps"),
        ("[models.x]\nrepo = 'a/b'\nfolder = 'c'\n", 2, "a folder and a repo", "one of the two"),
        ("models.sd15 = 3\n", 1, "models.sd15 is 3", "table"),
        ("[models.sd15]\nlicense = ''\n", 2, "license is ''", "text"),
        ('[models.x]\nrepo = "\\u0000"\n', 2, r"repo is '\x00'", "text"),
        (f"[models.x]\nrepo = '{'a' * 200}'\n", 2, "repo is 'aaa", "OWNER/NAME"),
        ("[models.x]\nrepo = '../../x'\n", 2, "repo is '../../x'", "OWNER/NAME"),
        ('[models.x.parts]\nvae = "a\\u0000"\n', 2, r"vae is 'a\x00'", "text"),
        ('[defaults]\nlora_dir = "\\u0000"\n', 2, r"lora_dir is '\x00'", "text"),
    ],
)
def test_what_is_wrong_in_a_config_file_is_named_with_its_line(home, text, line, message, hint):
    error = complaint(home, text)
    assert error.message.startswith(f"{home / 'config.toml'}, line {line}: ")
    assert message in error.message
    assert hint in error.hint


def test_what_is_wrong_in_the_models_file_too(home):
    assert (
        "models.toml, line 3: steps is 0"
        in complaint(home, '[mine]\nrepo = "a/b"\ndefaults = { steps = 0 }\n', "models.toml").message
    )


def test_a_new_model_must_say_where_it_is(home):
    error = complaint(home, "[models.sd_15.defaults]\nsteps = 3\n")
    assert "[models.sd_15]" in error.message
    assert "'sd15'" in error.hint


@pytest.mark.parametrize("text", [b"[defaults\n", b"[defaults]\nsteps = \n", b"\xff\xfe", b"[a]\nx=1\n[a]\nx=2\n"])
def test_what_is_no_toml_is_said(home, text):
    error = complaint(home, text)
    assert str(home / "config.toml") in error.message
    assert "TOML" in error.message


def test_a_missing_config_is_an_error_only_where_it_was_asked_for(home, monkeypatch):
    assert config.read() == config.Config()
    monkeypatch.setenv("SDCLI_CONFIG", str(home / "none.toml"))
    with pytest.raises(UsageError, match=r"none\.toml does not exist"):
        config.read()
    (home / "none.toml").mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        config.read()


def test_a_file_is_read_anew_when_it_has_changed(home):
    for steps in (3, 14):
        (home / "config.toml").write_text(f"[defaults]\nsteps = {steps}\n")
        assert config.read().defaults["steps"].value == steps


STATEMENTS = st.sampled_from(
    [
        "# steps = 1",
        "",
        'x{} = "steps"',
        'x{} = """\nsteps = 1\n\n"""',
        "x{} = [\n  1,\n\n  2,\n]",
        "x{} = {{ steps = 1 }}",
    ]
)


def test_a_config_file_without_bounds_is_refused(home):
    (home / "config.toml").write_text("#" * 2**20 + "\n")
    with pytest.raises(UsageError, match="larger than"):
        config.read()
    (home / "config.toml").write_text("[defaults]\nsteps = " + "[" * 50_000)
    with pytest.raises(UsageError, match=r"nested too deeply|is not TOML"):
        config.read()
    for key in (".".join("a" * 50_000), "[" + ' . "a"' * 50_000 + "]"):
        (home / "config.toml").write_text(f"{key} = 1")
        with pytest.raises(UsageError, match="nested too deeply"):
            config.read()
    (home / "config.toml").write_text('[defaults]\nnegative_prompt = "a.b. a, " # 1.2.3')
    assert config.read().defaults["negative_prompt"].value == "a.b. a, "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[defaults]\nsteps = " + "9" * 5000, "a number has too many digits"),
        ("[defaults]\nsteps = 0x" + "f" * 5000, "line 2: steps is a very large number"),
        ("[defaults]\nsteps = '" + "f" * 5000 + "'", "line 2: steps is 'fff"),
        ("[defaults]\n" + "f" * 5000 + " = 1", "line 2: unknown key 'defaults.fff"),
        ("[models]\nmine = " + "[" * 100 + "]" * 100, "line 2: models.mine is [["),
    ],
)
def test_a_long_value_is_told_in_few_words(home, text, message):
    (home / "config.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        config.read()
    assert message in caught.value.message
    assert len(caught.value.message) < 300


def test_the_line_of_a_fault_is_omitted_where_finding_it_takes_long(home, monkeypatch):
    (home / "config.toml").write_text("[defaults]\nsteps = [\n" + "  1,\n" * 1000 + "]\n")
    monkeypatch.setattr(toml_files, "_MAX_PARSED", 10_000)
    with pytest.raises(UsageError, match=r"config\.toml: steps is \[1, 1"):
        config.read()


def test_the_line_of_a_fault_is_found_in_little_time(home):
    lines = "".join(f"[models.m{number}]\nfolder = 'x'\n" for number in range(3000))
    (home / "config.toml").write_text(f"{lines}[defaults]\nstesp = 1\n")
    begun = time.process_time()
    with pytest.raises(UsageError, match="line 6002"):
        config.read()
    assert time.process_time() - begun < 5


@given(st.lists(STATEMENTS), st.lists(STATEMENTS))
def test_the_line_of_a_key_is_that_of_its_statement(tmp_path_factory, before, after):
    lines = [each.format(number) for number, each in enumerate([*before, "steps = 5", *after])]
    path = tmp_path_factory.getbasetemp() / "lines.toml"
    path.write_text("\n".join(["[defaults]", *lines]))
    expected = "\n".join(["[defaults]", *lines[: len(before)]]).count("\n") + 2
    assert config.Setting(5, str(path), ("defaults", "steps")).place == f"{path}:{expected}"


VALUES = {
    "negative_prompt": st.text(
        st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"]), min_size=1
    ),
    "clip_skip": st.integers(1, 12),
    "prompt_weights": st.booleans(),
    "steps": st.integers(1, 1000),
    "guidance_scale": st.floats(0, 100),
    "scheduler": st.sampled_from(schedulers.NAMES),
    "sigmas": st.sampled_from(schedulers.SIGMAS),
    "guidance_rescale": st.floats(0, 1),
    "shift": st.floats(0.01, 100),
    "true_cfg_scale": st.floats(1, 100),
    "skip_layer_guidance": st.sampled_from(["7", "7,8,9:2.8:0.01-0.2"]),
    "guidance_interval": st.sampled_from(["0-1", "0.1-0.8"]),
    "cache": st.sampled_from(["deepcache", "deepcache:3", "first-block:0.1"]),
    "token_merging": st.floats(0, 0.75),
    "eta": st.floats(0, 1),
    "device": st.sampled_from([each for each in parts.DEVICES if each not in parts.OF_OPENVINO]),
    "dtype": st.sampled_from(parts.DTYPES),
    "threads": st.integers(0, 1024),
    "batch_size": st.integers(1, 256),
    "compile": st.booleans(),
    "engine": st.sampled_from(parts.ENGINES),
    "memory": st.sampled_from(parts.MEMORY),
    "tiling": st.sampled_from(parts.TILING),
    "width": st.integers(64, parts.MAX_SIDE),
    "height": st.integers(64, parts.MAX_SIDE),
    "seed": st.integers(0, recipe.MAX_SEED),
    "lora": st.sampled_from([("a",), ("b.safetensors:0.8",)]),
    "strict_lora": st.booleans(),
    "quantize": st.sampled_from(("none", *parts.QUANTIZATIONS)),
    "embedding": st.sampled_from([("a",), ("b.safetensors",)]),
}


def test_every_recipe_key_has_a_variable():
    others = {"model", "prompt", "label", *parts.WITHOUT_DEFAULTS}
    assert set(VALUES) == set(config.recipe_keys()) == set(recipe.keys()) - others


@settings(max_examples=50)
@given(st.fixed_dictionaries({}, optional=VALUES))
def test_every_valid_value_comes_through_the_environment_and_the_file(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("config") / "config.toml"
    path.write_text(tomlkit.dumps({"defaults": values}), encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDCLI_CONFIG", str(path))
        assert {key: each.value for key, each in config.read().defaults.items()} == values
        for key, value in values.items():
            patch.setenv(f"SDCLI_{key.upper()}", value[0] if isinstance(value, tuple) else str(value))
        assert {key: each.value for key, each in config.environment().items()} == values


@pytest.mark.parametrize(
    ("variable", "text", "hint"),
    [
        ("SDCLI_STEPS", "many", "whole number"),
        ("SDCLI_STEPS", "2.5", "whole number"),
        ("SDCLI_STEPS", "0", "between"),
        ("SDCLI_ETA", "nan", "between"),
        ("SDCLI_PROMPT_WEIGHTS", "perhaps", "true or false"),
        ("SDCLI_SCHEDULER", "eular", "'euler'"),
    ],
)
def test_a_variable_that_cannot_be_is_named(monkeypatch, variable, text, hint):
    monkeypatch.setenv(variable, text)
    with pytest.raises(UsageError) as caught:
        config.environment()
    assert caught.value.message == f"{variable} is {text!r}"
    assert hint in caught.value.hint


def test_true_and_false_and_empty_variables(monkeypatch):
    monkeypatch.setenv("SDCLI_STEPS", "")
    for text, value in (("false", False), ("True", True)):
        monkeypatch.setenv("SDCLI_PROMPT_WEIGHTS", text)
        assert config.environment() == {"prompt_weights": config.Setting(value, "SDCLI_PROMPT_WEIGHTS")}


def test_variables_that_nobody_reads(monkeypatch):
    for name in ("SDCLI_STPES", "SDCLI_STEPS", "SDCLI_CONFIG", "SDCLI_SOCKET", "SDCLI_MY_OWN_THING"):
        monkeypatch.setenv(name, "1")
    assert list(config.misspelt()) == [("SDCLI_STPES", "SDCLI_STEPS")]


def test_variables_of_what_belongs_to_a_single_picture(run, monkeypatch):
    """They look as if they were read, and an option of that name exists."""
    variables = {f"SDCLI_{key.upper()}": "1" for key in ("strength", "prompt", "mask_image", "padding")}
    monkeypatch.setenv("SDCLI_IMAGE", "")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert set(config.without_effect()) == set(variables)
    assert list(config.misspelt()) == []
    done = run("config", "show", env={"SDCLI_STRENGTH": "0.3"})
    assert "warning: SDCLI_STRENGTH has no effect" in done.stderr


def test_model_and_output(home, monkeypatch):
    assert (config.model(None), config.output(None)) == ("kit", None)
    (home / "config.toml").write_text('[defaults]\nmodel = "sd15"\noutput = "out/"\n')
    assert (config.model(None), config.output(None)) == ("sd15", "out/")
    monkeypatch.setenv("SDCLI_MODEL", "sdxl")
    assert (config.model(None), config.output("-")) == ("sdxl", "-")
    assert config.model("sd21") == "sd21"


def test_completion_lives_with_a_broken_config(home):
    (home / "config.toml").write_text("[defaults")
    assert {name for kind in config.KINDS for name in registry.names(kind)} == set(registry.shipped())


def test_config_show_says_every_value_and_where_it_comes_from(run, tmp_path):
    path = tmp_path / "my.toml"
    path.write_text('[defaults]\noutput = "out/"\n\n[models.kit.defaults]\nguidance_scale = 3.5\n')
    done = run("--config", path, "config", "show", "--json", env={"SDCLI_SEED": "7", "SDCLI_STPES": "1"})
    rows = {row["key"]: (row["value"], row["source"]) for row in map(json.loads, done.lines)}
    assert list(rows) == [*config.GENERAL, *config.recipe_keys()]
    assert rows["model"] == ("kit", "built-in")
    assert rows["output"] == ("out/", f"{path}:2")
    assert rows["guidance_scale"] == (3.5, f"{path}:5")
    assert rows["seed"] == (7, "SDCLI_SEED")
    assert rows["scheduler"] == ("dpm++-2m", "models.toml")
    assert rows["width"] == (256, "model")
    assert rows["eta"] == (0.0, "built-in")
    assert done.stderr == "warning: unknown variable SDCLI_STPES; did you mean SDCLI_STEPS?\n"
    table = run("config", "show", "-m", "sd15")
    assert table.lines[0].split() == ["model", "sd15", "option"]
    assert [line.split() for line in table.lines if line.startswith("width")] == [
        ["width", "-", "model", "(not", "on", "this", "machine)"]
    ]


def test_config_path(run, tmp_path):
    assert run("config", "path").lines == [str(tmp_path / ".config" / "sdcli" / "config.toml")]
    assert run("config", "path", env={"XDG_CONFIG_HOME": "/else"}).lines == ["/else/sdcli/config.toml"]
    assert run("config", "path", env={"XDG_CONFIG_HOME": "not/absolute"}).lines[0].startswith(str(tmp_path))
    assert run("--config", "a.toml", "config", "path", env={"SDCLI_CONFIG": "b.toml"}).lines == ["a.toml"]


@pytest.mark.parametrize(
    ("text", "env", "status", "said"),
    [
        ("[defaults]\nwidth = 250\n", {}, 2, "width is 250"),
        ("[defaults]\nwidth = 256\n", {"SDCLI_WIDTH": "254"}, 2, "width is 254"),
        ('[defaults]\nmodel = "sd15"\n', {}, 3, "'sd15'"),
        ('[defaults]\nmodel = "sd15"\n', {"SDCLI_MODEL": "sdxl"}, 3, "'sdxl'"),
        ('[defaults]\noutput = "no/such/x.png"\n', {}, 8, "no/such"),
        ("", {"SDCLI_OUTPUT": "no/where/y.png"}, 8, "no/where"),
        ("[defaults]\nsteps = 0\n", {}, 2, "config.toml, line 2: steps is 0"),
    ],
)
def test_generate_takes_its_defaults_from_there(run, tmp_path, text, env, status, said):
    (tmp_path / ".config" / "sdcli").mkdir(parents=True)
    (tmp_path / ".config" / "sdcli" / "config.toml").write_text(text)
    done = run("generate", "fox", env=env)
    assert done.status == status
    assert said in done.stderr.splitlines()[0]


def test_writers_wait_for_each_other_and_leave_whole_files(tmp_path):
    path = tmp_path / "new" / "count"

    def increment() -> None:
        for _ in range(20):
            files.rewrite(path, lambda text: str(int(text or "0") + 1))

    writers = [threading.Thread(target=increment) for _ in range(4)]
    for each in writers:
        each.start()
    for each in writers:
        each.join()
    assert path.read_text() == "80"
    assert [each.name for each in path.parent.iterdir()] == ["count"]
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        files.rewrite(tmp_path / "file" / "x", lambda text: text)
