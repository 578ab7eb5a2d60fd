"""Every reader on what people actually have: real excerpts, files as the toy writes them, and
broken ones.
"""

import doctest
import json
import os
import re
import subprocess
import sys

import pytest

from annotations import readers
from annotations.readers import (
    DATASETS,
    read_captions,
    read_charades,
    read_dataset,
    read_got10k,
    read_mvbench,
    read_nextgqa,
    read_perceptiontest,
    read_quality,
    read_videomme,
)
from conftest import ROOT
from data import Example
from runtime.errors import BadInput
from toy import world


def test_charades_text_and_json_read_the_same(tmp_path):
    text, js = tmp_path / "charades_sta_test.txt", tmp_path / "charades_test.json"
    text.write_text(
        "3MSZA 24.3 30.4##person turn a light on.\n3MSZA 0.0 4##a person  sits\n\nAMT7R 4.3"
        " 12.5##puts a picture up.\n",
        encoding="utf-8",
    )
    js.write_text(
        json.dumps({
            "3MSZA": {
                "duration": 30.96,
                "timestamps": [[24.3, 30.4], [0.0, 4]],
                "sentences": ["person turn a light on.", "a person sits"],
            },
            "AMT7R": {
                "duration": 30.08,
                "timestamps": [[4.3, 12.5]],
                "sentences": ["puts a picture up."],
            },
        }),
        encoding="utf-8",
    )
    a, b = read_charades(str(text), "v"), read_charades(str(js), "v")
    assert a == b and len(a) == 3
    assert a[0] == Example(
        "3MSZA/0", "grounding", "v/3MSZA.mp4", "person turn a light on", (24.3, 30.4)
    )
    assert [e.id for e in a] == ["3MSZA/0", "3MSZA/1", "AMT7R/0"]


def test_the_real_excerpts(shared):
    test = read_charades(
        os.path.join(shared, "charades_test.excerpt.json"), os.path.join(shared, "videos")
    )
    train = read_charades(
        os.path.join(shared, "charades_train.excerpt.json"), os.path.join(shared, "videos")
    )
    assert len(test) == 61 and len(train) == 48 and sum(os.path.isfile(e.video) for e in test) == 6
    assert any(
        e.answer[1] == 30.0 for e in train if e.id.startswith("Y6R7T")
    )  # beyond the clip's 29.46 s, kept


def test_malformed_lines_are_reported_with_file_and_line_and_skipped(tmp_path):
    path = tmp_path / "charades_sta_test.txt"
    lines = [
        "A 1 2##good",
        "nonsense",
        "B 5 2##ends before it starts",
        "C x y##no numbers",
        "../etc/passwd 1 2##leaves the folder",
        "D 1 2##",
        "E nan inf##z",
        "F 3 4##good",
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    said = []
    examples = read_charades(str(path), "v", said.append)
    assert [e.id for e in examples] == ["A/0", "F/0"]
    assert [int(s.split("line ")[1].split(":")[0]) for s in said] == [2, 3, 4, 5, 6, 7]
    assert all(str(path) in s for s in said)


USELESS = (
    ("", "no usable entry"),
    ("all\nwrong\n", "no usable"),
    ('{"A": {"timestamps": [[1, 2]]', "line 1: broken JSON"),
    ('{"A": {"timestamps": [[1, 2]], "sentences": []}}', "no usable"),
    ('{"A": 3, "B": {"timestamps": 4, "sentences": 5}}', "no usable"),
)


@pytest.mark.parametrize("content, says", USELESS)
def test_useless_annotation_files(tmp_path, content, says):
    path = tmp_path / "charades_sta_test.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(BadInput, match=says):
        read_charades(str(path), "v", lambda sentence: None)


def test_a_binary_annotation_file(tmp_path):
    path = tmp_path / "charades_sta_test.txt"
    path.write_bytes(b"\xff\xfe\x00\x80" * 10)
    with pytest.raises(BadInput, match="UTF-8"):
        read_charades(str(path), "v")


def test_missing_data_names_the_file_and_where_to_get_it(tmp_path):
    with pytest.raises(BadInput, match="does not exist.*TALL.*Charades_v1_480.zip"):
        read_dataset("charades", "test", str(tmp_path / "nowhere"))
    with pytest.raises(BadInput, match="no test annotations of charades.*TALL"):
        read_dataset("charades", "test", str(tmp_path))
    (tmp_path / "charades_sta_test.txt").write_text("A 1 2##x\n", encoding="utf-8")
    with pytest.raises(BadInput, match="no folder .*videos"):
        read_dataset("charades", "test", str(tmp_path))


def test_the_real_excerpts_of_the_other_data_sets(shared):
    activitynet = read_charades(os.path.join(shared, "activitynet_test.excerpt.json"), "v")
    assert (
        len(activitynet) == 36
        and activitynet[0].answer == (0.0, 4.14)
        and activitynet[0].video == "v/v_uqiMw7tQ1Cc.mp4"
    )
    got = read_got10k(os.path.join(shared, "got_val.excerpt.json"), "g")
    assert (
        len(got) == 10
        and got[0].question == "sloth"
        and got[0].answer[1] == (0.095, 0.0, 0.8, 0.79)
        and got[0].video == "g/val/GOT-10k_Val_000010"
    )
    for name, first in (("val", ("C", [(13.8, 29.8)])), ("test", ("C", [(23.0, 27.7)]))):
        gqa = read_nextgqa(os.path.join(shared, f"nextgqa_{name}.excerpt.json"), "v")
        assert (
            len(gqa) == 10
            and gqa[0].answer == first
            and len(gqa[0].options) == 5
            and not gqa[0].options[0].startswith("(A)")
        )
    quality = read_quality(os.path.join(shared, "quality_test.excerpt.json"), "v")
    assert len(quality) == 10 and {e.answer for e in quality} <= {"low quality", "high quality"}


@pytest.mark.parametrize("name", DATASETS)
def test_every_toy_data_set_is_read_by_the_reader_of_the_real_one(name, tmp_path):
    folder = world.ensure(
        name, str(tmp_path / name), **({} if DATASETS[name].train is None else {"train": 4}), test=5
    )
    said = []
    examples = read_dataset(name, "test", folder, said.append)
    assert (
        len(examples) == 5
        and not said
        and all(os.path.exists(e.video) for e in examples)
        and len({e.id for e in examples}) == 5
    )
    if DATASETS[name].train:
        train = read_dataset(name, "train", folder)
        assert len(train) >= 4 and not {e.video for e in train} & {e.video for e in examples}
    else:
        with pytest.raises(BadInput, match="only evaluated on"):
            read_dataset(name, "train", folder)


def test_got10k_folders_give_normalised_boxes_at_the_eight_frames(tmp_path):
    folder = world.ensure("got10k", str(tmp_path), train=0, test=2)
    example = read_dataset("got10k", "test", folder)[1]
    clip = world.make_clip("got10k", 1)
    times = readers.uniform_indices(int(clip.duration * world.ANNO_FPS)) / world.ANNO_FPS
    assert example.question == clip.things[0].name
    for box, t in zip(example.answer, times, strict=True):
        assert box == pytest.approx(clip.things[0].box(t), abs=1e-4)


def test_got10k_leaves_out_what_cannot_be_seen(tmp_path):
    folder = world.ensure("got10k", str(tmp_path), train=0, test=3)
    label = os.path.join(folder, "val", "got10k00001", "absence.label")
    lines = open(label, encoding="utf-8").read().splitlines()
    with open(label, "w", encoding="utf-8") as f:
        f.write("\n".join(["1", *lines[1:]]))
    os.remove(os.path.join(folder, "val", "got10k00002", "groundtruth.txt"))
    said = []
    assert [e.id for e in read_dataset("got10k", "test", folder, said.append)] == ["got10k00000"]
    assert "line 2: skipped, the object is out of sight" in said[0]
    assert "line 3" in said[1] and "groundtruth.txt" in said[1]


DAMAGES = (
    ("absence.label", lambda text: text[2:], "absence labels"),
    ("meta_info.ini", lambda text: text.replace("[METAINFO]", ""), "meta_info.ini"),
    ("groundtruth.txt", lambda text: "x" + text, "needs a folder"),
    ("00000009.jpg", None, "frames"),
)


@pytest.mark.parametrize("name, change, says", DAMAGES)
def test_a_sequence_that_is_not_whole_is_named_and_left_out(tmp_path, name, change, says):
    """Boxes and frames are paired by number: where one is missing, all later pairs are wrong."""
    folder = world.ensure("got10k", str(tmp_path), train=0, test=2)
    sequence = os.path.join(folder, "val", "got10k00001")
    if change:
        rewrite(sequence, name, change)
    else:
        os.remove(os.path.join(sequence, name))
    said = []
    assert [e.id for e in read_dataset("got10k", "test", folder, said.append)] == ["got10k00000"]
    assert len(said) == 1 and "line 2: skipped" in said[0] and says in said[0]


def rewrite(folder, name, change):
    with open(os.path.join(folder, name), encoding="utf-8") as f:
        text = f.read()
    with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
        f.write(change(text))


def test_one_bad_question_of_an_entry_costs_that_one_alone(tmp_path):
    said = []
    (tmp_path / "c.json").write_text(
        '\ufeff{"A": {"timestamps": [[1, 2], [3, "x"], [4, 1]], "sentences": ["a", "b", "c"]}}',
        encoding="utf-8",
    )  # a byte order mark, too
    assert [e.id for e in read_charades(str(tmp_path / "c.json"), "v", said.append)] == ["A/0"]
    assert len(said) == 2 and all("c.json, line 1: entry 'A', number" in s for s in said)
    good = {"id": 0, "question": "q?", "options": ["a", "b", "c"], "answer_id": 2}
    pt = {"v": {"mc_question": [good, good | {"id": 1, "answer_id": 7}, good | {"id": 2}]}}
    assert [
        e.id for e in read_perceptiontest(write(tmp_path / "p.json", pt), "v", said.append)
    ] == ["v/0", "v/2"]


def test_files_that_no_program_wrote(tmp_path):
    with pytest.raises(BadInput, match="no usable"):
        path = write(tmp_path / "captions.json", [{"video": "a.mp4", "events": "a boy runs"}])
        read_captions(path, "v", lambda line: None)
    (tmp_path / "n.json").write_text("[" + "1" * 6000 + "]", encoding="utf-8")
    with pytest.raises(BadInput, match="broken JSON"):
        read_quality(str(tmp_path / "n.json"), "v")
    (tmp_path / "test.parquet").write_bytes(b"no parquet")
    with pytest.raises(BadInput, match="parquet"):
        read_videomme(str(tmp_path / "test.parquet"), "v")


def write(path, content):
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return str(path)


VIDEOMME = {
    "question_id": "001-1",
    "videoID": "fFjv93ACGo8",
    "duration": "short",
    "question": "What?",
    "options": ["A. a cat.", "B. a dog."],
    "answer": "B",
}
MVBENCH = {
    "video": "ZS9XR.mp4",
    "question": "What?",
    "candidates": ["Ate.", "Ran."],
    "answer": "Ran.",
    "start": 1.5,
    "end": 9.0,
}
PERCEPTIONTEST = {
    "id": 0,
    "question": "q?",
    "options": ["a", "b", "c"],
    "answer_id": 2,
    "area": "memory",
}


def test_videomme(tmp_path):
    said, bad = [], VIDEOMME | {"question_id": "001-2", "answer": "E"}
    path = write(tmp_path / "videomme.json", [VIDEOMME, bad])
    (e,) = read_videomme(path, "v", said.append)
    assert (e.answer, e.options, e.group, e.task) == ("B", ("a cat.", "a dog."), "short", "qa")
    assert len(said) == 1 and "line 13" in said[0]


def test_mvbench(tmp_path):
    said, bad = [], {"video": "../a", "question": "q", "candidates": ["x", "y"], "answer": "x"}
    path = write(tmp_path / "action_sequence.json", [MVBENCH, bad])
    (e,) = read_mvbench(path, "v", said.append)
    assert (e.answer, e.span, e.group) == ("B", (1.5, 9.0), "action_sequence")
    assert e.video == "v/star/Charades_v1_480/ZS9XR.mp4" and len(said) == 1
    path = write(tmp_path / "episodic_reasoning.json", [MVBENCH | {"video": "castle_s01"}])
    (e,) = read_mvbench(path, "v")
    assert e.video == "v/tvqa/frames_fps3_hq/castle_s01"


def test_perceptiontest_and_captions(tmp_path):
    entries = {"video_8241": {"metadata": {}, "mc_question": [PERCEPTIONTEST]}}
    (e,) = read_perceptiontest(write(tmp_path / "mc_question_valid.json", entries), "v")
    assert (e.id, e.answer, e.group, e.video) == ("video_8241/0", "C", "memory", "v/video_8241.mp4")
    entries = [{"video": "a.mp4", "events": ["A dog runs.", "it  stops"]}]
    (e,) = read_captions(write(tmp_path / "captions_train.json", entries), "v")
    assert e.answer == ["A dog runs", "it stops"]


def test_names_never_lead_out_of_the_folder(tmp_path):
    for bad in ("../x.mp4", "/etc/passwd", "a/../../b", "", "a//b", "..", "a\x00b"):
        with pytest.raises(BadInput, match="no usable"):
            path = write(tmp_path / "q.json", [{"video": bad, "answer": "low quality"}])
            read_quality(path, "v", lambda line: None)


@pytest.mark.slow
def test_files_of_full_size_are_read_in_seconds(tmp_path):
    entries = [
        {
            "id": str(i),
            "video": f"{i % 997}/{i}.mp4",
            "question": "why",
            "options": [f"({c}) x{c}" for c in "ABCDE"],
            "glue": [[1, 2]],
            "answer": "(C)",
        }
        for i in range(34_132)
    ]
    assert len(read_nextgqa(write(tmp_path / "nextgqa_val.json", entries), "v")) == 34_132


def test_examples_in_docstrings():
    assert doctest.testmod(readers).failed == 0


# Mistakes that would show much later --------------------------------------------------------------


def test_as_many_intervals_as_sentences(tmp_path):
    """zip would cut the longer list off, and give the first sentences the first intervals, right or
    not.
    """
    for times, sentences in (([[1, 2], [3, 4]], ["a"]), ([[1, 2]], ["a", "b"])):
        entries = {
            "A": {"timestamps": times, "sentences": sentences},
            "B": {"timestamps": [[1, 2]], "sentences": ["c"]},
        }
        said = []
        assert [
            e.id for e in read_charades(write(tmp_path / "c.json", entries), "v", said.append)
        ] == ["B/0"]
        assert (
            len(said) == 1 and "equally many 'timestamps' [start, end] and 'sentences'" in said[0]
        )


def test_captions_need_a_list_with_something_in_it(tmp_path):
    said, good = [], {"video": "b.mp4", "events": ["a dog runs"]}
    for events in ([], "a dog runs", None, ["a dog runs", " . "]):
        path = write(tmp_path / "captions_test.json", [{"video": "a.mp4", "events": events}, good])
        assert [e.id for e in read_captions(path, "v", said.append)] == ["b.mp4/1"]
    assert len(said) == 4 and all(
        "'events' is no list of sentences, or an empty one" in line for line in said[:3]
    )


def nextgqa(folder, ids):
    os.makedirs(folder / "videos", exist_ok=True)
    entries = [
        {
            "id": i,
            "video": f"{k}.mp4",
            "question": "why",
            "options": ["a", "b"],
            "glue": [[1, 2]],
            "answer": "(A)",
        }
        for k, i in enumerate(ids)
    ]
    write(folder / "nextgqa_test.json", entries)
    return str(folder)


def test_repeated_ids_are_numbered_and_said(tmp_path):
    """Answers are kept by id: the answer to the first would be scored for both."""
    said = []
    examples = read_dataset(
        "nextgqa", "test", nextgqa(tmp_path, ["a", "b", "a", "a#2", "a", "c", "b"]), said.append
    )
    assert [e.id for e in examples] == ["a", "b", "a#3", "a#2", "a#4", "c", "b#2"]
    assert [e.video[-5] for e in examples] == list("0123456")  # the order of the file
    repeated = "nextgqa_test.json: 3 example(s) have the id of an earlier one"
    assert len(said) == 1 and f"{repeated}, so the second 'a' is 'a#3' here" in said[0]
    read_dataset("nextgqa", "test", nextgqa(tmp_path, ["a", "b"]), said.append)
    assert len(said) == 1
    # In seconds, too, where there are many:
    many = read_dataset("nextgqa", "test", nextgqa(tmp_path, ["a"] * 20_000), said.append)
    assert len({e.id for e in many}) == 20_000


def test_half_a_character_is_left_out_where_it_is_read(tmp_path):
    r"""JSON's "\ud800" alone: Python reads it, and no file, terminal or tokenizer takes it."""
    good = VIDEOMME
    bad = [
        good | change
        for change in (
            {"question": "Who \ud800?"},
            {"options": ["A. \udfff", "B. b"]},
            {"question_id": "\ud800"},
            {"videoID": "\ud800"},
            {"duration": "\ud800"},
        )
    ]
    said = []
    path = write(tmp_path / "videomme.json", [*bad, good | {"question": "a whole one: \U0001f600"}])
    (example,) = read_videomme(path, "v", said.append)
    assert example.question == "a whole one: \U0001f600" and len(said) == 5
    assert (
        "line 2: entry 0, skipped, a text in it holds half a character (\\ud800 alone)" in said[0]
    )
    for line in said:
        line.encode("utf-8")


def test_nesting_200000_deep_is_one_sentence(tmp_path):
    for deep in ("[" * 200_000, '[{"video": ' + "[" * 200_000 + "]" * 200_000 + "}]"):
        (tmp_path / "q.json").write_text(deep, encoding="utf-8")
        with pytest.raises(BadInput, match="line 1: broken JSON"):
            read_quality(str(tmp_path / "q.json"), "v")


# The command --------------------------------------------------------------------------------------


def command(*args, **changes):
    done = subprocess.run(
        [sys.executable, "-m", "annotations", *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | changes,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_command_counts_and_shows_the_first(tmp_path):
    folder = world.ensure("mvbench", str(tmp_path / "toy"), test=10)
    path = os.path.join(folder, "json", "action_count.json")
    code, out, err = command("mvbench", path, path)
    assert (
        code == 0
        and out.count(
            f"{path}: 2 examples about 2 videos; the first:\n  Example(id='action_count/0',"
            " task='qa'"
        )
        == 2
        and not err
    )
    first = out.splitlines()[1]
    assert os.path.exists(
        first.split("video='")[1].split("'")[0]
    )  # the clip is found beside the file


@pytest.mark.slow
def test_mistakes_of_the_command_are_named(tmp_path):
    code, out, err = command("charades", str(tmp_path / "no.txt"))
    assert code == 2 and not out and len(err.splitlines()) == 1
    assert re.search("error: annotation file .*no.txt does not exist", err)
    for args, says in (
        (["nowhere", "x"], "charades.*activitynet"),
        ([], "FILE"),
        (["mvbench"], "FILE"),
    ):
        code, out, err = command(*args)
        assert code == 2 and not out and "usage: python -m annotations" in err
        assert re.search(says, err.splitlines()[-1])


@pytest.mark.slow
def test_help_ends_well_whatever_reads_it():
    code, out, err = command("--help")
    assert (
        code == 0
        and not err
        and "usage: python -m annotations" in out
        and all(name in out for name in DATASETS)
    )
    assert command("-h", LC_ALL="C", PYTHONUTF8="0", PYTHONIOENCODING="ascii")[0] == 0
    ends = subprocess.run(
        ["bash", "-c", f"set -o pipefail; '{sys.executable}' -m annotations --help | head -1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ends.returncode == 0 and not ends.stderr and len(ends.stdout.splitlines()) == 1


def test_a_reader_that_goes_away_early(tmp_path):
    """More output than a pipe holds, and nobody reads on."""
    path = write(tmp_path / "q.json", [{"video": "a.mp4", "answer": "low quality"}])
    line = f"'{sys.executable}' -m annotations quality {f'{path} ' * 1000} | head -1"
    ends = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], cwd=ROOT, capture_output=True, text=True
    )
    assert ends.returncode == 0 and not ends.stderr
