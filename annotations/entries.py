"""entries.py: from an annotation file to its entries, each with its line; and the words of one.

Readers (training_sets.py, benchmarks.py) know what a data set's entries mean. What they share is
here: files are read so that every complaint can name file and line, and an entry that cannot be
used costs itself alone.
"""

import json
import os
import re
from collections import Counter

from lib.errors import BadInput
from lib.wording import LETTERS, Letter

# ------------------------------------------------------------------------------------------------
# Files
# ------------------------------------------------------------------------------------------------


class Malformed(Exception):
    """One entry that cannot be used: what it should have been."""


def read_text(path):
    if not os.path.isfile(path):
        raise BadInput(f"annotation file {path} does not exist: check the path, or --data")
    try:
        with open(path, encoding="utf-8-sig") as f:  # with or without a byte order mark
            return f.read()
    except UnicodeDecodeError as e:
        raise BadInput(f"annotation file {path} is not a UTF-8 text file") from e


def json_entries(path):
    """The entries of a JSON list, dictionary or JSON Lines (or parquet), as [(line, key, value)].

    The keys of a list and of lines are 0, 1, …. json.loads would forget where an entry stands, and
    an error without a line helps nobody in a file of ten thousand questions.
    """
    if path.endswith(".parquet"):
        return parquet_entries(path)
    text = read_text(path)
    lines = [(k, line) for k, line in enumerate(text.split("\n"), 1) if line.strip()]
    if len(lines) > 1 and is_json(lines[0][1]):  # JSON Lines: a value in every line
        for number, line in lines:
            if not is_json(line):
                raise BadInput(f"{path}, line {number}: no JSON value, as the lines before it are")
        return [(number, k, json.loads(line)) for k, (number, line) in enumerate(lines)]
    decoder, space = json.JSONDecoder(), re.compile(r"[\s,]*")
    at = space.match(text).end()
    opening, entries, line, counted = text[at : at + 1], [], 1, 0
    if opening not in ("[", "{"):
        raise BadInput(f"{path} is not JSON: it begins with {text[:20]!r}")
    closing, at = "]" if opening == "[" else "}", at + 1
    try:
        while text[at := space.match(text, at).end()] != closing:
            line, counted, key = line + text.count("\n", counted, at), at, len(entries)
            if opening == "{":
                key, at = decoder.raw_decode(text, at)
                at = re.compile(r"\s*:\s*").match(text, at).end()
            value, at = decoder.raw_decode(text, at)
            entries.append((line, key, value))
        after = text[at + 1 :].lstrip()
    except (ValueError, IndexError, AttributeError, RecursionError) as e:
        # ValueError: no JSON, or a number of thousands of digits; RecursionError: nested too deep
        broken = f"broken JSON after {len(entries)} entries; download the file again"
        raise BadInput(f"{path}, line {1 + text.count(chr(10), 0, at)}: {broken}") from e
    if after:
        line = 1 + text.count("\n", 0, len(text) - len(after))
        raise BadInput(f"{path}, line {line}: after the JSON's end comes {after[:20]!r}")
    return entries


def is_json(text):
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def parquet_entries(path):
    """The rows of a parquet file as [(number from 1, number from 0, {column: value})]; with pyarrow
    installed."""
    try:
        from pyarrow.parquet import read_table
    except ImportError as e:
        raise BadInput(f"{path} is a parquet file: pip install pyarrow, or save it as JSON") from e
    if not os.path.isfile(path):
        raise BadInput(f"annotation file {path} does not exist: check the path, or --data")
    try:
        return [(k + 1, k, row) for k, row in enumerate(read_table(path).to_pylist())]
    except (ValueError, OSError, NotImplementedError) as e:  # pyarrow's own are kinds of these
        raise BadInput(f"{path} cannot be read as parquet; download it again") from e


# ------------------------------------------------------------------------------------------------
# Entries to Examples
# ------------------------------------------------------------------------------------------------

# What a reader raises when an entry has another form.
UNUSABLE = (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
FEW = 5  # complaints of one kind that are all told


def each_usable(rows, make):
    """For an entry with several questions: `make(row)` of each, or a Malformed in its place."""
    made = []
    for k, row in enumerate(rows):
        try:
            made.append(make(row))
        except Malformed as e:
            made.append(Malformed(f"number {k}: skipped, {e}"))
        except UNUSABLE:
            made.append(Malformed(f"number {k}: skipped, it has another form than the others"))
    return made


def collect(path, entries, make, report, form):
    """The Examples of all entries that can be used; the others are reported.

    Args:    entries: [(line, key, value)]; make(key, value) gives a list of Examples, with a
             Malformed in place of one that cannot be used, or raises; form: what an entry looks
             like, for the errors.
    Raises BadInput if no entry is usable.
    """
    examples, complaints = [], []
    for line, key, value in entries:
        try:
            for made in map(whole_text, make(key, value)):
                if isinstance(made, Malformed):
                    complaints.append((line, f"entry {key!r}, {made}"))
                else:
                    examples.append(made)
        except Malformed as e:
            complaints.append((line, f"skipped, {e}"))
        except UNUSABLE:
            complaints.append((line, f"skipped, needs {form}"))
    tell(path, complaints, report)
    if not examples:
        raise BadInput(f"{path} holds no usable entry; one has {form}")
    return examples


def tell(path, complaints, report):
    """Reports [(line, what is wrong)]: many of a kind, alike but for numbers and quoted words, are
    one sentence with the first place and a count."""
    kinds = [re.sub(r"'.*?'|[\d.]+", "", said) for _, said in complaints]
    count, told = Counter(kinds), set()
    for (line, said), kind in zip(complaints, kinds):
        if count[kind] > FEW and kind not in told:
            said += f"; and {count[kind] - 1:,} more like it"
        if count[kind] <= FEW or kind not in told:
            report(f"{path}, line {line}: {said}")
        told.add(kind)


def whole_text(made):
    """An Example, or a Malformed in its place if it holds half a character, JSON's "\\ud800" alone.

    No tokenizer, file or terminal takes one: it would end a run hours later.
    """
    try:
        if not isinstance(made, Malformed):
            json.dumps(vars(made), ensure_ascii=False, default=str).encode("utf-8")
    except UnicodeEncodeError as e:
        half = f"half a character (\\u{ord(e.object[e.start]):04x} alone)"
        return Malformed(f"skipped, a text in it holds {half}: write the file again as UTF-8")
    return made


# ------------------------------------------------------------------------------------------------
# The words of an entry
# ------------------------------------------------------------------------------------------------


def video_path(folder, name):
    """`name` inside `folder`, with the extension that exists there.

    Where none exists it is .mp4: an error names that file later. Names come from downloaded files
    and become paths, so a name that could lead out of the folder is refused.
    """
    name = str(name)
    if not re.fullmatch(r"[\w@-][\w@.() -]*(/[\w@-][\w@.() -]*)*", name):
        raise Malformed(f"{name[:60]!r} is no name of a file inside the data folder")
    for extension in ("", ".mp4", ".mkv", ".webm", ".avi", ".mov"):
        if os.path.exists(path := os.path.join(folder, name + extension)):
            return path
    return os.path.join(folder, name if re.search(r"\.\w{3,4}$", name) else name + ".mp4")


def own_name(path):
    """The name of a file without the folders that its publishers keep it in: video/1.mp4."""
    *folders, name = str(path).split("/")
    if ".." in folders:
        raise Malformed(f"{str(path)[:60]!r} is no name of a file inside the data folder")
    return name


def interval(start, end):
    """(start, end) in seconds. What begins before the video, as annotators' tools write it (-0.1,
    -0.0), begins at 0.0."""
    start, end = float(start), float(end)
    start = 0.0 if start <= 0 else start
    if not 0 <= start < end < float("inf"):
        raise Malformed(f"{start:g} to {end:g} is no interval in seconds")
    return start, end


def seconds_of(entry):
    """An entry's "duration" in seconds; None where it has none, or what is no length."""
    seconds = entry.get("duration")
    usable = isinstance(seconds, (int, float)) and 0 < seconds < float("inf")
    return float(seconds) if usable else None


def sentence(text):
    text = " ".join(str(text).split()).rstrip(".")
    if not text:
        raise Malformed("the sentence is empty")
    return text


def event_list(events):
    """A list of sentences, each of which says what happens."""
    if not isinstance(events, list) or not events:
        raise Malformed("'events' is no list of sentences, or an empty one")
    return [sentence(event) for event in events]


def letter_of(answer, options):
    """The Letter of the right option, given as "(C)", "C", "C. text", its number, or its text."""
    match = re.fullmatch(r"\(?([A-Z])(\)|\.|$).*", str(answer).strip(), re.DOTALL)
    if isinstance(answer, int):
        number = answer
    elif match and match[1] in LETTERS[: len(options)]:
        number = LETTERS.index(match[1])
    else:
        number = options.index(str(answer)) if str(answer) in options else -1
    if 0 <= number < len(options):
        return Letter(LETTERS[number], len(options))
    raise Malformed(f"the answer {str(answer)[:60]!r} is none of the {len(options)} options")


def bare_options(options):
    """Options without the letters in front of them, if every option bears its own.

    A letter in front of one alone belongs to what it says: "A. Lincoln", "I) the first".

    >>> bare_options(["(A) a cat", "(B) a dog"]), bare_options(["A. Lincoln", "the driver"])
    (('a cat', 'a dog'), ('A. Lincoln', 'the driver'))
    """
    options = tuple(str(option).strip() for option in options)
    if not 2 <= len(options) <= len(LETTERS):
        raise Malformed(f"{len(options)} options")
    own = [rf"\(?{letter}[).]\s*" for letter in LETTERS[: len(options)]]
    if all(map(re.match, own, options)):
        options = tuple(re.sub(f"^{letter}", "", o) for letter, o in zip(own, options))
    return options
