"""entries.py: from an annotation file to its entries; and the words of one.

Readers (training_sets.py, benchmarks.py) know what a data set's entries mean. What they share is
here: every complaint names file and entry, and an entry that cannot be used costs itself alone.
"""

import json
import os
import re

from lib.errors import BadInput, first_line
from lib.wording import LETTERS, Letter

# ------------------------------------------------------------------------------------------------
# Files
# ------------------------------------------------------------------------------------------------


def read_text(path):
    if not os.path.isfile(path):
        raise BadInput(f"annotation file {path} does not exist: check the path, or --data")
    try:
        with open(path, encoding="utf-8-sig") as f:  # with or without a byte order mark
            return f.read()
    except UnicodeDecodeError as e:
        raise BadInput(f"annotation file {path} is not a UTF-8 text file") from e


def lines_of(path):
    """The lines of a text file that are not empty, as [(number, text)]."""
    return [(n, line) for n, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]


def parsed(path, text, line=1):
    """The value of a JSON text that begins in this line of the file."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        # without a lineno: a number of thousands of digits, and what is nested too deep
        line, why = line + getattr(e, "lineno", 1) - 1, first_line(e, most=80)
        raise BadInput(f"{path}, line {line}: broken JSON ({why}); download it again") from e


def json_entries(path):
    """The entries of a JSON list, dictionary or JSON Lines, as [(key, value)]. The keys of a list
    and of lines are 0, 1, …."""
    text = read_text(path)
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if len(lines) > 1 and re.fullmatch(r"\s*\{.*\}\s*", lines[0][1]):  # JSON Lines
        return list(enumerate(parsed(path, line, n) for n, line in lines))
    whole = parsed(path, text)
    if not isinstance(whole, (list, dict)):
        raise BadInput(f"{path} holds neither a list nor a dictionary: {text[:20]!r}")
    return list(whole.items() if isinstance(whole, dict) else enumerate(whole))


# ------------------------------------------------------------------------------------------------
# Entries to Examples
# ------------------------------------------------------------------------------------------------

# What a reader raises when an entry has another form.
UNUSABLE = (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
FEW = 5  # complaints of one kind that are all told


def questions(entries, of_entry):
    """Entries with several questions → one entry a question; of_entry(key, value) gives those of
    one, or raises: then it is one entry, None, for its reader to refuse."""
    for key, value in entries:
        try:
            rows = list(of_entry(key, value))
        except UNUSABLE:
            rows = [None]
        yield from ((f"{key}, number {k}", row) for k, row in enumerate(rows))


def collect(path, entries, make, report, form, unit="entry"):
    """The Examples of all entries that can be used; the others are reported.

    Args:    entries: (key, value) each; make(key, value) gives an Example, or raises BadInput or
             one of UNUSABLE, which costs this entry alone; form: what an entry looks like, for the
             errors; unit: what a key counts or names.
    Raises BadInput if no entry is usable.
    """
    examples, complaints = [], {}
    for key, value in entries:
        try:
            example = make(key, value)
            # Half a character ("\ud800" alone), which no tokenizer, file or terminal takes.
            json.dumps(vars(example), ensure_ascii=False, default=str).encode("utf-8")
            examples.append(example)
            continue
        except BadInput as e:
            why = str(e)
        except UnicodeEncodeError:
            why = "a text in it holds half a character: write the file again as UTF-8"
        except UNUSABLE:
            why = f"needs {form}"
        kind = re.sub(r"'.*?'|[\d.]+", "", why)  # alike but for numbers and quoted words
        complaints.setdefault(kind, []).append(f"{path}, {unit} {key!r}: skipped, {why}")
    for said in complaints.values():
        more = f"{said[0]}; and {len(said) - 1:,} more like it"
        for sentence in said if len(said) <= FEW else [more]:
            report(sentence)
    if not examples:
        raise BadInput(f"{path} holds no usable entry; one has {form}")
    return examples


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
        raise BadInput(f"{name[:60]!r} is no name of a file inside the data folder")
    for extension in ("", ".mp4", ".mkv", ".webm", ".avi", ".mov"):
        if os.path.exists(path := os.path.join(folder, name + extension)):
            return path
    return os.path.join(folder, name if re.search(r"\.\w{3,4}$", name) else name + ".mp4")


def interval(start, end):
    """(start, end) in seconds. What begins before the video, as annotators' tools write it (-0.1,
    -0.0), begins at 0.0."""
    start, end = float(start), float(end)
    start = 0.0 if start <= 0 else start
    if not 0 <= start < end < float("inf"):
        raise BadInput(f"{start:g} to {end:g} is no interval in seconds")
    return start, end


def seconds_of(entry):
    """An entry's "duration" in seconds; None where it has none, or what is no length."""
    seconds = entry.get("duration")
    usable = isinstance(seconds, (int, float)) and 0 < seconds < float("inf")
    return float(seconds) if usable else None


def sentence(text):
    text = " ".join(str(text).split()).rstrip(".")
    if not text:
        raise BadInput("the sentence is empty")
    return text


def event_list(events):
    """A list of sentences, each of which says what happens."""
    if not isinstance(events, list) or not events:
        raise BadInput("'events' is no list of sentences, or an empty one")
    return [sentence(event) for event in events]


def letter_of(answer, options):
    """The Letter of the right option, given as "(C)", "C", "C. text" or its number."""
    match = re.fullmatch(r"\(?([A-Z])(\)|\.|$).*", str(answer).strip(), re.DOTALL)
    number = LETTERS.index(match[1]) if match else answer
    if isinstance(number, int) and 0 <= number < len(options):
        return Letter(LETTERS[number], len(options))
    raise BadInput(f"the answer {str(answer)[:60]!r} is none of the {len(options)} options")


def bare_options(options):
    """Options without the letters in front of them, if every option bears its own.

    A letter in front of one alone belongs to what it says: "A. Lincoln", "I) the first".

    >>> bare_options(["(A) a cat", "(B) a dog"]), bare_options(["A. Lincoln", "the driver"])
    (('a cat', 'a dog'), ('A. Lincoln', 'the driver'))
    """
    options = tuple(str(option).strip() for option in options)
    if not 2 <= len(options) <= len(LETTERS):
        raise BadInput(f"{len(options)} options")
    own = [rf"\(?{letter}[).]\s*" for letter in LETTERS[: len(options)]]
    if all(map(re.match, own, options)):
        options = tuple(re.sub(f"^{letter}", "", o) for letter, o in zip(own, options))
    return options
