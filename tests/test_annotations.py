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

from annotations import entries as files
from annotations import training_sets
from annotations.benchmarks import (
    MVBENCH_FOLDERS,
    read_dream1k,
    read_longvideobench,
    read_mvbench,
    read_perceptiontest,
    read_videomme,
)
from annotations.readers import DATASETS, read_dataset
from annotations.training_sets import (
    even_frames,
    read_captions,
    read_charades,
    read_got10k,
    read_nextgqa,
    read_quality,
)
from conftest import ROOT
from data import Example
from lib.errors import BadInput
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
    frames = even_frames(int(clip.duration * world.ANNO_FPS))
    times = frames / world.ANNO_FPS
    assert example.frames == tuple(frames.tolist())
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


def test_examples_in_docstrings():
    assert doctest.testmod(files).failed == doctest.testmod(training_sets).failed == 0


# Files as their authors publish them --------------------------------------------------------------


def official(shared, *names):
    path = os.path.join(shared, "official", *names)
    if not os.path.exists(path):
        pytest.skip(f"{path} is not here")
    return path


COUNTS = {
    "train.json": ("charades", 24),
    "nextgqa_test.json": ("nextgqa", 12),
    "nextgqa/test.csv": ("nextgqa", 55),
    "Quality_Access_100shot.json": ("quality", 20),
    "Quality_Access_test.json": ("quality", 20),
}


@pytest.mark.parametrize("name, expected", COUNTS.items())
def test_every_entry_of_the_published_pieces_is_read(shared, name, expected):
    data_set, count = expected
    said = []
    path = official(shared, *name.split("/"))
    assert len(DATASETS[data_set].reader(path, "v", said.append)) == count and not said


def test_upstream_names_are_found(shared, tmp_path):
    """A folder of links to the files, under the names that they are downloaded with."""
    for name, links in {
        "charades": {"train.json": "train.json", "charades_test.json": "train.json"},
        "quality": {n: n for n in ("Quality_Access_100shot.json", "Quality_Access_test.json")},
        "nextgqa": {
            n: f"nextgqa/{n}" for n in ("test.csv", "gsub_test.json", "map_vid_vidorID.json")
        },
    }.items():
        (tmp_path / name / "videos").mkdir(parents=True)
        for link, target in links.items():
            os.symlink(official(shared, *target.split("/")), tmp_path / name / link)
        said = []
        assert read_dataset(name, "test", str(tmp_path / name), said.append) and not said
    assert len(read_dataset("charades", "train", str(tmp_path / "charades"))) == 24
    assert len(read_dataset("quality", "train", str(tmp_path / "quality"))) == 20


def test_the_authors_table_of_nextgqa_says_what_the_json_says(shared):
    table = read_nextgqa(official(shared, "nextgqa", "test.csv"), "v")
    by_id = {e.id: e for e in table}
    both = [
        (e, by_id[e.id])
        for e in read_nextgqa(official(shared, "nextgqa_test.json"), "v")
        if e.id in by_id
    ]
    assert len(both) == 8 and all(a == b for a, b in both)


def test_evidence_before_the_video_begins_at_zero(shared, tmp_path):
    starts = [
        start
        for e in read_nextgqa(official(shared, "nextgqa_test.json"), "v")
        for start, _ in e.answer[1]
    ]
    assert starts.count(0.0) == 3 and min(starts) == 0.0
    entry = NEXTGQA | {"glue": [[-0.0, 2], [-0.1, 3.5], [4, 5]]}
    (e,) = read_nextgqa(write(tmp_path / "nextgqa_test.json", [entry]), "v")
    assert repr(e.answer[1]) == "[(0.0, 2.0), (0.0, 3.5), (4.0, 5.0)]"  # no -0.0
    said = []
    path = write(tmp_path / "nextgqa_test.json", [entry, entry | {"glue": [[-2, -1]]}])
    assert len(read_nextgqa(path, "v", said.append)) == 1 and "0 to -1 is no interval" in said[0]


NEXTGQA = {
    "id": "1_0",
    "video": "1101/1.mp4",
    "question": "why",
    "options": ["(A) x", "(B) y"],
    "glue": [[1, 2]],
    "answer": "(A)",
}
TABLE = """video_id,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4
1,719,320,240,"what, then",lay on floor,8,TN,clap,sit down,lay on floor,pick it up,crawl
1,719,320,240,why,run,9,CW,clap,sit down,lay on floor,pick it up,crawl
2,719,320,240,why,clap,0,CW,clap,sit down,lay on floor,pick it up,crawl
1,719,320,240,why,clap,7,CW,clap,sit down,lay on floor,pick it up,crawl
"""


def test_a_table_with_holes_names_each(tmp_path):
    (tmp_path / "test.csv").write_text(TABLE, encoding="utf-8")
    seconds = {"1": {"location": {"8": [[-0.1, 2], [3, 4]], "9": [[1, 2]]}}}
    write(tmp_path / "gsub_test.json", seconds)
    write(tmp_path / "map_vid_vidorID.json", {"1": "1101/1"})
    said = []
    (e,) = read_nextgqa(str(tmp_path / "test.csv"), "v", said.append)
    assert (e.id, e.video, e.question) == ("1_8", "v/1101/1.mp4", "what, then")
    assert e.answer == ("C", [(0.0, 2.0), (3.0, 4.0)]) and e.group == "TN"
    assert [int(s.split("line ")[1].split(":")[0]) for s in said] == [3, 4, 5]
    assert "'run' is none of the 5 options" in said[0] and "no seconds for question 0" in said[1]
    os.remove(tmp_path / "gsub_test.json")
    with pytest.raises(BadInput, match="gsub_test.json does not exist"):
        read_nextgqa(str(tmp_path / "test.csv"), "v")


def test_letters_of_options_go_only_if_all_have_their_own(tmp_path):
    for options, bare in (
        (["A. a cat", "B. a dog"], ("a cat", "a dog")),
        (["(A) a cat", "(B) a dog"], ("a cat", "a dog")),
        (["A. Lincoln", "G. Washington"], ("A. Lincoln", "G. Washington")),
        (["I) the first", "the second"], ("I) the first", "the second")),
        (["A. a cat", "a dog"], ("A. a cat", "a dog")),
        (["B. a cat", "A. a dog"], ("B. a cat", "A. a dog")),
    ):
        (e,) = read_videomme(write(tmp_path / "t.json", [VIDEOMME | {"options": options}]), "v")
        assert e.options == bare and e.answer == "B"


def test_gots_raw_folders_come_before_its_json_and_that_is_said(tmp_path):
    folder = world.ensure("got10k", str(tmp_path), train=0, test=2)
    boxes = [[0.1, 0.1, 0.5, 0.5]] * 8
    entries = [
        {"path": f"/mnt/a/GOT-10k/raw/GOT-10k/val/got10k{i:05d}", "object": "cat", "gt": boxes}
        for i in range(2)
    ]
    path = write(tmp_path / "got_val.json", entries)
    said = []
    raw = read_dataset("got10k", "test", folder, said.append)
    counts = [int(world.make_clip("got10k", i).duration * world.ANNO_FPS) for i in range(2)]
    assert [e.frames for e in raw] == [tuple(even_frames(n).tolist()) for n in counts]
    assert said == [f"{os.path.join(folder, 'val')} is read, and not {path}"]
    os.remove(tmp_path / "val" / "list.txt")  # frames alone
    said.clear()
    published = read_dataset("got10k", "test", folder, said.append)
    for e, n in zip(published, counts):  # the first, the second, …, the last
        assert e.frames[:2] == (0, 1) and e.frames[-1] == n - 1 and len(e.frames) == 8
        assert max(e.frames[k + 1] - e.frames[k] for k in range(1, 7)) <= (n - 2) / 6 + 1
    assert not said
    assert [e.video for e in published] == [e.video for e in raw]
    assert all(os.path.isdir(e.video) for e in published)


def test_timelens_in_both_its_forms(tmp_path):
    dictionary = {"3MSZA": {"duration": 30.9, "spans": [[24.3, 30.4]], "queries": ["a light."]}}
    entries = [
        {"video_path": "videos/charades/3MSZA.mp4", "query": "a light.", "span": "[[24.3, 30.4]]"},
        {"video_path": "3MSZA.mp4", "query": "two", "span": "[[1, 2], [3, 4]]"},
    ]
    said = []
    (a,) = read_charades(write(tmp_path / "charades-timelens.json", dictionary), "v")
    (b,) = read_charades(write(tmp_path / "list.json", entries), "v", said.append)
    assert a == b == Example("3MSZA/0", "grounding", "v/3MSZA.mp4", "a light", (24.3, 30.4))
    assert len(said) == 1 and "line 7" in said[0]


def test_longvideobench_in_both_its_forms(tmp_path):
    entry = {
        "id": "86CxyhFV9MI_0",
        "video_path": "86CxyhFV9MI.mp4",
        "question": "Which?",
        "correct_choice": 1,
        "duration_group": 600,
        "question_category": "S2E",
    }
    columns = {f"option{k}": text for k, text in enumerate(["a cat", "a dog", "N/A", "N/A", "N/A"])}
    said = []
    path = write(tmp_path / "a.json", [entry | {"candidates": ["a cat", "a dog"]}])
    (a,) = read_longvideobench(path, "v")
    without = entry | {"candidates": ["a cat", "a dog"], "correct_choice": 2}
    path = write(tmp_path / "b.json", [entry | columns, without])
    (b,) = read_longvideobench(path, "v", said.append)
    assert a == b and (a.answer, a.options, a.group) == ("B", ("a cat", "a dog"), "up to 600 s")
    assert len(said) == 1 and "none of the 2 options" in said[0]
    handle = entry | {"video_path": "@somebody-7269438.mp4", "candidates": ["x", "y"]}
    assert read_longvideobench(write(tmp_path / "c.json", [handle]), "v")[0].video.endswith("8.mp4")


def test_dream1k_and_captions_as_a_text(tmp_path):
    entry = {
        "idx": 1,
        "video_file": "video/1.mp4",
        "source": "stock",
        "description": "Two birds fly off.  Then it rains.",
        "events": ["Two birds fly off.", "it rains"],
    }
    said = []
    path = write(tmp_path / "metadata.json", [entry, entry | {"events": []}])
    (e,) = read_dream1k(path, "v", said.append)
    answer = (["Two birds fly off", "it rains"], "Two birds fly off. Then it rains")
    assert (e.task, e.video, e.answer, e.group) == ("description", "v/1.mp4", answer, "stock")
    assert len(said) == 1 and "'events' is no list" in said[0]
    entries = [{"video": "a.mp4", "caption": "A boy kicks a 2.5 kg ball. The dog runs away!"}]
    (e,) = read_captions(write(tmp_path / "metadata.json", entries), "v")
    assert e.answer == ["A boy kicks a 2.5 kg ball", "The dog runs away"]


# Files of full size -------------------------------------------------------------------------------

LETTERED = {"question": "why", "options": [f"({c}) x{c}" for c in "ABCDE"]}
GROUNDED = LETTERED | {"glue": [[-0.1, 2.5], [7, 8]], "type": "CW", "answer": "(C)"}
GOT_PATH = "/mnt/somebody/GOT/raw/GOT-10k/train/GOT-10k_Train_{:06d}"


def queries(count, times, sentences):
    """So many queries, two about a clip, in the JSON form of Charades."""
    two = {times: [[1, 2], [3, 4.5]], sentences: ["a", "b"]}
    one = {times: [[1, 2]], sentences: ["a"]}
    return {f"V{k:05d}": two for k in range(count // 2)} | ({"last": one} if count % 2 else {})


FULL_SIZE = {  # (data set, split, file): (entries, how many Examples they are)
    ("charades", "train", "train.json"): (queries(12_408, "timestamps", "sentences"), 12_408),
    ("charades", "test", "charades_test.json"): (queries(3_720, "timestamps", "sentences"), 3_720),
    ("activitynet", "test", "test.json"): (queries(17_031, "timestamps", "sentences"), 17_031),
    ("timelens-charades", "test", "charades-timelens.json"): (
        queries(3_363, "spans", "queries"),
        3_363,
    ),
    ("timelens-activitynet", "test", "activitynet-timelens.json"): (
        queries(4_501, "spans", "queries"),
        4_501,
    ),
    ("got10k", "train", "got_train.json"): (
        [
            {"path": GOT_PATH.format(k), "object": "cat", "gt": [[0, 0.1, 0.5, 1.0]] * 8}
            for k in range(9_335)
        ],
        9_335,
    ),
    ("nextgqa", "train", "nextgqa_val.json"): (
        [GROUNDED | {"id": f"{k}_1", "video": f"{k % 997}/{k}.mp4"} for k in range(3_358)],
        3_358,
    ),
    ("nextgqa", "test", "nextgqa_test.json"): (
        [GROUNDED | {"id": f"{k}_1", "video": f"{k % 997}/{k}.mp4"} for k in range(5_553)],
        5_553,
    ),
    ("quality", "train", "Quality_Access_100shot.json"): (
        [{"video": f"{k:04d}.mp4", "answer": "high quality"} for k in range(200)],
        200,
    ),
    ("caption", "train", "metadata.json"): (
        [{"video": f"v_{k}.mp4", "caption": "A boy runs. It rains."} for k in range(1_000)],
        1_000,
    ),
    ("dream1k", "test", "metadata.json"): (
        [
            {
                "idx": k,
                "video_file": f"video/{k}.mp4",
                "source": f"source {k % 5}",
                "description": "A boy runs.",
                "events": ["a boy runs"],
            }
            for k in range(1_000)
        ],
        1_000,
    ),
    ("videomme", "test", "videomme.json"): (
        [
            VIDEOMME | {"question_id": f"{k}", "duration": ("short", "medium", "long")[k // 900]}
            for k in range(2_700)
        ],
        2_700,
    ),
    ("longvideobench", "test", "lvb_val.json"): (
        [
            {
                "id": f"{k}",
                "video_path": f"{k}.mp4",
                "question": "why",
                "candidates": ["x", "y", "z"],
                "correct_choice": k % 3,
                "duration_group": (15, 60, 600, 3600)[k % 4],
            }
            for k in range(1_337)
        ],
        1_337,
    ),
    ("perceptiontest", "test", "mc_question_valid.json"): (
        {
            f"video_{v}": {"mc_question": [PERCEPTIONTEST | {"id": k} for k in range(4)]}
            for v in range(4_785)
        },
        19_140,
    ),
}


@pytest.mark.parametrize("what", FULL_SIZE, ids=lambda what: "-".join(what[:2]))
def test_a_file_of_full_size_loses_nothing_unsaid(what, tmp_path):
    """Every entry is read; of a file with damaged entries, each one left out is named."""
    (name, split, file), (entries, count) = what, FULL_SIZE[what]
    (tmp_path / DATASETS[name].videos).mkdir(exist_ok=True)
    write(tmp_path / file, entries)
    said = []
    examples = read_dataset(name, split, str(tmp_path), said.append)
    assert len(examples) == len({e.id for e in examples}) == count and not said
    if isinstance(entries, list):  # every hundredth entry is another thing
        entries = [entry if k % 100 else ["nothing"] for k, entry in enumerate(entries)]
        write(tmp_path / file, entries)
        examples = read_dataset(name, split, str(tmp_path), said.append)
        assert len(said) == len(range(0, count, 100)) and len(examples) + len(said) == count


def test_text_and_tables_of_full_size(tmp_path):
    (tmp_path / "videos").mkdir()
    lines = [f"V{k // 3:04d} {k % 7}.5 {k % 7 + 3}##a door opens.\n" for k in range(12_408)]
    (tmp_path / "charades_sta_train.txt").write_text("".join(lines), encoding="utf-8")
    rows = [f"{k // 10},9,9,9,why,b,{k % 10},CW,a,b,c,d,e\n" for k in range(5_553)]
    header = TABLE.partition("\n")[0] + "\n"
    (tmp_path / "test.csv").write_text(header + "".join(rows), encoding="utf-8")
    located = {f"{v}": {"location": {f"{q}": [[1, 2]] for q in range(10)}} for v in range(556)}
    write(tmp_path / "gsub_test.json", located)
    write(tmp_path / "map_vid_vidorID.json", {f"{v}": f"1000/{v}" for v in range(556)})
    said = []
    assert len(read_dataset("charades", "train", str(tmp_path), said.append)) == 12_408
    assert len(read_dataset("nextgqa", "test", str(tmp_path), said.append)) == 5_553 and not said


def test_the_twenty_files_of_mvbench(tmp_path):
    (tmp_path / "video").mkdir()
    (tmp_path / "json").mkdir()
    for subtask in MVBENCH_FOLDERS:
        write(tmp_path / "json" / f"{subtask}.json", [MVBENCH] * 200)
    said = []
    examples = read_dataset("mvbench", "test", str(tmp_path), said.append)
    assert len(examples) == 4_000 and len({e.group for e in examples}) == 20 and not said


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
