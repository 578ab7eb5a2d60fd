"""Every reader on what people actually have: real excerpts, files as the toy writes them, and broken ones."""

import doctest
import json
import os

import pytest

import annotations
import toy
from annotations import DATASETS, read_captions, read_charades, read_dataset, read_got10k, read_mvbench, read_nextgqa, read_perceptiontest, read_quality, read_videomme
from data import BadInput, Example, uniform_indices


def test_charades_text_and_json_read_the_same(tmp_path):
    text, js = tmp_path / "charades_sta_test.txt", tmp_path / "charades_test.json"
    text.write_text("3MSZA 24.3 30.4##person turn a light on.\n3MSZA 0.0 4##a person  sits\n\nAMT7R 4.3 12.5##puts a picture up.\n")
    js.write_text(json.dumps({
        "3MSZA": {"duration": 30.96, "timestamps": [[24.3, 30.4], [0.0, 4]], "sentences": ["person turn a light on.", "a person sits"]},
        "AMT7R": {"duration": 30.08, "timestamps": [[4.3, 12.5]], "sentences": ["puts a picture up."]}}))  # fmt: skip
    a, b = read_charades(str(text), "v"), read_charades(str(js), "v")
    assert a == b and len(a) == 3
    assert a[0] == Example("3MSZA/0", "grounding", "v/3MSZA.mp4", "person turn a light on", (24.3, 30.4))
    assert [e.id for e in a] == ["3MSZA/0", "3MSZA/1", "AMT7R/0"]


def test_the_real_excerpts(shared):
    test = read_charades(os.path.join(shared, "charades_test.excerpt.json"), os.path.join(shared, "videos"))
    train = read_charades(os.path.join(shared, "charades_train.excerpt.json"), os.path.join(shared, "videos"))
    assert len(test) == 61 and len(train) == 48 and sum(os.path.isfile(e.video) for e in test) == 6
    assert any(e.answer[1] == 30.0 for e in train if e.id.startswith("Y6R7T"))  # beyond the clip's 29.46 s, kept


def test_malformed_lines_are_reported_with_file_and_line_and_skipped(tmp_path):
    path = tmp_path / "charades_sta_test.txt"
    path.write_text("A 1 2##good\nnonsense\nB 5 2##ends before it starts\nC x y##no numbers\n../etc/passwd 1 2##leaves the folder\nD 1 2##\nE nan inf##z\nF 3 4##good\n")
    said = []
    examples = read_charades(str(path), "v", said.append)
    assert [e.id for e in examples] == ["A/0", "F/0"]
    assert [int(s.split("line ")[1].split(":")[0]) for s in said] == [2, 3, 4, 5, 6, 7] and all(str(path) in s for s in said)


@pytest.mark.parametrize("content, says", [
    ("", "no usable entry"), ("all\nwrong\n", "no usable"), ('{"A": {"timestamps": [[1, 2]]', "line 1: broken JSON"),
    ('{"A": {"timestamps": [[1, 2]], "sentences": []}}', "no usable"), ('{"A": 3, "B": {"timestamps": 4, "sentences": 5}}', "no usable"),
])  # fmt: skip
def test_useless_annotation_files(tmp_path, content, says):
    path = tmp_path / "charades_sta_test.txt"
    path.write_text(content)
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
    (tmp_path / "charades_sta_test.txt").write_text("A 1 2##x\n")
    with pytest.raises(BadInput, match="no folder .*videos"):
        read_dataset("charades", "test", str(tmp_path))


def test_the_real_excerpts_of_the_other_data_sets(shared):
    activitynet = read_charades(os.path.join(shared, "activitynet_test.excerpt.json"), "v")
    assert len(activitynet) == 36 and activitynet[0].answer == (0.0, 4.14) and activitynet[0].video == "v/v_uqiMw7tQ1Cc.mp4"
    got = read_got10k(os.path.join(shared, "got_val.excerpt.json"), "g")
    assert len(got) == 10 and got[0].question == "sloth" and got[0].answer[1] == (0.095, 0.0, 0.8, 0.79) and got[0].video == "g/val/GOT-10k_Val_000010"
    for name, first in (("val", ("C", [(13.8, 29.8)])), ("test", ("C", [(23.0, 27.7)]))):
        gqa = read_nextgqa(os.path.join(shared, f"nextgqa_{name}.excerpt.json"), "v")
        assert len(gqa) == 10 and gqa[0].answer == first and len(gqa[0].options) == 5 and not gqa[0].options[0].startswith("(A)")
    quality = read_quality(os.path.join(shared, "quality_test.excerpt.json"), "v")
    assert len(quality) == 10 and {e.answer for e in quality} <= {"low quality", "high quality"}


@pytest.mark.parametrize("name", DATASETS)
def test_every_toy_data_set_is_read_by_the_reader_of_the_real_one(name, tmp_path):
    folder = toy.ensure(name, str(tmp_path / name), **({} if DATASETS[name].train is None else {"train": 4}), test=5)
    said = []
    examples = read_dataset(name, "test", folder, said.append)
    assert len(examples) == 5 and not said and all(os.path.exists(e.video) for e in examples) and len({e.id for e in examples}) == 5
    if DATASETS[name].train:
        train = read_dataset(name, "train", folder)
        assert len(train) >= 4 and not {e.video for e in train} & {e.video for e in examples}
    else:
        with pytest.raises(BadInput, match="only evaluated on"):
            read_dataset(name, "train", folder)


def test_got10k_folders_give_normalised_boxes_at_the_eight_frames(tmp_path):
    folder = toy.ensure("got10k", str(tmp_path), train=0, test=2)
    example = read_dataset("got10k", "test", folder)[1]
    clip = toy.make_clip("got10k", 1)
    times = uniform_indices(int(clip.duration * toy.ANNO_FPS)) / toy.ANNO_FPS
    assert example.question == clip.things[0].name
    for box, t in zip(example.answer, times, strict=True):
        assert box == pytest.approx(clip.things[0].box(t), abs=1e-4)


def test_got10k_leaves_out_what_cannot_be_seen(tmp_path):
    folder = toy.ensure("got10k", str(tmp_path), train=0, test=3)
    label = os.path.join(folder, "val", "got10k00001", "absence.label")
    lines = open(label).read().splitlines()
    with open(label, "w") as f:
        f.write("\n".join(["1", *lines[1:]]))
    os.remove(os.path.join(folder, "val", "got10k00002", "groundtruth.txt"))
    said = []
    assert [e.id for e in read_dataset("got10k", "test", folder, said.append)] == ["got10k00000"]
    assert "line 2: skipped, the object is out of sight" in said[0] and "line 3" in said[1] and "groundtruth.txt" in said[1]


@pytest.mark.parametrize("change, says", [
    (lambda clip: os.remove(os.path.join(clip, "00000009.jpg")), "frames"),
    (lambda clip: rewrite(clip, "absence.label", lambda text: text[2:]), "absence labels"),
    (lambda clip: rewrite(clip, "meta_info.ini", lambda text: text.replace("[METAINFO]", "")), "meta_info.ini"),
    (lambda clip: rewrite(clip, "groundtruth.txt", lambda text: "x" + text), "needs a folder"),
])  # fmt: skip
def test_a_sequence_that_is_not_whole_is_named_and_left_out(tmp_path, change, says):
    """Boxes and frames are paired by their number: where one is missing, every later pair would be wrong."""
    folder = toy.ensure("got10k", str(tmp_path), train=0, test=2)
    change(os.path.join(folder, "val", "got10k00001"))
    said = []
    assert [e.id for e in read_dataset("got10k", "test", folder, said.append)] == ["got10k00000"]
    assert len(said) == 1 and "line 2: skipped" in said[0] and says in said[0]


def rewrite(folder, name, change):
    with open(os.path.join(folder, name)) as f:
        text = f.read()
    with open(os.path.join(folder, name), "w") as f:
        f.write(change(text))


def test_one_bad_question_of_an_entry_costs_that_one_alone(tmp_path):
    said = []
    (tmp_path / "c.json").write_text('\ufeff{"A": {"timestamps": [[1, 2], [3, "x"], [4, 1]], "sentences": ["a", "b", "c"]}}')  # a byte order mark, too
    assert [e.id for e in read_charades(str(tmp_path / "c.json"), "v", said.append)] == ["A/0"]
    assert len(said) == 2 and all("c.json, line 1: entry 'A', number" in s for s in said)
    good = {"id": 0, "question": "q?", "options": ["a", "b", "c"], "answer_id": 2}
    pt = {"v": {"mc_question": [good, good | {"id": 1, "answer_id": 7}, good | {"id": 2}]}}
    assert [e.id for e in read_perceptiontest(write(tmp_path / "p.json", pt), "v", said.append)] == ["v/0", "v/2"]


def test_files_that_no_program_wrote(tmp_path):
    with pytest.raises(BadInput, match="no usable"):
        read_captions(write(tmp_path / "captions.json", [{"video": "a.mp4", "events": "a boy runs"}]), "v", lambda line: None)
    (tmp_path / "n.json").write_text("[" + "1" * 6000 + "]")
    with pytest.raises(BadInput, match="broken JSON"):
        read_quality(str(tmp_path / "n.json"), "v")
    (tmp_path / "test.parquet").write_bytes(b"no parquet")
    with pytest.raises(BadInput, match="parquet"):
        read_videomme(str(tmp_path / "test.parquet"), "v")


def write(path, content):
    path.write_text(json.dumps(content, indent=1))
    return str(path)


def test_the_multiple_choice_files(tmp_path):
    said = []
    mme = [{"question_id": "001-1", "videoID": "fFjv93ACGo8", "duration": "short", "question": "What?", "options": ["A. a cat.", "B. a dog."], "answer": "B"},
           {"question_id": "001-2", "videoID": "x", "duration": "long", "question": "What?", "options": ["A. a", "B. b"], "answer": "E"}]  # fmt: skip
    (e,) = read_videomme(write(tmp_path / "videomme.json", mme), "v", said.append)
    assert (e.answer, e.options, e.group, e.task) == ("B", ("a cat.", "a dog."), "short", "qa") and len(said) == 1 and "line 13" in said[0]
    mv = [{"video": "ZS9XR.mp4", "question": "What?", "candidates": ["Ate.", "Ran."], "answer": "Ran.", "start": 1.5, "end": 9.0}, {"video": "../a", "question": "q", "candidates": ["x", "y"], "answer": "x"}]
    (e,) = read_mvbench(write(tmp_path / "action_sequence.json", mv), "v", said.append)
    assert (e.answer, e.span, e.group, e.video) == ("B", (1.5, 9.0), "action_sequence", "v/star/Charades_v1_480/ZS9XR.mp4")
    (e,) = read_mvbench(write(tmp_path / "episodic_reasoning.json", [mv[0] | {"video": "castle_s01"}]), "v")
    assert e.video == "v/tvqa/frames_fps3_hq/castle_s01"
    pt = {"video_8241": {"metadata": {}, "mc_question": [{"id": 0, "question": "q?", "options": ["a", "b", "c"], "answer_id": 2, "area": "memory"}]}}
    (e,) = read_perceptiontest(write(tmp_path / "mc_question_valid.json", pt), "v")
    assert (e.id, e.answer, e.group, e.video) == ("video_8241/0", "C", "memory", "v/video_8241.mp4")
    (e,) = read_captions(write(tmp_path / "captions_train.json", [{"video": "a.mp4", "events": ["A dog runs.", "it  stops"]}]), "v")
    assert e.answer == ["A dog runs", "it stops"]


def test_names_never_lead_out_of_the_folder(tmp_path):
    for bad in ("../x.mp4", "/etc/passwd", "a/../../b", "", "a//b", "..", "a\x00b"):
        with pytest.raises(BadInput, match="no usable"):
            read_quality(write(tmp_path / "q.json", [{"video": bad, "answer": "low quality"}]), "v", lambda line: None)


def test_files_of_full_size_are_read_in_seconds(tmp_path):
    entries = [{"id": str(i), "video": f"{i % 997}/{i}.mp4", "question": "why", "options": [f"({c}) x{c}" for c in "ABCDE"], "glue": [[1, 2]], "answer": "(C)"} for i in range(34_132)]
    assert len(read_nextgqa(write(tmp_path / "nextgqa_val.json", entries), "v")) == 34_132


def test_examples_in_docstrings():
    assert doctest.testmod(annotations).failed == 0
