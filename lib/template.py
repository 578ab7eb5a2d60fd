"""template.py: the user's own wording of a prompt, --prompt FILE."""

from string import Formatter

from lib.errors import BadInput

FIELDS = ("question", "duration", "options", "box")


def read_template(path):
    """The text of --prompt FILE. Raises BadInput for a file that cannot be read or asked."""
    try:
        with open(path, encoding="utf-8-sig") as f:
            text = f.read().rstrip("\n")
        names = fields_in(text)
    except OSError as e:
        raise BadInput(f"--prompt {path} cannot be read: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise BadInput(f"--prompt {path} is no text in UTF-8") from e
    except ValueError as e:  # string.Formatter's
        why = "a single { or } is nothing; write {{ or }} for one that is to be seen"
        raise BadInput(f"--prompt {path}: {why}") from e
    for name in names:
        if name not in FIELDS:
            known = ", ".join(f"{{{field}}}" for field in FIELDS)
            raise BadInput(f"--prompt {path}: {{{name}}} stands for nothing; there is: {known}")
    if text.count("<video>") != 1:
        found = text.count("<video>")
        raise BadInput(
            f"--prompt {path}: <video> must be there once, where the video stands; it is there "
            f"{found} times"
        )
    if "<|" in text:
        raise BadInput(f"--prompt {path}: <|…|> are the model's own marks, and cannot be words")
    return text


def fields_in(text):
    """The names in the braces of a prompt, with whatever stands beside a name: {a!r}, {a:.2f}."""
    parts = [part for part in Formatter().parse(text) if part[1] is not None]
    return [
        name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
        for _, name, spec, conversion in parts
    ]


def check_template(template, task, prompt):
    """Raises BadInput unless a wording names what the task's own prompt does, and nothing else."""
    given = set(fields_in(template)) - {"duration"}
    wanted = {field.split(":")[0] for field in fields_in(prompt)} - {"duration"}
    for field in sorted(wanted - given):
        raise BadInput(f"--prompt does not name {{{field}}}, which the task {task} asks about")
    for field in sorted(given - wanted):
        raise BadInput(f"--prompt names {{{field}}}, which the task {task} does not have")
