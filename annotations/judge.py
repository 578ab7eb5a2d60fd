"""judge.py: a language model that decides whether a caption tells of an event, for `--judge MODEL`.

The judge built into rewards.py counts content words: it is exact, free, and blind to synonyms
("a kid" for "a child") and to negation ("does not move"). Any local Hugging Face language model can
take its place. It is asked a yes-or-no question and never generates: what counts is which of the
two words it finds likelier as the next token,

    log-odds = log Σ p(ways to write yes) − log Σ p(ways to write no)  > 0.

That takes one forward pass per question. It can be fooled, as every learned reward can: a policy
trained long enough finds captions that please it. Read some of the run's, in its rollouts.jsonl.
"""

import functools
import hashlib
import re

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rewards
from lib.errors import BadInput
from lib.weights import one_sentence, read_weights

QUESTION = (
    "A caption of a video says:\n{caption}\n\n"
    "Does it follow from this caption that this happens in the video: {event}?\n"
    "Answer with one word, yes or no."
)


def yes_and_no(tokenizer):
    """The first tokens of all ways to write yes ("yes", "Yes", " yes", …) and of those to write no,
    without the tokens that both begin with."""
    yes, no = (
        {
            tokenizer(before + way, add_special_tokens=False)["input_ids"][0]
            for before in ("", " ")
            for way in (word, word.capitalize(), word.upper())
        }
        for word in ("yes", "no")
    )
    return sorted(yes - no), sorted(no - yes)


def question_ids(tokenizer, caption, event):
    """The question as the judge reads it, in its chat format where it has one. Returns (1, L)."""
    text = QUESTION.format(caption=caption, event=event)
    if not tokenizer.chat_template:
        return tokenizer(text + "\nAnswer:", return_tensors="pt")["input_ids"]
    turn = [{"role": "user", "content": text}]
    how = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    return tokenizer.apply_chat_template(turn, **how)["input_ids"]


@torch.no_grad()
def log_odds(model, tokenizer, caption, event):
    """How much likelier than no the judge's next word is yes, in nats."""
    logits = model(question_ids(tokenizer, caption, event).to(model.device)).logits[0, -1].float()
    yes, no = yes_and_no(tokenizer)
    return float(logits[yes].logsumexp(0) - logits[no].logsumexp(0))


def load_judge(name, device):
    """The judge as a function (caption, event) → bool, to be put in the place of `rewards.judge`.

    name: a local folder or hub name of a causal language model; code that lies in it is never run.
    Raises BadInput if it is none, if its files are damaged, or if its tokenizer begins yes and no
    alike.
    """
    with one_sentence(f"--judge {name} is not a language model that transformers can load"):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model = read_weights(AutoModelForCausalLM, name, "auto")
    model = model.to(device).eval().requires_grad_(False)
    if not all(yes_and_no(tokenizer)):
        alike = "its tokenizer begins yes and no with the same token"
        raise BadInput(f"--judge {name} cannot be asked: {alike}")

    @functools.lru_cache(maxsize=100_000)  # a group says the same thing more than once
    def judge(caption, event):
        return bool(caption.strip()) and log_odds(model, tokenizer, caption[:4000], event) > 0

    return judge


def noisy_judge(rate):
    """The built-in judge, but wrong in a share `rate` of its decisions, always in the same ones.

    For experiments: how good must a judge be? Which decisions are wrong hangs on the caption's and
    the event's letters alone, so a run can be repeated.
    """

    def judge(caption, event):
        digest = hashlib.sha1(f"{caption}\n{event}".encode(errors="replace")).digest()
        wrong = int.from_bytes(digest[:4], "big") < rate * 2**32
        return rewards.says(caption, event) != wrong

    return judge


def install_judge(name, device):
    """Lets another judge decide from here on, in every caption reward and metric: a language model,
    or by the name "noisy:0.2" the embedded one, wrong in a fifth of its decisions.
    """
    if name.startswith("noisy:"):
        match = re.fullmatch(r"noisy:(0|1|0?\.\d+)", name)
        if not match:
            raise BadInput(f"--judge {name}: after noisy: comes a share from 0 to 1, as noisy:0.2")
        rewards.judge = noisy_judge(float(match[1]))
    else:
        rewards.judge = load_judge(name, device)
