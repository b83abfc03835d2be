"""`sdcli generate`: a prompt becomes a picture."""

from __future__ import annotations

from sdcli import options, orders


@options.expand
def generate(
    prompt: options.Prompt = None,
    *,
    label: options.Label = None,
    picture: options.Picture,
    output: options.Output,
    execution: options.Execution,
) -> None:
    """Turn a prompt into a PNG, and print its path.

    sdcli generate "arctic fox"

    sdcli generate "a red owl at night" -n 4 -o owls/

    sdcli generate "arctic fox" -m sd15 --scheduler euler-a --seed 7

    sdcli generate --label "arctic fox" -m dit-256
    """
    orders.carry_out(options.given(picture, execution, prompt=prompt, label=label), output)
