"""lib/flags.py: numbers have ranges, mistakes are one sentence, --help shows defaults."""

import argparse

import pytest
import torch

import eval as evaluate
import train
from lib.errors import BadInput
from lib.flags import number, parser_of
from training.settings import TRAIN_FLAGS


@pytest.mark.parametrize("program", [train, evaluate])
def test_every_number_among_the_flags_has_a_range(program, monkeypatch):
    seen = []
    monkeypatch.setattr(
        argparse.ArgumentParser, "parse_args", lambda p, argv: seen.append(p) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        program.parse_args([])
    assert {action.type for action in seen[0]._actions} & {int, float} == set()


def test_numbers_out_of_range_are_one_sentence():
    for flag, value in (("--lr", "nan"), ("--fps", "0"), ("--seed", "-1"), ("--grad-clip", "-inf")):
        with pytest.raises(BadInput, match=f"^{flag} must be a .*number in .*got {value}"):
            train.parse_args([f"{flag}={value}"])
    assert train.parse_args("--grad-clip inf --beta 0 --seed 0".split()).grad_clip == float("inf")


@pytest.mark.parametrize(
    "kind, interval, good, bad",
    [
        (int, "[1, inf)", ["1", "9" * 30], ["0", "1.5", "nan"]),
        (float, "(0, 2]", ["0.1", "2"], ["0", "2.1", "nan", "x"]),
        (float, "(0, inf]", ["inf"], ["0", "nan"]),
    ],
)
def test_intervals_hold_their_ends_or_not(kind, interval, good, bad):
    read = number(kind, interval)["type"]
    assert [read(text) for text in good] == [kind(text) for text in good]
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match="must be"):
            read(text)


def test_help_shows_defaults_and_a_mistake_is_one_sentence():
    table = {"a": [("--seed", number(int, "[0, inf)") | {"default": 1}, "of sampling")]}
    parser = parser_of("what it does", table)
    assert "of sampling (default: 1)" in parser.format_help()
    with pytest.raises(BadInput, match=r"^--seed must be a whole number in \[0, inf\): got x$"):
        parser.parse_args(["--seed", "x"])
    shown = " ".join(parser_of("", TRAIN_FLAGS).format_help().split())
    assert "(default: 0.04)" in shown and "(toy model: 300; others: one pass" in shown


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device, says", [("cuda:1", "no CUDA GPU"), ("banana", "finds cpu")])
def test_a_device_that_is_not_there(device, says):
    ask = ["--video", "x.mp4", "--ask", "?"]
    for program, args in ((train, []), (evaluate, ["--bench", "charades"]), (evaluate, ask)):
        with pytest.raises(BadInput, match=says):
            program.parse_args([*args, "--device", device])
