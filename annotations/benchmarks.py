"""benchmarks.py: the files of data sets that are only evaluated on → Examples.

The same contract as in training_sets.py: a reader takes one file and the folder of its videos,
gives Examples in the file's order, and reports what it has to leave out.
"""

import os

from annotations import entries as e
from data import Example


def choice(id, video, entry, options, answer, group, span=None):
    """The Example of an entry with a "question"; answer: as entries.letter_of takes it."""
    options = e.bare_options(options)
    right = e.letter_of(answer, options)
    return Example(id, "qa", video, e.sentence(entry["question"]), right, options, span, str(group))


def read_videomme(path, videos, report=print):
    """Video-MME, from a JSON list of the columns of its parquet file (docs/datasets.md).

    group: its split by length, "short", "medium" or "long".
    """

    def make(_, entry):
        id, video = str(entry["question_id"]), e.video_path(videos, entry["videoID"])
        return choice(id, video, entry, entry["options"], entry["answer"], entry["duration"])

    form = "'question_id', 'videoID', 'duration', 'question', 'options' and 'answer'"
    return e.collect(path, e.json_entries(path), make, report, form)


def read_longvideobench(path, videos, report=print):
    """LongVideoBench's validation questions:
    [{"id", "video_path", "question", "candidates": […], "correct_choice": 2, "duration_group": 60}]

    group: its split by length, "up to 60 s". Subtitles are not read.
    """

    def make(_, entry):
        id, video = str(entry["id"]), e.video_path(videos, entry["video_path"])
        group, right = f"up to {int(entry['duration_group'])} s", int(entry["correct_choice"])
        return choice(id, video, entry, entry["candidates"], right, group)

    form = "'id', 'video_path', 'question', 'candidates', 'correct_choice' and 'duration_group'"
    return e.collect(path, e.json_entries(path), make, report, form)


# Where MVBench's own archive keeps the clips of each of its 20 sub-tasks.
MVBENCH_FOLDERS = {
    subtask: folder
    for folder, subtasks in {
        "star/Charades_v1_480": "action_sequence action_prediction object_interaction",
        "clevrer/video_validation": "object_existence moving_direction moving_count "
        "moving_attribute counterfactual_inference",
        "perception/videos": "object_shuffle action_count state_change character_order",
        "ssv2_video": "action_antonym",
        "Moments_in_Time_Raw/videos": "fine_grained_action",
        "FunQA_test/test": "unexpected_action",
        "sta/sta_video": "action_localization",
        "scene_qa/video": "scene_transition",
        "nturgbd": "fine_grained_pose",
        "vlnqa": "egocentric_navigation",
        "tvqa/frames_fps3_hq": "episodic_reasoning",
    }.items()
    for subtask in subtasks.split()
}


def read_mvbench(path, videos, report=print):
    """MVBench, one of its 20 JSON files:
    [{"video", "question", "candidates": […], "answer": "…", "start", "end"}].

    group: the sub-task, which is the file's name. start and end, where given, are the seconds of
    the video that the question is about. The clips of episodic_reasoning are folders of frames,
    three per second.
    """
    subtask = os.path.splitext(os.path.basename(path))[0]
    folder = os.path.join(videos, MVBENCH_FOLDERS.get(subtask, subtask))

    def make(k, entry):
        options = list(map(str, entry["candidates"]))
        span = e.interval(entry["start"], entry["end"]) if entry.get("end") is not None else None
        video = e.video_path(folder, entry["video"])
        video = video.removesuffix(".mp4") if "frames" in folder else video
        right = options.index(str(entry["answer"]))
        return choice(f"{subtask}/{k}", video, entry, options, right, subtask, span)

    form = "'video', 'question', 'candidates' and 'answer', which is one of them"
    return e.collect(path, e.json_entries(path), make, report, form)


def read_perceptiontest(path, videos, report=print):
    """Perception Test: {"video_8241": {"mc_question": [
    {"id", "question", "options": [3 of them], "answer_id", "area"}]}}.
    """

    def make(_, row):
        name, entry = row
        id, right = f"{name}/{entry['id']}", int(entry["answer_id"])
        video, group = e.video_path(videos, name), entry.get("area", "")
        return choice(id, video, entry, entry["options"], right, group)

    rows = lambda name, entry: [(name, question) for question in entry["mc_question"]]
    form = "'mc_question', each with 'id', 'question', 'options' and 'answer_id'"
    return e.collect(path, e.questions(e.json_entries(path), rows), make, report, form)


def read_dream1k(path, videos, report=print):
    """DREAM-1K: [{"idx": 1, "video_file": "video/1.mp4", "source": "movie_animation",
                   "description": "Two birds fly off.", "events": ["two birds fly off"]}].

    answer: (events, description); group: the source.
    """

    def make(_, entry):
        video = e.video_path(videos, entry["video_file"].rpartition("/")[2])
        answer = (e.event_list(entry["events"]), e.sentence(entry["description"]))
        group = str(entry["source"])
        return Example(str(entry["idx"]), "description", video, "", answer, group=group)

    form = "'idx', 'video_file', 'source', 'description' and 'events', a list of sentences"
    return e.collect(path, e.json_entries(path), make, report, form)
