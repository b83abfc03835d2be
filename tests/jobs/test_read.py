"""Reading jobs: the formats, and what is said of lines that cannot be read."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdcli.errors import InputError, InvalidRecipe, UsageError
from sdcli.jobs.job import KEYS, Fault, Job
from sdcli.jobs.read import MAX_LINE, guess, read
from sdcli.recipe.recipe import Recipe


def values_of(data: bytes, source: str = "-", format: str | None = None) -> list[dict]:
    found = read(data, source, format)
    assert all(isinstance(job, Job) for job in found), found
    return [dict(job.values) for job in found]


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (b'{"prompt": "a fox"}', "jsonl"),
        (b"{", "jsonl"),
        (b"{prompt: 1}", "jsonl"),
        (b'[{"prompt": 1}]', "jsonl"),
        (b"[", "jsonl"),
        (b'["a"', "jsonl"),
        (b"{red|blue} fox", "text"),
        (b"{|blue} fox", "text"),
        (b"[fox] in snow", "text"),
        (b"prompt,seed", "csv"),
        (b'"prompt","seed"', "csv"),
        (b"seed, prompt\r", "csv"),
        (b"prompt", "csv"),
        (b"prompt,sede", "csv"),  # and then refused for it
        (b"a fox, prompt and ready", "text"),
        (b"a fox", "text"),
        (b"\xff\xff", "text"),
    ],
)
def test_the_first_line_tells_the_format(first, expected):
    assert guess([b"", b"  \r", first, b'{"prompt": "x"}']) == expected


def test_the_suffix_tells_before_the_first_line_and_an_option_before_both():
    assert values_of(b"{a fox}\n", "fox.txt") == [{"prompt": "{a fox}"}]
    assert values_of(b'{"prompt": "a"}\n', "a.csv", "jsonl") == [{"prompt": "a"}]
    assert values_of(b'{"prompt": "a"}\n', "a.jsonl", "text") == [{"prompt": '{"prompt": "a"}'}]
    assert isinstance(read(b"a fox\n", "fox.NDJSON")[0], Fault)
    with pytest.raises(UsageError, match="toml"):
        read(b"", "-", "toml")


FOX = [{"prompt": "a fox", "seed": 7}, {"prompt": "an owl", "seed": 8}]


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("delimiter", [b",", b"\t", b";", b"|"])
@pytest.mark.parametrize("source", ["-", "jobs", "jobs.csv", "jobs.tsv", "jobs.txt"])
def test_a_table_is_one_however_it_is_written(source, delimiter, end, bom):
    rows = [[b"Prompt", b"", b"SEED", b""], [b"a fox", b"", b"7", b""], [b'"an owl"', b"", b"8"]]
    assert values_of(bom + b"".join(delimiter.join(row) + end for row in rows), source) == FOX


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"sep=;\r\nprompt;seed\r\na fox;7\r\nan owl;8\r\n", FOX),
        (b"seed;Prompt;Negative Prompt\n7;a fox;\n8;an owl;", FOX),
        (b"Label\tseed\nfox\t7\n", [{"label": "fox", "seed": 7}]),
        (
            b"prompt,sampler,cfg_scale,size,seed\na,DPM++ 2M Karras,3,64x128,-1\n",
            [
                {
                    "prompt": "a", "scheduler": "dpm++-2m", "sigmas": "karras", "guidance_scale": 3.0,
                    "width": 64, "height": 128, "seed": -1,
                }
            ],
        ),
    ],
)  # fmt: skip
def test_tables_of_spreadsheets_and_other_tools(data, expected):
    assert values_of(data) == expected


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"a fox\t7\nan owl\t8\n", "line 1 has a tab"),
        (b"Text\tPrompt (en)\na\tb\n", "line 1 has a tab"),
        (b"Text;Seed\na fox;7\n", "unknown key 'Text'"),
        (b"seed\tsteps\n7\t8\n", "no column named prompt"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_and_not_drawn(data, words):
    with pytest.raises(InputError, match=re.escape(words)):
        read(data, "-")
    assert all(isinstance(job, Job) for job in read(data, "-", "text"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"seed, sprout\nrain\n", "looks like the header of a table"),
        (b"a fox;7\nan owl;8\n", "a table without a header"),
        (b"a fox\n# an owl\n", "line 2 of - is drawn as a prompt, and starts with #"),
        (b'a fox\n{"prompt": "x"}\n', "looks like JSON"),
        (b"a fox, an owl\na cat; a dog\n", None),
    ],
)
def test_prompts_that_look_like_something_else_are_warned_of(data, words):
    told: list[str] = []
    assert len(read(data, "-", warn=told.append)) == 2
    assert (words is None and not told) or words in told[0]
    told.clear()
    read(data, "-", "text", warn=told.append)
    assert told == []


@pytest.mark.parametrize(
    "data",
    [
        b"# cats\na fox\n  # dogs\nan owl\n",
        b'# cats\n{"prompt": "a fox"}\n{"prompt": "an owl"}\n',
        b"# cats\nprompt,seed\na fox,\n# x\nan owl,\n",
    ],
)
def test_comments_are_skipped_if_asked(data):
    assert [job.values["prompt"] for job in read(data, "-", comments=True)] == ["a fox", "an owl"]


def test_num_images_is_a_whole_number():
    (job, *faults) = read(
        b'{"prompt": "a", "num_images": 3}\n{"prompt": "a", "num_images": 0}\n{"prompt": "a", "num_images": true}', "-"
    )
    assert (job.num_images, job.values) == (3, {"prompt": "a"})
    assert ["num_images is" in fault.message for fault in faults] == [True, True]
    (job, fault) = read(b"prompt,num_images\na,3\na,x\n", "-")
    assert (job.num_images, fault.field) == (3, "num_images")


def test_what_a_name_of_another_tool_sets_too_is_set_twice():
    (fault,) = read(b'{"prompt": "a", "width": 64, "size": "64x64"}', "-")
    assert "set twice" in fault.message
    assert isinstance(read(b'{"seed": 1}', "-", supplied=["prompt"])[0], Job)


def test_one_decision_holds_for_the_whole_stream():
    assert values_of(b'a fox\n{"prompt": "x"}\n')[1] == {"prompt": '{"prompt": "x"}'}
    assert isinstance(read(b'{"prompt": "x"}\na fox\n', "-")[1], Fault)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xef\xbb\xbfa fox\r\n\r\n  a cat \r\n", [(1, "a fox"), (3, "a cat")]),
        (b'\xef\xbb\xbf{"prompt": "a fox"}\r\n\n{"prompt": "a\xe2\x80\xa8cat"}', [(1, "a fox"), (3, "a\u2028cat")]),
        (b"\xef\xbb\xbfprompt,seed\r\n\r\na fox,1\r\n,2\r\n", [(3, "a fox"), (4, "")]),
        (b'prompt\n"a fox\nin snow"\n"a ""cat"""', [(2, "a fox\nin snow"), (4, 'a "cat"')]),
        (b"", []),
        (b"\n \n\r\n", []),
    ],
)
def test_lines_are_counted_as_an_editor_counts_them(data, expected):
    assert [(job.line, job.values["prompt"]) for job in read(data, "-")] == expected


def test_values_take_their_key_s_type():
    csv = b"prompt,steps,guidance_scale,prompt_weights,negative_prompt,id,output\na fox,7,3,FALSE,,007,a.png\n"
    (job,) = read(csv, "jobs.csv")
    assert dict(job.values) == {"prompt": "a fox", "steps": 7, "guidance_scale": 3.0, "prompt_weights": False}
    assert type(job.values["guidance_scale"]) is float
    assert (job.id, job.output) == ("007", "a.png")
    (job,) = read(b'{"id": 7, "prompt": "a", "seed": null, "guidance_scale": 3}', "-")
    assert (job.id, dict(job.values)) == (7, {"prompt": "a", "guidance_scale": 3.0})


@pytest.mark.parametrize(
    ("line", "column", "field", "words"),
    [
        (b'{"prompt": "a", "steps": 0}', 26, "steps", "between 1 and 1000"),
        (b'{"steps": "9", "prompt": "a"}', 11, "steps", "a whole number"),
        (b'{"steps": true, "prompt": "a"}', 11, "steps", "a whole number"),
        (b'{"prompt": ["a"]}', 12, "prompt", "must be text"),
        (b'{"prompt": "a", "promt": 1}', 26, "promt", "did you mean 'prompt'"),
        (b'{"prompt": "a", "scheduler": "eulr"}', 30, "scheduler", "did you mean 'euler'"),
        (b'{"seed": 1}', 1, "prompt", "missing"),
        (b'{"prompt": null}', 1, "prompt", "missing"),
        (b'{"prompt": "a", "prompt": "b"}', 17, "prompt", "twice"),
        (b'{"prompt": "a", "seed": NaN}', 25, "seed", "NaN"),
        (b'{"prompt": "a", "guidance_scale": -Infinity}', 35, "guidance_scale", "Infinity"),
        (b'{"prompt": "a", "guidance_scale": 1e999}', 35, "guidance_scale", "1e999"),
        (b'{"prompt": "a", "guidance_scale": 1' + b"0" * 400 + b"}", 35, "guidance_scale", "a number"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", 25, "seed", "a number has 5,000 digits"),
        (b'{"prompt": ' + b"[" * 100_000, 12, "prompt", "nested too deeply"),
        (b'{"prompt": "\\ud800"}', 12, "prompt", "Unicode"),
        (b'{"\\ud800": 1, "prompt": "a"}', 12, "\\ud800", "unknown key"),
        (b'{"prompt": "a"', 15, "prompt", "expected a comma"),
        (b'{"prompt": "a', 12, "prompt", "unterminated string"),
        (b'{"prompt": }', 12, "prompt", "expecting value"),
        (b'{"prompt" "a"}', 11, "prompt", "colon"),
        (b'{"prompt": "a" "seed": 1}', 16, "prompt", "comma"),
        (b'{"prompt": "a",}', 16, None, "comma before the end"),
        (b"{'prompt': 'a'}", 2, None, "double quotes"),
        (b'{"prompt": "a"} x', 17, None, "more text"),
        (b'["a"]', 1, None, "not a JSON object"),
        (b"null", 1, None, "not a JSON object"),
        (b"a fox", 1, None, "not a JSON object"),
        (b'{"prompt": "f\xc3\xb6x \xff"}', 17, None, "0xff is not UTF-8"),
        (b'{"prompt": "a\x00"}', 14, "prompt", "control character"),
        (b'{"prompt": "a", "id": 1.5}', 23, "id", "text or a whole number"),
        (b'{"prompt": "a", "id": true}', 23, "id", "text or a whole number"),
        (b'{"prompt": "a", "output": 1}', 27, "output", "must be text"),
    ],
)
def test_a_fault_says_what_is_wrong_and_where(line, column, field, words):
    before, fault, after = read(b'{"prompt": "x"}\n' + line + b'\n{"prompt": "y"}\n', "-")
    assert isinstance(before, Job)
    assert isinstance(after, Job)
    assert (fault.line, fault.column, fault.field) == (2, column, field)
    assert words in fault.message
    assert fault.message.startswith(f"line 2, column {column}")
    assert len(fault.message) < 450
    fault.message.encode()


def test_a_fault_keeps_the_id_that_was_read_before_it():
    faults = read(b'{"id": "x", "prompt": "a", "seed": -1}\n{"id": 7, "prompt": \n{"id": [], "a": 1}\n', "a.jsonl")
    assert [fault.id for fault in faults] == ["x", 7, None]


def test_a_huge_line_is_a_fault_and_the_next_is_read():
    for format, head in (("jsonl", b""), ("text", b""), ("csv", b"prompt\n")):
        long = b'{"prompt": "' + b"x" * MAX_LINE + b'"}'
        *_, fault, job = read(
            head + long + b'\n{"prompt": "a"}'.replace(b'"', b"" if format == "csv" else b'"'), "-", format
        )
        assert isinstance(fault, Fault)
        assert isinstance(job, Job)


@pytest.mark.parametrize(
    ("row", "column", "field", "words"),
    [
        (b"a,x,1", 2, "seed", "whole number"),
        (b"a,1,99999", 3, "steps", "between 1 and 1000"),
        (b"a,1", 3, None, "2 fields, and the header has 3"),
        (b"a,1,2,3", 4, None, "4 fields, and the header has 3"),
        (b"\xff,1,2", 1, "prompt", "Unicode"),
        (b"a,nan,2", 2, "seed", "whole number"),
        (b'"a" b,1,2', 1, None, "expected after"),
        (b"a\rb,1,2", 1, None, "new-line"),
    ],
)
def test_csv_s_columns_are_its_cells(row, column, field, words):
    fault, job = read(b"prompt,seed,steps\n" + row + b"\na fox,1,2\n", "jobs.csv")
    assert (fault.line, fault.column, fault.field) == (2, column, field)
    assert words in fault.message
    assert job.values == {"prompt": "a fox", "seed": 1, "steps": 2}


def test_a_quote_that_is_never_closed_is_told_where_it_opened():
    assert read(b'prompt\na\n"b\nc\nd\n', "jobs.csv")[1:] == [Fault(3, "a quoted field is not closed", 1)]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"prompt,sede\n", "column 2: unknown key 'sede'"),
        (b"prompt,seed,prompt\n", "column 3: prompt occurs twice"),
        (b"seed\n1\n", "there is no column named prompt"),
        (b'"prompt\n', "line 1: "),
        ("prompt\na".encode("utf-16"), "UTF-16"),
    ],
)
def test_a_file_of_which_no_line_can_be_read_is_refused(data, words):
    with pytest.raises(InputError, match=words):
        read(data, "jobs.csv")


@given(st.binary(max_size=200), st.sampled_from(["jsonl", "csv", "text", None]))
def test_no_bytes_crash_it(data, format):
    try:
        found = read(data, "-", format)
    except InputError:
        return
    bom = b"\xef\xbb\xbf"
    lines = [each.removeprefix(bom) for each in data.split(b"\n" if b"\n" in data else b"\r")]
    assert all(1 <= item.line <= len(lines) for item in found)
    if format in ("jsonl", "text"):
        assert [item.line for item in found] == [number for number, line in enumerate(lines, 1) if line.strip()]


def recipes():
    text = st.text(st.characters(codec="utf-8"), max_size=20)
    return st.fixed_dictionaries(
        {"prompt": text},
        optional={
            "negative_prompt": text,
            "seed": st.integers(0, 2**32 - 1),
            "steps": st.integers(1, 1000),
            "guidance_scale": st.floats(0, 100),
            "prompt_weights": st.booleans(),
            "scheduler": st.sampled_from(["ddim", "euler"]),
        },
    )


@given(recipes(), st.booleans())
def test_json_is_read_as_json_reads_it(values, ascii):
    line = json.dumps(values, ensure_ascii=ascii)
    (job,) = read(line.encode(), "-", "jsonl")
    assert dict(job.values) == values
    for key, column in job.columns.items():
        assert json.JSONDecoder().raw_decode(line, column - 1)[0] == values[key]


def malformed():
    """Lines that are no job, each near to being one in its own way."""
    good = recipes().map(json.dumps)
    wrong = st.sampled_from(sorted(set(KEYS) - {"id", "output"})).flatmap(
        lambda key: st.sampled_from([[], {}, {"a": [1]}, -1e9 if key not in ("prompt", "model") else 1]).map(
            lambda value: json.dumps({"prompt": "a", key: value})
        )
    )
    unknown = st.text(min_size=1, max_size=8).filter(lambda key: key not in KEYS)
    return st.one_of(
        good.flatmap(lambda line: st.integers(1, len(line) - 1).map(lambda end: line[:end])).map(str.encode),
        wrong.map(str.encode),
        unknown.map(lambda key: json.dumps({"prompt": "a", key: 1}).encode()),
        st.binary(min_size=1, max_size=40).map(lambda data: b"\xff" + data.replace(b"\n", b"")),
        st.binary(max_size=20).map(lambda data: b'{"prompt": ' + data.replace(b"\n", b"")),
        st.sampled_from(["NaN", "Infinity", "-Infinity", "1e999"]).map(
            lambda number: f'{{"prompt": "a", "guidance_scale": {number}}}'.encode()
        ),
        st.sampled_from(KEYS).map(lambda key: f'{{"prompt": "a", "{key}": null, "{key}": null}}'.encode()),
        st.integers(1000, 50_000).map(lambda depth: b'{"prompt": ' + b"[" * depth),
    ).filter(lambda line: not is_a_job(line))


def is_a_job(line: bytes) -> bool:
    """Whether json and the recipe's own check take it, found without the code under test."""
    try:
        pairs = json.loads(line, object_pairs_hook=list, parse_constant=lambda name: [])
        assert len(dict(pairs)) == len(pairs)
        said = {key: value for key, value in dict(pairs).items() if value is not None}
        plain = {"model": "m", "steps": 1, "guidance_scale": 1, "scheduler": "ddim"}
        size = {"width": 64, "height": 64, "seed": 0}
        Recipe.from_dict({**plain, **size, **{key: said[key] for key in said if key not in ("id", "output")}})
    except (ValueError, TypeError, AssertionError, RecursionError, OverflowError, InvalidRecipe):
        return False
    return True


def test_a_thousand_malformed_lines_each_get_a_line_that_says_what_is_wrong_and_where(run, tmp_path):
    lines: list[bytes] = []

    @settings(max_examples=1100, deadline=None, database=None)
    @given(malformed())
    def collect(line):
        (fault,) = read(b"\n" + line, "-", "jsonl")
        assert isinstance(fault, Fault), line
        assert fault.line == 2
        assert fault.column is not None
        assert 1 <= fault.column <= len(line) + 1
        assert fault.message.startswith(f"line 2, column {fault.column}")
        lines.append(line)

    collect()
    assert len(lines) >= 1000
    done = run("batch", "-", "--format", "jsonl", "-o", "out", stdin=b"\n".join(lines[:1000]))
    said = [json.loads(line) for line in done.stdout.decode().removesuffix("\n").split("\n")]
    assert done.status == 7
    assert [line["line"] for line in said] == list(range(1, 1001))
    assert {line["status"] for line in said} == {"failed"}
    assert all(line["error"].startswith(f"line {line['line']}, column {line['column']}") for line in said)
    assert all(line["field"] in line["error"] for line in said if line["field"] and line["field"].isalnum())
    assert "Traceback" not in done.stderr
