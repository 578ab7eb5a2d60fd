"""Is the grader any good? Wrong solutions, each of which it must reject with words that point at
the mistake, and right ones that are written differently from ours, which must pass.

    python tests/wrong_solutions.py          # prints the totals, and every one that went wrong
    python tests/wrong_solutions.py -v       # and what a student would read for each

A wrong solution is ours with one piece exchanged: (exercise, the mistake, the piece, what stands
there instead, words of the message). With "" for the piece, the new text is added at the end, where
a function of the same name takes the place of ours. Pieces are short expressions, so that few
changes of the reference touch them.
"""

import os
import re
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from course import exercises, grading  # noqa: E402

WRONG = [
    # 1. temporal IoU
    (1, "negative overlap", "max(0.0, min(a_end, b_end) - max(a_start, b_start))",
     "min(a_end, b_end) - max(a_start, b_start)", "apart negative"),
    (1, "absolute overlap", "max(0.0, min(a_end, b_end) - max(a_start, b_start))",
     "abs(min(a_end, b_end) - max(a_start, b_start))", "apart negative"),
    (1, "empty intervals divide by 0", "a_end <= a_start or b_end <= b_start",
     "a_end < a_start or b_end < b_start", "ZeroDivisionError line 0 / 0"),
    (1, "reversed intervals sorted", "(a_start, a_end), (b_start, b_end) = a, b",
     "(a_start, a_end), (b_start, b_end) = sorted(a), sorted(b)", "reversed sort"),
    (1, "shared seconds twice in the union", "(max(a_end, b_end) - min(a_start, b_start))",
     "(a_end - a_start + b_end - b_start)", "union once"),
    (1, "share of the true interval only", "(max(a_end, b_end) - min(a_start, b_start))",
     "(b_end - b_start)", "one interval coverage"),
    (1, "seconds, not a ratio", "/ (max(a_end, b_end) - min(a_start, b_start))", "",
     "seconds divide"),
    (1, "nothing is returned", "return shared /", "shared /", "return missing"),
    # 2. box IoU
    (2, "two negative overlaps multiply",
     "max(0.0, min(ax1, bx1) - max(ax0, bx0)) * max(0.0, min(ay1, by1) - max(ay0, by0))",
     "max(0.0, (min(ax1, bx1) - max(ax0, bx0)) * (min(ay1, by1) - max(ay0, by0)))",
     "both directions negative"),
    (2, "inside out has positive area", "max(0.0, ax1 - ax0) * max(0.0, ay1 - ay0)",
     "(ax1 - ax0) * (ay1 - ay0)", "ZeroDivisionError holds nothing"),
    (2, "inside out is turned back", "([min(1.0, max(0.0, v)) for v in box] for box in (a, b))",
     "([min(1.0, max(0.0, v)) for v in (*map(min, box[:2], box[2:]), *map(max, box[:2], "
     "box[2:]))] for box in (a, b))", "inside out"),
    (2, "outside the frame counts", "[min(1.0, max(0.0, v)) for v in box]", "box",
     "outside the frame"),
    (2, "union of 0", "if area_a == 0 or area_b == 0:\n        return 0.0", "",
     "ZeroDivisionError hold nothing"),
    (2, "x, y, width, height", "([min(1.0, max(0.0, v)) for v in box] for box in (a, b))",
     "((x, y, min(1.0, x + w), min(1.0, y + h)) for x, y, w, h in (a, b))", "width height corners"),
    (2, "the union counts twice", "(area_a + area_b - shared)", "(area_a + area_b)", "union once"),
    (2, "only the x axis", "", """
def box_iou(a, b):
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    return shared / (a[2] - a[0] + b[2] - b[0] - shared)
""", "axis height"),
    # 3. format
    (3, "re.match: text after it", "re.fullmatch", "re.match", "after the block fullmatch"),
    (3, "re.search: text before it", "re.fullmatch(pattern, text, re.DOTALL)",
     "re.search(pattern + '$', text, re.DOTALL)", "before the block fullmatch"),
    (3, "tags are not counted", "[text.count(tag) for tag in TAGS] == expected and ", "",
     "two exactly once"),
    (3, "one line only", ", re.DOTALL", "", "several lines DOTALL"),
    (3, "only opening tags counted", "[text.count(tag) for tag in TAGS] == expected",
     "[text.count(tag) for tag in TAGS[::2]] == expected[::2]", "opening closing"),
    (3, "thinking is optional", "", r"""
def well_formed(text, think, glue=False):
    pattern = r"\s*(<think>.*</think>)?\s*<answer>.*</answer>\s*" + r"<glue>.*</glue>\s*" * glue
    return text.count("<answer>") == 1 and bool(re.fullmatch(pattern, text, re.DOTALL))
""", "missing asked"),
    (3, "counted, but in any order", " and bool(re.fullmatch(pattern, text, re.DOTALL))", "",
     "before the block"),
    (3, "a match object", "bool(re.fullmatch(pattern, text, re.DOTALL))",
     "re.fullmatch(pattern, text, re.DOTALL)", "True or False"),
    # 4. sets of intervals
    (4, "the inner interval shortens the outer", "max(out[-1][1], end)", "end", "inside later max"),
    (4, "not sorted", "sorted(interval for interval in intervals if interval[1] > interval[0])",
     "[i for i in intervals if i[1] > i[0]]", "sort"),
    (4, "reversed ones kept", " if interval[1] > interval[0]", "", "reversed left out"),
    (4, "not merged: paid twice", "a, b = merged(a), merged(b)", "", "twice merge"),
    (4, "union of 0", " if either > 0 else 0.0", "", "union 0 / 0 ZeroDivisionError"),
    (4, "ratio of sums of lengths", "merged(a + b)", "a + b", "once merge both"),
    (4, "best pair", "", """
def interval_set_iou(a, b):
    return max(
        (
            max(0.0, min(x[1], y[1]) - max(x[0], y[0])) / (max(x[1], y[1]) - min(x[0], y[0]))
            for x in a
            for y in b
        ),
        default=0.0,
    )
""", "pairs"),
    (4, "sorts the caller's list", "out = []", "out = []\n    intervals.sort()",
     "changed its argument in place"),
    # 5. advantages
    (5, "population std", "std(dim=-1, keepdim=True)", "std(dim=-1, keepdim=True, correction=0)",
     "population n − 1"),
    (5, "variance", "rewards.std(dim=-1", "rewards.var(dim=-1", "variance"),
    (5, "no 1e-4", " + 1e-4", "", "1e-4"),
    (5, "1e-4 under the root", "(rewards.std(dim=-1, keepdim=True) + 1e-4)",
     "(rewards.var(dim=-1, keepdim=True) + 1e-4).sqrt()", "root 1e-4"),
    (5, "mean and std of the whole batch", "mean(dim=-1, keepdim=True)", "mean()",
     "each group batch dimension"),
    (5, "over the prompts", "mean(dim=-1, keepdim=True)", "mean(dim=0, keepdim=True)",
     "each group dimension"),
    (5, "not centred", "rewards - rewards.mean(dim=-1, keepdim=True)", "rewards",
     "mean not taken off"),
    (5, "always divided", " if divide_by_std else centred", "", "divide_by_std"),
    (5, "in place", "rewards - rewards.mean(dim=-1, keepdim=True)",
     "rewards.sub_(rewards.mean(dim=-1, keepdim=True))", "changed its argument in place"),
    # 6. KL
    (6, "Δ turned round", "logp_ref - logp", "logp - logp_ref", "wrong way round biased"),
    (6, "k1", "delta.exp() - delta - 1", "-delta", "k1 negative"),
    (6, "k2", "delta.exp() - delta - 1", "delta**2 / 2", "k2 biased"),
    (6, "sign", "delta.exp() - delta - 1", "1 + delta - delta.exp()", "sign never negative"),
    (6, "no −1", "delta.exp() - delta - 1", "delta.exp() - delta", "−1 missing agree"),
    (6, "detached", "logp_ref - logp", "logp_ref - logp.detach()", "gradient detach"),
    (6, "ours handed in", "", """
import grpo


def kl_k3(logp, logp_ref):
    return grpo.kl_k3(logp, logp_ref)
""", "exercise 6 itself does not answer"),
    (6, "mean over tokens", "delta.exp() - delta - 1", "(delta.exp() - delta - 1).mean()", "shape"),
    # 7. mask
    (7, "EOS itself excluded", "is_stop.cumsum(dim=-1) - is_stop", "is_stop.cumsum(dim=-1)",
     "stop token itself learns"),
    (7, "one too many", "is_stop.cumsum(dim=-1) - is_stop",
     "is_stop.cumsum(dim=-1) - is_stop - is_stop.roll(1, -1)", "one too many padding"),
    (7, "only the stop tokens masked", "stops_before == 0", "~torch.isin(tokens, stop)",
     "only the stop token"),
    (7, "argmax without a stop token", "", """
def completion_mask(tokens, stop):
    return torch.arange(tokens.shape[-1]) <= torch.isin(tokens, stop).int().argmax(-1, keepdim=True)
""", "argmax room"),
    (7, "up to the last stop token", "", """
def completion_mask(tokens, stop):
    own = torch.isin(tokens, stop).int().flip(-1).cumsum(-1).flip(-1) > 0
    return own | ~own.any(-1, keepdim=True)
""", "first padding"),
    (7, "one stop id only", "torch.isin(tokens, stop)", "(tokens == stop[0])", "several stop isin"),
    (7, "ints", "stops_before == 0", "(stops_before == 0).int()", "dtype torch.bool"),
    # 8. log-probs
    (8, "one too late", "", """
def predicting_states(hidden, group):
    G, C = group
    return hidden[-G * C :].unflatten(0, (G, C))
""", "too late"),
    (8, "shift of the whole row", "", """
def predicting_states(hidden, group):
    G, C = group
    return hidden[-G * C - 1 : -1].unflatten(0, (G, C))
""", "end of the first prompt's last"),
    (8, "first state of the prompt", "hidden[P - 1]", "hidden[0]", "prompt's last"),
    (8, "detached prompt", "hidden[P - 1]", "hidden[P - 1].detach()", "gradient detached"),
    (8, "probabilities", "logits.log_softmax(dim=-1)", "logits.softmax(dim=-1)", "probability log"),
    (8, "logits, not normalised", "logits.log_softmax(dim=-1)", "logits", "logit normalisation"),
    (8, "log of softmax", "logits.log_softmax(dim=-1)", "logits.softmax(dim=-1).log()",
     "overflows log_softmax"),
    (8, "softmax over the tokens", "log_softmax(dim=-1)", "log_softmax(dim=0)", "vocabulary"),
    (8, "entropy NaN", "logp.clamp_min(-1e9)", "logp", "NaN clamp"),
    (8, "entropy with gradient", "with torch.no_grad():", "if True:", "entropy no_grad"),
    (8, "log-probs detached", "logp.gather(1, tokens[:, None])",
     "logp.detach().gather(1, tokens[:, None])", "gradient logits"),
    (8, "entropy in bits", "sum(dim=-1)", "sum(dim=-1) / 0.6931471805599453", "bits nats"),
    # 9. objective
    (9, "mean over all tokens", "mask / (mask.sum(dim=-1, keepdim=True) * n_completions)",
     "mask / mask.sum()", "all tokens long"),
    (9, "padding counted in the length", "mask.sum(dim=-1, keepdim=True) * n_completions",
     "mask.shape[-1] * n_completions", "padding length"),
    (9, "padding has weight", "mask / (mask.sum(dim=-1, keepdim=True) * n_completions)",
     "torch.ones_like(mask) / (mask.sum(dim=-1, keepdim=True) * n_completions)", "own tokens"),
    (9, "mask's rows in place of n_completions", "mask.sum(dim=-1, keepdim=True) * n_completions",
     "mask.sum(dim=-1, keepdim=True) * len(mask)", "whole step parts add up"),
    (9, "dr_grpo by length", 'if loss == "dr_grpo":', 'if loss == "never":',
     "dr_grpo max_new_tokens"),
    (9, "sign of the loss", "-(weights", "(weights", "sign minus"),
    (9, "clip alone", "torch.minimum(ratio * A, clipped_ratio * A)", "clipped_ratio * A",
     "clip(ρ) A alone"),
    (9, "maximum", "torch.minimum", "torch.maximum", "larger min"),
    (9, "no clip", "torch.minimum(ratio * A, clipped_ratio * A)", "ratio * A", "clipped min"),
    (9, "one clip for both sides", "1 + clip_high", "1 + clip_low", "clip_high upper"),
    (9, "logp_old ignored", "logp - logp_old", "logp - logp.detach()", "logp_old ignored"),
    (9, "ratio turned", "logp - logp_old", "logp_old - logp", "gradient turned"),
    (9, "no exp", "log_ratio.exp()", "(1 + log_ratio)", "1 + log ρ exp"),
    (9, "log of the ratio", "log_ratio.exp()", "log_ratio", "log exp missing"),
    (9, "gradient cut off", "log_ratio.exp()", "log_ratio.exp().detach()",
     "gradient detach nothing"),
    (9, "KL's sign", "objective - beta * kl", "objective + beta * kl", "KL sign reference"),
    (9, "β forgotten", "objective - beta * kl", "objective - kl", "β missing"),
    (9, "KL detached in the loss", "objective - beta * kl", "objective - beta * kl.detach()",
     "KL detached gradient"),
    (9, "KL to watch with its graph", '"kl": kl.detach()', '"kl": kl', "kl carries a gradient"),
    (9, "advantages along the tokens", "advantages[:, None]", "advantages",
     "advantages rows broadcast"),
    (9, "mean in place of the weights", "(weights * (objective - beta * kl)).sum()",
     "(objective - beta * kl)[mask].mean()", "weight"),
    (9, "padding multiplied away", "torch.where(mask, logp - logp_old, 0.0)",
     "(logp - logp_old) * mask", "padding where NaN"),
    (9, "KL at padding", "torch.where(mask, logp_ref, 0.0)", "logp_ref", "padding NaN"),
    (9, "gspo: mean over padding too",
     "log_ratio.sum(dim=-1, keepdim=True) / mask.sum(dim=-1, keepdim=True)",
     "log_ratio.mean(dim=-1, keepdim=True)", "gspo own"),
    (9, "gspo: the sum", "log_ratio.sum(dim=-1, keepdim=True) / mask.sum(dim=-1, keepdim=True)",
     "log_ratio.sum(dim=-1, keepdim=True)", "gspo mean"),
    # 10. positions
    (10, "text inside the video (transformers ≥ 5.3)", "int(video.max()) + 1", "start + max(h, w)",
     "transformers largest + 1"),
    (10, "no + 1", "int(video.max()) + 1", "int(video.max())", "one too few"),
    (10, "tokens counted", "int(video.max()) + 1", "start + t * h * w",
     "tokens counted largest position"),
    (10, "h and w swapped", "h, w = h // merge, w // merge", "w, h = h // merge, w // merge",
     "swapped rows"),
    (10, "columns first", 'torch.meshgrid(time, torch.arange(h), torch.arange(w), indexing="ij")',
     '(lambda a, b, c: (a, c, b))(*torch.meshgrid(time, torch.arange(h), torch.arange(w), '
     'indexing="ij"))', "swapped rows"),
    (10, "pairs, not seconds", "(torch.arange(t) * seconds * tokens_per_second)",
     "(torch.arange(t) * 1.0)", "seconds_per_grid"),
    (10, "floor too early", "(torch.arange(t) * seconds * tokens_per_second).floor().long()",
     "torch.arange(t) * int(seconds * tokens_per_second)", "floor multiplication"),
    (10, "rounded", ".floor()", ".round()", "rounded floor"),
    (10, "patches, not tokens", "h, w = h // merge, w // merge", "", "AssertionError line"),
    (10, "the start forgotten", ".reshape(3, -1) + start", ".reshape(3, -1)", "start"),
    # 11. sampling
    (11, "prompts repeated, not the cache", "", """
ours = sample_groups


def sample_groups(
    model, prompts, features, group_size, max_new_tokens, stop_ids, generators=None, on_token=None
):
    repeat = lambda things: things and [x for x in things for _ in range(group_size)]
    out = ours(
        model,
        repeat(prompts),
        repeat(features),
        1,
        max_new_tokens,
        stop_ids,
        repeat(generators),
        on_token,
    )
    return tuple(x.view(len(prompts), group_size, -1) for x in out)
""", "each prompt read once prefill repeat the logits"),
    (11, "no cache: everything is read again for each token", "", """
from dataclasses import replace


def sample_groups(
    model, prompts, features, group_size, max_new_tokens, stop_ids, generators=None, on_token=None
):
    B, G, tokens, logps = len(prompts), group_size, [], []
    with torch.no_grad():
        for step in range(max_new_tokens):
            rows = [
                replace(
                    p,
                    ids=torch.cat([p.ids, torch.stack([x[b * G + g] for x in tokens])])
                    if tokens
                    else p.ids,
                )
                for b, p in enumerate(prompts)
                for g in range(G)
            ]
            logp = prefill(model, rows, [f for f in features for _ in range(G)])[0].log_softmax(-1)
            token = (
                draw(
                    logp,
                    torch.cat(
                        [torch.rand(G, dtype=torch.float64, generator=g) for g in generators]
                    ),
                )
                if generators
                else logp.argmax(-1)
            )
            if on_token:
                on_token(token)
            if tokens:
                token = torch.where(
                    completion_mask(torch.stack([*tokens, token], 1), torch.tensor(stop_ids))[
                        :, -1
                    ],
                    token,
                    stop_ids[0],
                )
            tokens.append(token)
            logps.append(logp.gather(1, token[:, None])[:, 0])
    tokens, logps = torch.stack(tokens, 1), torch.stack(logps, 1)
    mask = completion_mask(tokens, torch.tensor(stop_ids))
    n = int(mask.any(0).sum())
    return tuple(x[:, :n].view(B, G, n) for x in (tokens, mask, logps))
""", "each prompt read once"),
    (11, "repeat in place of repeat_interleave", "logits.repeat_interleave(G, dim=0)",
     "logits.repeat(G, 1)", "repeat_interleave"),
    (11, "positions in the wrong order", "position.repeat_interleave(G)", "position.repeat(G)",
     "repeat_interleave"),
    (11, "the position stands still", "position + step", "position", "position"),
    (11, "positions one too far", "position + step", "position + step + 1", "position"),
    (11, "one too many in the mask", "completion_mask(tokens, stop)",
     "torch.cat([tokens[:, :1] >= 0, completion_mask(tokens, stop)[:, :-1]], dim=1)", "mask"),
    (11, "mask without the stop token", "completion_mask(tokens, stop)",
     "completion_mask(tokens, stop) & ~torch.isin(tokens, stop)", "mask stop"),
    (11, "temperature", "logits.log_softmax(dim=-1)", "(logits / 0.7).log_softmax(dim=-1)",
     "log-prob"),
    (11, "temperature in the draw alone", "draw(logp,", "draw((logp / 0.7).log_softmax(-1),",
     "temperature full distribution"),
    (11, "top-k", "draw(logp,",
     "draw(logp.masked_fill(logp < logp.topk(5).values[:, -1:], -torch.inf),", "top-k full"),
    (11, "one draw for the whole group", "", """
draw_for_each, ours = draw, sample_groups


def draw(logp, uniform):
    first_of_group = torch.arange(len(uniform)) // size * size
    return draw_for_each(logp, uniform[first_of_group])


def sample_groups(model, prompts, features, group_size, *others, **named):
    global size
    size = group_size
    return ours(model, prompts, features, group_size, *others, **named)
""", "all the same own"),
    (11, "one generator for all", "generator=g) for g in generators",
     "generator=generators[0]) for g in generators", "generator sample_groups"),
    (11, "the global generator", "dtype=torch.float64, generator=g)", "dtype=torch.float64)",
     "generator"),
    (11, "completions mixed in the cache", "(token, position + step",
     "(token.roll(1), position + step", "own token"),
    (11, "goes on after the stop token", "torch.where(alive, token, stop[0])", "token", "padd"),
    (11, "not cut to the longest", "int(mask.any(dim=0).sum())", "C", "longest shape"),
    (11, "on_token forgotten", "if on_token:", "if False:", "on_token"),
    (11, "with gradient", "@torch.no_grad()", "", "no_grad"),
    # 12. packed attention
    (12, "aligned to the upper left", "", """
ours = packed_attention


def packed_attention(query, key, value, group, scale, attend):
    def upper_left(query, key, value, scale, causal):
        function = torch.nn.functional.scaled_dot_product_attention
        return function(query, key, value, is_causal=causal, scale=scale, enable_gqa=True)

    return ours(query, key, value, group, scale, upper_left)
""", "upper left"),
    (12, "siblings seen", "", """
def packed_attention(query, key, value, group, scale, attend):
    return attend(query, key, value, scale, causal=True)
""", "siblings"),
    (12, "own future seen", "with_prompt(value), scale, causal=True)", "with_prompt(value), scale)",
     "future causal"),
    (12, "prompt not causal", "value[:, :, :P], scale, causal=True)", "value[:, :, :P], scale)",
     "prompt causal"),
    (12, "prompt hidden", "with_prompt(key), with_prompt(value)",
     "per_completion(key), per_completion(value)", "prompt hidden"),
    (12, "outputs in the wrong order", ".transpose(0, 1).flatten(1, 2)[None]",
     ".permute(1, 2, 0, 3).flatten(1, 2)[None]", "order"),
    (12, "scale forgotten", "with_prompt(value), scale, causal=True)",
     "with_prompt(value), 1.0, causal=True)", "scale"),
    (12, "prompt detached", "x[:, :, :P].expand", "x[:, :, :P].detach().expand", "gradient detach"),
    (12, "completions folded as (C, G)", "unflatten(1, (G, C)).transpose(0, 1)",
     "unflatten(1, (C, G)).permute(2, 0, 1, 3)", "mixed"),
]  # fmt: skip

RIGHT = [
    (1, "sum of lengths minus the overlap", """
def temporal_iou(a, b):
    shared = min(a[1], b[1]) - max(a[0], b[0])
    if shared <= 0 or a[0] >= a[1] or b[0] >= b[1]:
        return 0
    return shared / ((a[1] - a[0]) + (b[1] - b[0]) - shared)
"""),
    (1, "one of the two checks is enough", """
def temporal_iou(a, b):
    if not b[0] < b[1]:
        return 0.0
    return max(0.0, min(a[1], b[1]) - max(a[0], b[0])) / (max(a[1], b[1]) - min(a[0], b[0]))
"""),
    (2, "by axes", """
def box_iou(a, b):
    def clip(v):
        return sorted((0.0, v, 1.0))[1]

    area, shared = [1.0, 1.0], 1.0
    for axis in (0, 1):
        sides = [(clip(box[axis]), clip(box[axis + 2])) for box in (a, b)]
        for i, (low, high) in enumerate(sides):
            area[i] *= max(high - low, 0)
        shared *= max(0, min(s[1] for s in sides) - max(s[0] for s in sides))
    union = sum(area) - shared
    return shared / union if area[0] and area[1] else 0.0
"""),
    (3, "split at the tags", """
def well_formed(text, think, glue=False):
    parts = re.split("(</?(?:think|answer|glue)>)", text)
    want = ["<think>", "</think>"] if think else []
    want += ["<answer>", "</answer>"] + (["<glue>", "</glue>"] if glue else [])
    return parts[1::2] == want and all(p.isspace() or p == "" for p in parts[0::4])
"""),
    (4, "by sweeping over all ends", """
def merged(intervals):
    out = []
    for a, b in sorted(intervals):
        if b <= a:
            continue
        while out and out[-1][1] >= a:
            a, old = out.pop()
            b = max(b, old)
        out.append((a, b))
    return out


def interval_set_iou(a, b):
    ends = sorted({x for i in a + b for x in i})
    both = either = 0.0
    for low, high in zip(ends, ends[1:]):
        inside = [any(s <= low and high <= e for s, e in which) for which in (a, b)]
        both += (high - low) * all(inside)
        either += (high - low) * any(inside)
    return both / either if either else 0.0
"""),
    (5, "torch.var_mean", """
def group_advantages(rewards, divide_by_std=True):
    var, mean = torch.var_mean(rewards, dim=-1, keepdim=True)
    if not divide_by_std:
        return rewards - mean
    return (rewards - mean).div(var.sqrt() + 1e-4)
"""),
    (5, "n and n − 1 by hand", """
def group_advantages(rewards, divide_by_std=True):
    n = rewards.size(-1)
    c = rewards - rewards.sum(-1, keepdim=True) / n
    return c / ((c.pow(2).sum(-1, keepdim=True) / (n - 1)) ** 0.5 + 1e-4) if divide_by_std else c
"""),
    (6, "expm1", """
def kl_k3(logp, logp_ref):
    return torch.expm1(logp_ref - logp) + logp - logp_ref
"""),
    (6, "a ratio", """
def kl_k3(logp, logp_ref):
    r = logp_ref.exp() / logp.exp()
    return r - 1 - r.log()
"""),
    (7, "running maximum, shifted", """
def completion_mask(tokens, stop):
    ended = (tokens[..., None] == stop).any(-1).cummax(-1).values
    return torch.cat([torch.ones_like(ended[..., :1]), ~ended[..., :-1]], dim=-1)
"""),
    (7, "the first stop's place, C where there is none", """
def completion_mask(tokens, stop):
    C = tokens.shape[-1]
    place = torch.arange(C, device=tokens.device)
    first = torch.where(torch.isin(tokens, stop), place, C).amin(-1, keepdim=True)
    return place <= first
"""),
    (8, "index arithmetic and cross entropy", """
def predicting_states(hidden, group):
    G, C = group
    P = hidden.shape[0] - G * C
    index = P - 1 + torch.arange(G * C).view(G, C)
    index[:, 0] = P - 1
    return hidden[index]


def token_logprobs(logits, tokens):
    entropy = torch.distributions.Categorical(logits=logits.detach().clamp_min(-1e30)).entropy()
    return -torch.nn.functional.cross_entropy(logits, tokens, reduction="none"), entropy
"""),
    (8, "logsumexp and special.entr", """
def predicting_states(hidden, group):
    G, C = group
    P = len(hidden) - G * C
    return torch.stack(
        [torch.cat([hidden[P - 1 : P], hidden[P + g * C : P + g * C + C - 1]]) for g in range(G)]
    )


def token_logprobs(logits, tokens):
    logp = logits[torch.arange(len(tokens)), tokens] - logits.logsumexp(-1)
    return logp, torch.special.entr(logits.detach().softmax(-1)).sum(-1)
"""),
    (9, "by cases of the sign", """
def token_weights(mask, loss, max_new_tokens, n_completions, n_tokens):
    length = mask.sum(-1, keepdim=True).float()
    each = {"dapo": 1 / n_tokens, "dr_grpo": 1 / (n_completions * max_new_tokens)}.get(
        loss, 1 / length / n_completions
    )
    return torch.where(mask, each, 0.0)


def policy_loss(
    logp, logp_old, logp_ref, advantages, mask, weights, clip_low, clip_high, beta, loss="grpo"
):
    logp, logp_old = logp.masked_fill(~mask, 0), logp_old.masked_fill(~mask, 0)
    change = logp - logp_old
    if loss == "gspo":
        change = torch.ones_like(change) * (change.sum(1) / mask.sum(1)).unsqueeze(1)
    ratio, A = torch.exp(change), advantages.unsqueeze(1).expand_as(mask)
    stopped = ((A > 0) & (ratio > 1 + clip_high)) | ((A < 0) & (ratio < 1 - clip_low))
    limit = torch.where(A > 0, 1 + clip_high, 1 - clip_low).to(ratio.dtype)
    gain = torch.where(stopped, limit, ratio) * A
    kl = torch.zeros_like(logp)
    if logp_ref is not None:
        d = logp_ref.masked_fill(~mask, 0) - logp
        kl = d.exp() - d - 1
    value = (weights * (beta * kl - gain)).sum()
    return value, {"kl": kl.detach(), "clipped": stopped & mask}
"""),
    (10, "token by token", """
def mrope_positions(ids, grids, seconds_per_grid, config):
    m, rate = config.vision_config.spatial_merge_size, config.vision_config.tokens_per_second
    out, i, at, videos = [], 0, 0, iter(list(zip(grids, seconds_per_grid)))
    while i < len(ids):
        if ids[i] == config.video_token_id:
            (t, h, w), s = next(videos)
            block = [
                (at + int(k * s * rate), at + y, at + x)
                for k in range(t)
                for y in range(h // m)
                for x in range(w // m)
            ]
            out += block
            i += len(block)
            at = 1 + max(max(p) for p in block)
        else:
            out.append((at,) * 3)
            at += 1
            i += 1
    return torch.tensor(out, dtype=torch.long).T
"""),
    (11, "plain loop, rows kept to the end, multinomial by exponential race", """
@torch.no_grad()
def sample_groups(
    model, prompts, features, group_size, max_new_tokens, stop_ids, generators=None, on_token=None
):
    B, G, C = len(prompts), group_size, max_new_tokens
    logits, cache, nxt = prefill(model, prompts, features)
    cache.start_decoding(G, C)
    index = torch.arange(B).repeat_interleave(G)
    logits, nxt = logits[index], nxt[index]
    done = torch.zeros(B * G, dtype=torch.bool)
    out, logps, own = [], [], []
    for c in range(C):
        p = logits.softmax(-1)
        if generators is None:
            pick = p.argmax(-1)
        else:
            race = torch.cat(
                [
                    torch.empty(G, p.shape[1], dtype=torch.float64).exponential_(generator=g)
                    for g in generators
                ]
            )
            pick = (p.double() / race).argmax(-1)
        pick = pick.masked_fill(done, stop_ids[0])
        out.append(pick)
        own.append(~done)
        logps.append(p.log().gather(1, pick[:, None]).squeeze(1))
        if on_token is not None:
            on_token(pick)
        for s in stop_ids:
            done = done | (pick == s)
        if bool(done.all()):
            break
        if c < C - 1:
            logits = decode_step(model, cache, pick, nxt)
            nxt = nxt + 1
    return tuple(torch.stack(x, 1).unflatten(0, (B, G)) for x in (out, own, logps))
"""),
    (12, "one dense mask", """
def packed_attention(query, key, value, group, scale, attend):
    G, C = group
    L = query.shape[2]
    P = L - G * C
    who = torch.tensor([-1] * P + [g for g in range(G) for _ in range(C)])
    see = torch.ones(L, L, dtype=torch.bool).tril() & (
        (who[None] == -1) | (who[None] == who[:, None])
    )
    rep = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(rep, 1), value.repeat_interleave(rep, 1)
    scores = (query @ key.mT * scale).masked_fill(~see, float("-inf"))
    return scores.softmax(-1) @ value
"""),
    (12, "a call for each completion", """
def packed_attention(query, key, value, group, scale, attend):
    G, C = group
    P = query.size(2) - G * C
    parts = [attend(query[:, :, :P], key[:, :, :P], value[:, :, :P], scale, causal=True)]
    for g in range(G):
        mine = slice(P + g * C, P + (g + 1) * C)
        k, v = (torch.cat([x[:, :, :P], x[:, :, mine]], 2) for x in (key, value))
        parts.append(attend(query[:, :, mine], k, v, scale, causal=True))
    return torch.cat(parts, 2)
"""),
]  # fmt: skip


def spaced(piece):
    """A pattern for a piece of code that does not depend on where the formatter broke its lines."""
    words = re.findall(r"\w+|[^\w\s]", piece)
    return r"\s*".join((r",?\s*" if w in list(")]}") else "") + re.escape(w) for w in words)


def solution(number, old="", new=""):
    """Our solution's file with `old` exchanged for `new`; without `old`, with `new` at its end."""
    text = exercises.write_up(exercises.EXERCISES[number - 1], solved=True)
    if not old:
        return text + "\n\n" + new
    changed, count = re.subn(spaced(old), lambda _: new, text)
    assert count, f"exercise {number}: our solution no longer holds {old!r}"
    return changed


def graded(number, text, folder):
    exercise = exercises.EXERCISES[number - 1]
    with open(os.path.join(folder, exercise.file), "w", encoding="utf-8") as f:
        f.write(text)
    return grading.examine(exercise, folder)


def try_all(number, folder):
    """[(kind, title, what went wrong or "", message)] of all solutions of an exercise."""
    out = []
    for n, title, old, new, words in WRONG:
        if n == number:
            status, message = graded(n, solution(n, old, new), folder)
            missing = [word for word in words.split() if word.lower() not in message.lower()]
            fault = f"the message lacks {missing}" if missing else ""
            if status != "wrong":
                fault = "accepted"
            out.append(("wrong", title, fault, message))
    for n, title, new in RIGHT:
        if n == number:
            status, message = graded(n, solution(n, new=new), folder)
            out.append(("right", title, "" if status == "right" else "rejected", message))
    return out


def main(verbose):
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for exercise in exercises.EXERCISES:
            for kind, title, fault, message in try_all(exercise.number, folder):
                results.append((kind, fault))
                if fault or verbose:
                    said = f" → {fault}" if fault else ""
                    print(f"\nexercise {exercise.number}, {kind}: {title}{said}\n{message}")
    wrong = [fault for kind, fault in results if kind == "wrong"]
    right = [fault for kind, fault in results if kind == "right"]
    mute = sum("lacks" in fault for fault in wrong)
    print(
        f"{len(wrong)} wrong solutions, {wrong.count('accepted')} accepted, {mute} without the"
        f" right words; {len(right)} right but different, {sum(map(bool, right))} rejected"
    )
    return int(any(fault for _, fault in results))


if __name__ == "__main__":
    sys.exit(main("-v" in sys.argv))
