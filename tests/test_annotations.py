"""Every reader on what people actually have: real excerpts, files as the toy writes them, and
broken ones."""

import doctest
import json
import os
import re
from dataclasses import replace

import pytest

from annotations import benchmarks as b
from annotations import entries
from annotations import training_sets as t
from annotations.readers import DATASETS, read_dataset
from data import Example
from lib.errors import BadInput
from toy import world


def write(path, content):
    text = content if isinstance(content, str) else json.dumps(content, indent=1)
    path.write_text(text, encoding="utf-8")
    return str(path)


def places(said, unit="line"):
    return [int(s.split(f", {unit} ")[1].split(":")[0]) for s in said]


# Charades-STA and its kin ------------------------------------------------------------------------


def test_charades_text_and_json_read_the_same(tmp_path):
    """A line of PLPNet's copy has a fourth column."""
    lines = ("3MSZA 24.3 30.4##person turn a light on.", "3MSZA 0.0 4 30.96##a person  sits", "",
             "AMT7R 4.3 12.5##puts a picture up.")  # fmt: skip
    times, texts = [[24.3, 30.4], [0.0, 4]], ["person turn a light on.", "a person sits"]
    entries = {
        "3MSZA": {"timestamps": times, "sentences": texts},
        "AMT7R": {"timestamps": [[4.3, 12.5]], "sentences": ["puts a picture up."]},
    }
    a = t.read_charades(write(tmp_path / "charades_sta_test.txt", "\n".join(lines)), "v")
    b = t.read_charades(write(tmp_path / "charades_test.json", entries), "v")
    first = ("3MSZA/0", "grounding", "v/3MSZA.mp4", "person turn a light on", (24.3, 30.4))
    assert a == b and a[0] == Example(*first)
    assert [e.id for e in a] == ["3MSZA/0", "3MSZA/1", "AMT7R/0"]


def test_the_real_excerpts(shared):
    excerpt = lambda name: os.path.join(shared, f"{name}.excerpt.json")
    videos = os.path.join(shared, "videos")
    test, train = (t.read_charades(excerpt(f"charades_{s}"), videos) for s in ("test", "train"))
    assert len(test) == 61 and len(train) == 48 and sum(os.path.isfile(e.video) for e in test) == 6
    # beyond the clip's 29.46 s, kept
    assert any(e.answer[1] == 30.0 for e in train if e.id.startswith("Y6R7T"))
    activitynet = t.read_charades(excerpt("activitynet_test"), "v")
    assert len(activitynet) == 36 and activitynet[0].answer == (0.0, 4.14)
    assert activitynet[0].video == "v/v_uqiMw7tQ1Cc.mp4"
    got = t.read_got10k(excerpt("got_val"), "g")
    assert len(got) == 10 and got[0].answer[1] == (0.095, 0.0, 0.8, 0.79)
    assert (got[0].question, got[0].video) == ("sloth", "g/val/GOT-10k_Val_000010")
    for name, first in (("val", ("C", [(13.8, 29.8)])), ("test", ("C", [(23.0, 27.7)]))):
        gqa = t.read_nextgqa(excerpt(f"nextgqa_{name}"), "v")
        assert len(gqa) == 10 and gqa[0].answer == first and len(gqa[0].options) == 5
        assert gqa[0].answer[0].on_offer == 5 and not gqa[0].options[0].startswith("(A)")
    quality = t.read_quality(excerpt("quality_test"), "v")
    assert len(quality) == 10 and {e.answer for e in quality} <= {"low quality", "high quality"}


def test_charades_as_a_whole(shared):
    """12,404 of 12,408 queries are read; the other four end before they begin."""
    said, path = [], os.path.join(shared, "whole", "train.json")
    assert len(t.read_charades(path, "v", said.append)) == 12_404
    assert len(said) == 4 and all("is no interval in seconds" in line for line in said)


def test_malformed_lines_are_reported_with_file_and_line_and_skipped(tmp_path):
    lines = ("A 1 2##good", "nonsense", "B 5 2##ends before it starts", "C x y##words",
             "../etc/passwd 1 2##leaves the folder", "D 1 2##", "E nan inf##z",
             "F 3 4##good")  # fmt: skip
    said, path = [], write(tmp_path / "charades_sta_test.txt", "\n".join(lines) + "\n")
    assert [e.id for e in t.read_charades(path, "v", said.append)] == ["A/0", "F/0"]
    assert sorted(places(said)) == [2, 3, 4, 5, 6, 7] and all(path in s for s in said)


def test_many_complaints_of_a_kind_are_one_line(tmp_path):
    """With the first place and how many more, and in nobody's words but ours."""
    lines = ["A 1 2##good", *(f"B{k} {k + 5} 2##early" for k in range(30)), *["nonsense"] * 20]
    said = []
    t.read_charades(write(tmp_path / "charades_sta_test.txt", "\n".join(lines)), "v", said.append)
    assert [s.split(": ", 1)[1] for s in said] == [
        "skipped, 5 to 2 is no interval in seconds; and 29 more like it",
        "skipped, needs a name, a start, an end and a sentence, like: 3MSZA 24.3 30.4##person turn "
        "a light on.; and 19 more like it",
    ]
    assert places(said) == [2, 32] and not re.search(r"Error|\bNone", " ".join(said))


USELESS = (
    ("", "no usable entry"),
    ("all\nwrong\n", "no usable"),
    ('{"A": {"timestamps": [[1, 2]]', "line 1: broken JSON"),
    ('{"A": {"timestamps": [[1, 2]], "sentences": []}}', "no usable"),
    ('{"A": 3, "B": {"timestamps": 4, "sentences": 5}}', "no usable"),
    (b"\xff\xfe\x00\x80" * 10, "UTF-8"),
)


@pytest.mark.parametrize("content, says", USELESS)
def test_useless_annotation_files(tmp_path, content, says):
    path = tmp_path / "charades_sta_test.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadInput, match=says):
        t.read_charades(str(path), "v", lambda sentence: None)


ONE = '{"video": "a.mp4", "answer": "low quality"}'
TWO = ONE.replace("a.mp4", "b.mp4")


@pytest.mark.parametrize("text, count", [
    (f"[{ONE},\n{TWO}]\n\n", 2), (f"{ONE}\n{TWO}\n", 2), (f"{ONE}\n\n  {TWO}", 2),
    (f"[{ONE},\n{TWO}]\nthe end", "line 3: broken JSON .Extra data"),
    (f"[\n{ONE}\n]\n[\n{TWO}\n]", "line 4: broken JSON .Extra data"),
    (f"[{ONE}] [{TWO}]", "line 1: broken JSON .Extra data"),
    (f"[{ONE},\n{TWO}}}", "line 2: broken JSON"),
    (f"{ONE}\n{TWO}\n{ONE[:20]}", "line 3: broken JSON"),
    (f"{ONE}\n{TWO} {ONE}", "line 2: broken JSON .Extra data"),
    (f"[{ONE}]\n]", "line 2: broken JSON .Extra data"),
    ("[" + "1" * 6000 + "]", "broken JSON"),
    ("[" * 200_000, "line 1: broken JSON"),
    ('[{"video": ' + "[" * 200_000 + "]" * 200_000 + "}]", "line 1: broken JSON"),
], ids=range(13))  # fmt: skip
def test_json_lines_are_read_and_no_file_is_read_in_part(tmp_path, text, count):
    path = write(tmp_path / "q.json", text)
    if isinstance(count, int):
        examples = t.read_quality(path, "v")
        assert [e.id for e in examples] == ["a.mp4/0", "b.mp4/1"][:count]
    else:
        with pytest.raises(BadInput, match=count) as e:
            t.read_quality(path, "v")
        assert "\n" not in str(e.value)


def test_missing_data_names_the_file_and_where_to_get_it(tmp_path):
    with pytest.raises(BadInput, match="does not exist. docs/datasets.md lists"):
        read_dataset("charades", "test", str(tmp_path / "nowhere"))
    with pytest.raises(BadInput, match="no test annotations of charades"):
        read_dataset("charades", "test", str(tmp_path))
    write(tmp_path / "charades_sta_test.txt", "A 1 2##x\n")
    with pytest.raises(BadInput, match="no folder .*videos"):
        read_dataset("charades", "test", str(tmp_path))


@pytest.mark.parametrize("name", DATASETS)
def test_every_toy_data_set_is_read_by_the_reader_of_the_real_one(name, tmp_path):
    train = {} if DATASETS[name].train is None else {"train": 4}
    folder = world.ensure(name, str(tmp_path / name), **train, test=5)
    said = []
    examples = read_dataset(name, "test", folder, said.append)
    assert len(examples) == len({e.id for e in examples}) == 5 and not said
    assert all(os.path.exists(e.video) for e in examples)
    if train:
        train = read_dataset(name, "train", folder)
        assert len(train) >= 4 and not {e.video for e in train} & {e.video for e in examples}
    else:
        with pytest.raises(BadInput, match="only evaluated on"):
            read_dataset(name, "train", folder)


# GOT-10k -----------------------------------------------------------------------------------------


def test_got10k_folders_give_normalised_boxes_at_the_eight_frames(tmp_path):
    folder = world.ensure("got10k", str(tmp_path), train=0, test=2)
    example, clip = read_dataset("got10k", "test", folder)[1], world.make_clip("got10k", 1)
    frames = t.even_frames(int(clip.duration * world.ANNO_FPS))
    assert example.frames == tuple(frames.tolist()) and example.question == clip.things[0].name
    for box, at in zip(example.answer, frames / world.ANNO_FPS, strict=True):
        assert box == pytest.approx(clip.things[0].box(at), abs=1e-4)


DAMAGES = (
    ("absence.label", lambda text: text[2:], "absence labels"),
    ("absence.label", lambda text: "1" + text[1:], "the object is out of sight"),
    ("meta_info.ini", lambda text: text.replace("object_class", "thing"), "needs a folder"),
    ("groundtruth.txt", lambda text: "x" + text, "needs a folder"),
    ("groundtruth.txt", None, "groundtruth.txt does not exist"),
    ("00000009.jpg", None, "frames"),
)


@pytest.mark.parametrize("name, change, says", DAMAGES)
def test_a_sequence_that_is_not_whole_is_named_and_left_out(tmp_path, name, change, says):
    """Boxes and frames are paired by number: where one is missing, all later pairs are wrong."""
    folder = world.ensure("got10k", str(tmp_path), train=0, test=2)
    path = tmp_path / "val" / "got10k00001" / name
    if change:
        write(path, change(path.read_text(encoding="utf-8")))
    else:
        path.unlink()
    said = []
    assert [e.id for e in read_dataset("got10k", "test", folder, said.append)] == ["got10k00000"]
    assert len(said) == 1 and "line 2: skipped" in said[0] and says in said[0]


def test_gots_raw_folders_come_before_its_json_and_that_is_said(tmp_path):
    folder = world.ensure("got10k", str(tmp_path), train=0, test=2)
    foreign, boxes = "/mnt/a/GOT-10k/raw/GOT-10k/val/got10k{:05d}", [[0.1, 0.1, 0.5, 0.5]] * 8
    entries = [{"path": foreign.format(i), "object": "cat", "gt": boxes} for i in range(2)]
    path, said = write(tmp_path / "got_val.json", entries), []
    raw = read_dataset("got10k", "test", folder, said.append)
    counts = [int(world.make_clip("got10k", i).duration * world.ANNO_FPS) for i in range(2)]
    assert [e.frames for e in raw] == [tuple(t.even_frames(n).tolist()) for n in counts]
    assert said == [f"{os.path.join(folder, 'val')} is read, and not {path}"]
    os.remove(tmp_path / "val" / "list.txt")  # frames alone
    said.clear()
    published = read_dataset("got10k", "test", folder, said.append)
    for e, n in zip(published, counts):  # the first, the second, …, the last
        assert e.frames[:2] == (0, 1) and e.frames[-1] == n - 1 and len(e.frames) == 8
        assert max(e.frames[k + 1] - e.frames[k] for k in range(1, 7)) <= (n - 2) / 6 + 1
    assert not said and [e.video for e in published] == [e.video for e in raw]
    assert all(os.path.isdir(e.video) for e in published)


# Entries of each benchmark -----------------------------------------------------------------------

VIDEOMME = {"question_id": "001-1", "videoID": "fFjv93ACGo8", "duration": "short",
            "question": "What?", "options": ["A. a cat.", "B. a dog."], "answer": "B"}  # fmt: skip
MVBENCH = {"video": "ZS9XR.mp4", "question": "What?", "candidates": ["Ate.", "Ran."],
           "answer": "Ran.", "start": 1.5, "end": 9.0}  # fmt: skip
PERCEPTIONTEST = {"id": 0, "question": "q?", "options": ["a", "b", "c"], "answer_id": 2,
                  "area": "memory"}  # fmt: skip
NEXTGQA = {"id": "1_0", "video": "1101/1.mp4", "question": "why", "options": ["(A) x", "(B) y"],
           "glue": [[1, 2]], "answer": "(A)"}  # fmt: skip
LONG = {"id": "86CxyhFV9MI_0", "video_path": "86CxyhFV9MI.mp4", "question": "Which?",
        "correct_choice": 1, "duration_group": 600, "question_category": "S2E"}  # fmt: skip
DREAM = {"idx": 1, "video_file": "video/1.mp4", "source": "stock",
         "description": "Two birds fly off.  Then it rains.",
         "events": ["Two birds fly off.", "it rains"]}  # fmt: skip


def test_videomme(tmp_path):
    said, bad = [], VIDEOMME | {"question_id": "001-2", "answer": "E"}
    (e,) = b.read_videomme(write(tmp_path / "videomme.json", [VIDEOMME, bad]), "v", said.append)
    assert (e.answer, e.options, e.group, e.task) == ("B", ("a cat.", "a dog."), "short", "qa")
    assert e.answer.on_offer == 2 and places(said, "entry") == [1]


def test_mvbench(tmp_path):
    said, bad = [], {"video": "../a", "question": "q", "candidates": ["x", "y"], "answer": "x"}
    path = write(tmp_path / "action_sequence.json", [MVBENCH, bad])
    (e,) = b.read_mvbench(path, "v", said.append)
    assert (e.answer, e.span, e.group) == ("B", (1.5, 9.0), "action_sequence")
    assert e.video == "v/star/Charades_v1_480/ZS9XR.mp4" and len(said) == 1
    path = write(tmp_path / "episodic_reasoning.json", [MVBENCH | {"video": "castle_s01"}])
    assert b.read_mvbench(path, "v")[0].video == "v/tvqa/frames_fps3_hq/castle_s01"
    for folder in ("video", "json"):
        (tmp_path / "all" / folder).mkdir(parents=True)
    for subtask in b.MVBENCH_FOLDERS:
        write(tmp_path / "all" / "json" / f"{subtask}.json", [MVBENCH] * 200)
    examples = read_dataset("mvbench", "test", str(tmp_path / "all"), said.append)
    assert len(examples) == 4_000 and len({e.group for e in examples}) == 20 and len(said) == 1


def test_perceptiontest_and_captions(tmp_path):
    entries = {"video_8241": {"metadata": {}, "mc_question": [PERCEPTIONTEST]}}
    (e,) = b.read_perceptiontest(write(tmp_path / "mc_question_valid.json", entries), "v")
    assert (e.id, e.answer, e.group, e.video) == ("video_8241/0", "C", "memory", "v/video_8241.mp4")
    entries = [{"video": "a.mp4", "events": ["A dog runs.", "it  stops"]}]
    (e,) = t.read_captions(write(tmp_path / "captions_train.json", entries), "v")
    assert e.answer == ["A dog runs", "it stops"]


def test_timelens(tmp_path):
    entry = {"3MSZA": {"duration": 30.9, "spans": [[24.3, 30.4]], "queries": ["a light."]}}
    (a,) = t.read_charades(write(tmp_path / "charades-timelens.json", entry), "v")
    first = ("3MSZA/0", "grounding", "v/3MSZA.mp4", "a light", (24.3, 30.4))
    assert a == Example(*first, duration=30.9)


def test_longvideobench(tmp_path):
    entry, said = LONG | {"candidates": ["a cat", "a dog"]}, []
    path = write(tmp_path / "a.json", [entry, entry | {"correct_choice": 2}])
    (e,) = b.read_longvideobench(path, "v", said.append)
    assert (e.answer, e.options, e.group) == ("B", ("a cat", "a dog"), "up to 600 s")
    assert len(said) == 1 and "none of the 2 options" in said[0]
    path = write(tmp_path / "b.json", [entry | {"video_path": "@somebody-7269438.mp4"}])
    assert b.read_longvideobench(path, "v")[0].video.endswith("8.mp4")


def test_dream1k_and_captions_as_a_text(tmp_path):
    said = []
    path = write(tmp_path / "metadata.json", [DREAM, DREAM | {"events": []}])
    (e,) = b.read_dream1k(path, "v", said.append)
    answer = (["Two birds fly off", "it rains"], "Two birds fly off. Then it rains")
    assert (e.task, e.video, e.answer, e.group) == ("description", "v/1.mp4", answer, "stock")
    assert len(said) == 1 and "'events' is no list" in said[0]
    entries = [{"video": "a.mp4", "caption": "A boy kicks a 2.5 kg ball. The dog runs away!"}]
    (e,) = t.read_captions(write(tmp_path / "metadata.json", entries), "v")
    assert e.answer == ["A boy kicks a 2.5 kg ball", "The dog runs away"]


def test_letters_of_options_go_only_if_all_have_their_own(tmp_path):
    for options, bare in (
        (["A. a cat", "B. a dog"], ("a cat", "a dog")),
        (["(A) a cat", "(B) a dog"], ("a cat", "a dog")),
        (["A. Lincoln", "G. Washington"], ("A. Lincoln", "G. Washington")),
        (["I) the first", "the second"], ("I) the first", "the second")),
        (["A. a cat", "a dog"], ("A. a cat", "a dog")),
        (["B. a cat", "A. a dog"], ("B. a cat", "A. a dog")),
    ):
        (e,) = b.read_videomme(write(tmp_path / "t.json", [VIDEOMME | {"options": options}]), "v")
        assert e.options == bare and e.answer == "B"


# NExT-GQA ----------------------------------------------------------------------------------------


def official(shared, *names):
    return os.path.join(shared, "official", *names)


@pytest.mark.parametrize("read, name, count", [
    (t.read_charades, "train.json", 24), (t.read_nextgqa, "nextgqa_test.json", 12),
    (t.read_nextgqa, "nextgqa/test.csv", 55), (t.read_quality, "Quality_Access_100shot.json", 20),
    (t.read_quality, "Quality_Access_test.json", 20),
])  # fmt: skip
def test_every_entry_of_the_published_pieces_is_read(shared, read, name, count):
    said = []
    assert len(read(official(shared, *name.split("/")), "v", said.append)) == count and not said


def test_upstream_names_are_found(shared, tmp_path):
    """A folder of links to the files, under the names that they are downloaded with."""
    authors = ("test.csv", "gsub_test.json", "map_vid_vidorID.json")
    for name, links in {
        "charades": {"train.json": "train.json", "charades_test.json": "train.json"},
        "quality": {n: n for n in ("Quality_Access_100shot.json", "Quality_Access_test.json")},
        "nextgqa": {n: f"nextgqa/{n}" for n in authors},
    }.items():
        (tmp_path / name / "videos").mkdir(parents=True)
        for link, target in links.items():
            os.symlink(official(shared, *target.split("/")), tmp_path / name / link)
        said = []
        assert read_dataset(name, "test", str(tmp_path / name), said.append) and not said
    assert len(read_dataset("charades", "train", str(tmp_path / "charades"))) == 24
    assert len(read_dataset("quality", "train", str(tmp_path / "quality"))) == 20


def test_the_authors_table_of_nextgqa_says_what_the_json_says(shared):
    by_id = {e.id: e for e in t.read_nextgqa(official(shared, "nextgqa", "test.csv"), "v")}
    both = [e for e in t.read_nextgqa(official(shared, "nextgqa_test.json"), "v") if e.id in by_id]
    assert len(both) == 8 and all(replace(e, duration=None) == by_id[e.id] for e in both)


def test_evidence_before_the_video_begins_at_zero(shared, tmp_path):
    answers = [e.answer for e in t.read_nextgqa(official(shared, "nextgqa_test.json"), "v")]
    starts = [start for _, evidence in answers for start, _ in evidence]
    assert starts.count(0.0) == 3 and min(starts) == 0.0
    entry, said = NEXTGQA | {"glue": [[-0.0, 2], [-0.1, 3.5], [4, 5]]}, []
    path = write(tmp_path / "nextgqa_test.json", [entry, entry | {"glue": [[-2, -1]]}])
    (e,) = t.read_nextgqa(path, "v", said.append)
    assert repr(e.answer[1]) == "[(0.0, 2.0), (0.0, 3.5), (4.0, 5.0)]"  # no -0.0
    assert len(said) == 1 and "0 to -1 is no interval" in said[0]


TABLE = """video_id,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4
1,719,320,240,"what, then",lay on floor,8,TN,clap,sit down,lay on floor,pick it up,crawl
1,719,320,240,why,run,9,CW,clap,sit down,lay on floor,pick it up,crawl
2,719,320,240,why,clap,0,CW,clap,sit down,lay on floor,pick it up,crawl
1,719,320,240,why,clap,7,CW,clap,sit down,lay on floor,pick it up,crawl
"""


def test_a_table_with_holes_names_each(tmp_path):
    path, said = write(tmp_path / "test.csv", TABLE), []
    seconds = {"1": {"location": {"8": [[-0.1, 2], [3, 4]], "9": [[1, 2]]}}}
    write(tmp_path / "gsub_test.json", seconds)
    write(tmp_path / "map_vid_vidorID.json", {"1": "1101/1"})
    (e,) = t.read_nextgqa(path, "v", said.append)
    assert (e.id, e.video, e.question) == ("1_8", "v/1101/1.mp4", "what, then")
    assert e.answer == ("C", [(0.0, 2.0), (3.0, 4.0)]) and e.group == "TN"
    assert places(said) == [3, 4, 5]
    assert all("an answer among a0 to a4, seconds in gsub_val.json" in line for line in said)
    os.remove(tmp_path / "gsub_test.json")
    with pytest.raises(BadInput, match="gsub_test.json does not exist"):
        t.read_nextgqa(path, "v")


# Files of full size ------------------------------------------------------------------------------

CAPTION = {"caption": "A boy runs. It rains."}
GOT = {"path": "/mnt/somebody/GOT-10k/train/{}", "object": "cat", "gt": [[0, 0.1, 0.5, 1.0]] * 8}
FULL_SIZE = {  # (data set, split, file): an entry, how many there are
    ("got10k", "train", "got_train.json"): (GOT, 9_335),
    ("nextgqa", "train", "nextgqa_val.json"): (NEXTGQA | {"id": "{}"}, 3_358),
    ("nextgqa", "test", "nextgqa_test.json"): (NEXTGQA | {"id": "{}"}, 5_553),
    ("caption", "train", "metadata.json"): (CAPTION | {"video": "{}.mp4"}, 1_000),
    ("dream1k", "test", "metadata.json"): (DREAM | {"idx": "{}"}, 1_000),
    ("videomme", "test", "videomme.json"): (VIDEOMME | {"question_id": "{}"}, 2_700),
    ("longvideobench", "test", "lvb_val.json"):
        (LONG | {"id": "{}", "candidates": ["x", "y", "z"]}, 1_337),
}  # fmt: skip


@pytest.mark.parametrize("what", FULL_SIZE, ids=lambda what: "-".join(what[:2]))
def test_a_file_of_full_size_loses_nothing_unsaid(what, tmp_path):
    """Every entry is read; of a file with damaged entries, those left out are counted."""
    (name, split, file), (entry, count) = what, FULL_SIZE[what]
    (tmp_path / DATASETS[name].videos).mkdir(exist_ok=True)
    entries = [json.loads(json.dumps(entry).replace("{}", f"x{k}")) for k in range(count)]
    write(tmp_path / file, entries)
    said = []
    examples = read_dataset(name, split, str(tmp_path), said.append)
    assert len(examples) == len({e.id for e in examples}) == count and not said
    write(tmp_path / file, [e if k % 100 else ["nothing"] for k, e in enumerate(entries)])
    left = count - len(read_dataset(name, split, str(tmp_path), said.append))
    assert left == len(range(0, count, 100)) and f"; and {left - 1} more like it" in said[0]
    assert len(said) == 1


def test_text_and_tables_of_full_size(tmp_path):
    (tmp_path / "videos").mkdir()
    lines = [f"V{k // 3:04d} {k % 7}.5 {k % 7 + 3}##a door opens.\n" for k in range(12_408)]
    write(tmp_path / "charades_sta_train.txt", "".join(lines))
    rows = [f"{k // 10},9,9,9,why,b,{k % 10},CW,a,b,c,d,e\n" for k in range(5_553)]
    write(tmp_path / "test.csv", TABLE.partition("\n")[0] + "\n" + "".join(rows))
    located = {f"{v}": {"location": {f"{q}": [[1, 2]] for q in range(10)}} for v in range(556)}
    write(tmp_path / "gsub_test.json", located)
    write(tmp_path / "map_vid_vidorID.json", {f"{v}": f"1000/{v}" for v in range(556)})
    said = []
    assert len(read_dataset("charades", "train", str(tmp_path), said.append)) == 12_408
    assert len(read_dataset("nextgqa", "test", str(tmp_path), said.append)) == 5_553 and not said


# Mistakes that would show much later -------------------------------------------------------------


def test_one_bad_question_of_an_entry_costs_that_one_alone(tmp_path):
    said, byte_order_mark = [], "\ufeff"
    text = '{"A": {"timestamps": [[1, 2], [3, "x"], [4, 1]], "sentences": ["a", "b", "c"]}}'
    path = write(tmp_path / "c.json", byte_order_mark + text)
    assert [e.id for e in t.read_charades(path, "v", said.append)] == ["A/0"]
    assert len(said) == 2 and all("c.json, entry 'A, number " in s for s in said)
    bad = {"v": {"mc_question": [PERCEPTIONTEST | {"id": k, "answer_id": 6 * k} for k in (0, 1)]}}
    examples = b.read_perceptiontest(write(tmp_path / "p.json", bad), "v", said.append)
    assert [e.id for e in examples] == ["v/0"]


def test_as_many_intervals_as_sentences(tmp_path):
    """zip would cut the longer list off, and give the first sentences the first intervals, right or
    not."""
    for times, sentences in (([[1, 2], [3, 4]], ["a"]), ([[1, 2]], ["a", "b"])):
        entries = {"A": {"timestamps": times, "sentences": sentences}}
        entries["B"], said = {"timestamps": [[1, 2]], "sentences": ["c"]}, []
        examples = t.read_charades(write(tmp_path / "c.json", entries), "v", said.append)
        assert [e.id for e in examples] == ["B/0"] and len(said) == 1
        assert "equally many 'timestamps' [start, end] and 'sentences'" in said[0]


def test_captions_need_a_list_with_something_in_it(tmp_path):
    said, good = [], {"video": "b.mp4", "events": ["a dog runs"]}
    for events in ([], "a dog runs", None, ["a dog runs", " . "]):
        path = write(tmp_path / "captions_test.json", [{"video": "a.mp4", "events": events}, good])
        assert [e.id for e in t.read_captions(path, "v", said.append)] == ["b.mp4/1"]
    none = "'events' is no list of sentences, or an empty one"
    assert len(said) == 4 and all(none in line for line in said[:3])


def test_names_never_lead_out_of_the_folder(tmp_path):
    for bad in ("../x.mp4", "/etc/passwd", "a/../../b", "", "a//b", "..", "a\x00b"):
        path = write(tmp_path / "q.json", [{"video": bad, "answer": "low quality"}])
        with pytest.raises(BadInput, match="no usable"):
            t.read_quality(path, "v", lambda line: None)


def nextgqa(folder, ids):
    os.makedirs(folder / "videos", exist_ok=True)
    entries = [NEXTGQA | {"id": i, "video": f"{k}.mp4"} for k, i in enumerate(ids)]
    write(folder / "nextgqa_test.json", entries)
    return str(folder)


def test_repeated_ids_are_numbered_and_said(tmp_path):
    """Answers are kept by id: the answer to the first would be scored for both."""
    said, ids = [], ["a", "b", "a", "a#2", "a", "c", "b"]
    examples = read_dataset("nextgqa", "test", nextgqa(tmp_path, ids), said.append)
    assert [e.id for e in examples] == [f"{i}#{k}" for k, i in enumerate(ids)]
    assert [e.video[-5] for e in examples] == list("0123456")  # the order of the file
    repeated = "nextgqa_test.json: 3 example(s) have the id of an earlier one"
    assert len(said) == 1 and f"{repeated}: all are numbered, the first 'a' is 'a#0'" in said[0]
    read_dataset("nextgqa", "test", nextgqa(tmp_path, ["a", "b"]), said.append)
    assert len(said) == 1


def test_half_a_character_is_left_out_where_it_is_read(tmp_path):
    r"""JSON's "\ud800" alone: Python reads it, and no file, terminal or tokenizer takes it."""
    changes = ({"question": "Who \ud800?"}, {"options": ["A. \udfff", "B. b"]},
               {"question_id": "\ud800"}, {"duration": "\ud800"},
               {"videoID": "\ud800"})  # fmt: skip
    entries = [VIDEOMME | change for change in (*changes, {"question": "whole: \U0001f600"})]
    said, path = [], write(tmp_path / "videomme.json", entries)
    (example,) = b.read_videomme(path, "v", said.append)
    assert example.question == "whole: \U0001f600" and len(said) == 5
    half = "entry 0: skipped, a text in it holds half a character"
    assert half in said[0] and "\n".join(said).encode("utf-8")


def test_examples_in_docstrings():
    assert doctest.testmod(entries).failed == doctest.testmod(t).failed == 0
