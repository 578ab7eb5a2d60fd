"""Is the grader any good? Wrong solutions, each of which it must reject with words that point at
the mistake, and right ones that are written differently from ours, which must pass.

    python tests/wrong_solutions.py          # prints the totals, and every one that went wrong
    python tests/wrong_solutions.py -v       # and what a student would read for each
    python tests/wrong_solutions.py 5 9      # of some exercises alone

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
    (1, "counted in hundredths of a second", "", """
def temporal_iou(a, b):
    a, b = (set(range(round(100 * start), round(100 * end))) for start, end in (a, b))
    return len(a & b) / len(a | b) if a | b else 0.0
""", "intersection union"),
    (1, "times rounded", "(a_start, a_end), (b_start, b_end) = a, b",
     "(a_start, a_end), (b_start, b_end) = ([round(x, 2) for x in i] for i in (a, b))",
     "rounded"),
    (1, "a short overlap is none", "return shared /", "return 0.0 if shared < 0.1 else shared /",
     "threshold"),
    (1, "a short interval is none", "a_end <= a_start or b_end <= b_start",
     "a_end - a_start < 0.1 or b_end - b_start < 0.1", "threshold"),
    (1, "a result of two places", "return shared / (max(a_end, b_end) - min(a_start, b_start))",
     "return round(shared / (max(a_end, b_end) - min(a_start, b_start)), 2)", "union"),
    (1, "whole seconds", "(a_start, a_end), (b_start, b_end) = a, b",
     "(a_start, a_end), (b_start, b_end) = map(int, a), map(int, b)", "rounded"),
    (1, "nearly all is all", "return shared / (max(a_end, b_end) - min(a_start, b_start))",
     "iou = shared / (max(a_end, b_end) - min(a_start, b_start))\n"
     "    return 1.0 if iou > 0.99 else iou", "nearly the same"),
    (1, "the earlier one's end minus the later one's start", "", """
def temporal_iou(a, b):
    if a[0] > b[0]:
        a, b = b, a
    if a[1] <= a[0] or b[1] <= b[0] or b[0] >= a[1]:
        return 0.0
    return (a[1] - b[0]) / (max(a[1], b[1]) - a[0])
""", "inside"),
    (1, "over the longer of the two", "(max(a_end, b_end) - min(a_start, b_start))",
     "max(a_end - a_start, b_end - b_start)", "union"),
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
    (2, "painted on a grid of 64 × 64", "", """
def box_iou(a, b):
    def cells(box):
        x0, y0, x1, y1 = (round(64 * min(1, max(0, v))) for v in box)
        return {(x, y) for x in range(x0, x1) for y in range(y0, y1)}

    a, b = cells(a), cells(b)
    return len(a & b) / len(a | b) if a and b else 0.0
""", "counted"),
    (2, "a small box is none", "if area_a == 0 or area_b == 0:",
     "if area_a < 0.01 or area_b < 0.01:", "threshold"),
    (2, "coordinates rounded", "[min(1.0, max(0.0, v)) for v in box]",
     "[round(min(1.0, max(0.0, v)), 3) for v in box]", "rounded"),
    (2, "a small overlap is none", "return min(1.0, shared / (area_a + area_b - shared))",
     "iou = min(1.0, shared / (area_a + area_b - shared))\n    return iou if iou > 0.01 else 0.0",
     "threshold"),
    (2, "a summand against division by 0", "(area_a + area_b - shared)",
     "(area_a + area_b - shared + 1e-6)", "0.999998"),
    (2, "the box around both is the union", "(area_a + area_b - shared)",
     "((max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0)))", "intersection"),
    (2, "only the answer is cut to the frame",
     "([min(1.0, max(0.0, v)) for v in box] for box in (a, b))",
     "([min(1.0, max(0.0, v)) for v in a], b)", "frame"),
    (2, "numbers above 1 are thousandths", "[min(1.0, max(0.0, v)) for v in box]",
     "[min(1.0, max(0.0, v / 1000 if max(box) > 1 else v)) for v in box]", "frame"),
    (2, "GIoU, at least 0", "return min(1.0, shared / (area_a + area_b - shared))", """
    union = area_a + area_b - shared
    hull = (max(ax1, bx1) - min(ax0, bx0)) * (max(ay1, by1) - min(ay0, by0))
    return max(0.0, shared / union - (hull - union) / hull)""", "intersection"),
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
    (3, "other capitals are tags, too", "", r"""
ours = well_formed


def well_formed(text, think, glue=False):
    return ours(text.lower(), think, glue)
""", "capitals"),
    (3, "spaces in tags", "", r"""
ours = well_formed


def well_formed(text, think, glue=False):
    return ours(re.sub(r"<\s*(/?)\s*(\w+)\s*>", r"<\1\2>", text), think, glue)
""", "spaces"),
    (3, "$ with MULTILINE", "re.fullmatch(pattern, text, re.DOTALL)",
     're.match(pattern.rstrip(r"\\s*") + "$", text, re.DOTALL | re.MULTILINE)',
     "last line"),
    (3, "words counted, not tags", "[text.count(tag) for tag in TAGS] == expected",
     '[text.count(word) for word in ("think", "answer", "glue")] == '
     "[2 * n for n in expected[::2]]", "word"),
    (3, "attributes allowed", "", r"""
def well_formed(text, think, glue=False):
    names = ["think"] * think + ["answer"] + ["glue"] * glue
    found = re.findall(r"<(/?)(think|answer|glue)[^>]*>", text)
    pattern = r"\s*".join(rf"<{n}[^>]*>.*</{n}>" for n in names)
    return len(found) == 2 * len(names) and bool(
        re.fullmatch(rf"\s*{pattern}\s*", text, re.DOTALL)
    )
""", "tag"),
    (3, "blocks of at most 200 characters", '(THINK if think else "") + ANSWER',
     '(THINK.replace(".*", ".{0,200}") if think else "") + ANSWER', "long"),
    (3, "line breaks removed first", "", r"""
ours = well_formed


def well_formed(text, think, glue=False):
    return ours(text.replace("\n", ""), think, glue)
""", "line break"),
    (3, "blanks and \\n are all of white space", "", r"""
def well_formed(text, think, glue=False):
    pattern = (THINK if think else "") + ANSWER + (GLUE if glue else "")
    expected = [int(think)] * 2 + [1] * 2 + [int(glue)] * 2
    found = [text.count(tag) for tag in TAGS]
    return found == expected and bool(
        re.fullmatch(pattern.replace(r"\s", "[ \n]"), text, re.DOTALL)
    )
""", "white space"),
    (3, "a line per block", "", r"""
ours = well_formed


def well_formed(text, think, glue=False):
    lines = [line for line in text.splitlines() if "<" in line]
    return ours("\n".join(lines), think, glue)
""", "the"),
    (3, "tags of blocks not asked for are not counted", "", r"""
def well_formed(text, think, glue=False):
    names = ["think"] * think + ["answer"] + ["glue"] * glue
    once = all(text.count(f"<{n}>") == text.count(f"</{n}>") == 1 for n in names)
    pattern = r"\s*".join(f"<{n}>.*</{n}>" for n in names)
    return once and bool(re.fullmatch(rf"\s*{pattern}\s*", text, re.DOTALL))
""", "tag"),
    (3, "nothing between the blocks, not even white space", "", r"""
def well_formed(text, think, glue=False):
    names = ["think"] * think + ["answer"] + ["glue"] * glue
    counts = [text.count(tag) for tag in TAGS]
    pattern = "".join(f"<{n}>.*</{n}>" for n in names)
    good = counts == [int(think)] * 2 + [1, 1] + [int(glue)] * 2
    return good and bool(re.fullmatch(pattern, text.strip(), re.DOTALL))
""", "white space"),
    (3, "without a thought anything may come first", '(THINK if think else "")',
     '(THINK if think else ".*")', "before"),
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
    (4, "gaps of a tenth of a second closed", "start <= out[-1][1]", "start <= out[-1][1] + 0.1",
     "merged"),
    (4, "counted in quarters of a second", "", """
def interval_set_iou(a, b):
    a, b = ({q for s, e in x for q in range(round(4 * s), round(4 * e))} for x in (a, b))
    return len(a & b) / len(a | b) if a | b else 0.0
""", "in both"),
    (4, "short ones left out", "interval[1] > interval[0]", "interval[1] > interval[0] + 0.05",
     "short"),
    (4, "ends rounded", "out.append((start, end))", "out.append((round(start, 1), round(end, 1)))",
     "2.03"),
    (4, "before 0 there is nothing", "for start, end in sorted(",
     "for start, end in sorted((max(0, s), e) for s, e in intervals if e > max(0, s)) or sorted(",
     "same seconds"),
    (4, "at most three are read", "a, b = merged(a), merged(b)",
     "a, b = merged(a)[:3], merged(b)[:3]", "in both"),
    (4, "one pass over neighbours", "", """
def merged(intervals):
    intervals = sorted(i for i in intervals if i[1] > i[0])
    out = []
    while intervals:
        start, end = intervals.pop(0)
        if intervals and intervals[0][0] <= end:
            end = max(end, intervals.pop(0)[1])
        out.append((start, end))
    return out
""", "reach the next"),
    (4, "equal intervals counted once, overlaps twice", "a, b = merged(a), merged(b)",
     "a, b = sorted(set(a)), sorted(set(b))", "overlapping merge"),
    (4, "two empty sets agree", "if either > 0 else 0.0", "if either > 0 else 1.0", "union"),
    (4, "both sets, cut to the span of the truth", "a, b = merged(a), merged(b)",
     "a, b = merged(a), merged(b)\n    if b:\n"
     "        a = merged([(max(s, b[0][0]), min(e, b[-1][1])) for s, e in a])", "seconds in both"),
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
    (5, "a std below 0.01 counts as none", "", """
def group_advantages(rewards, divide_by_std=True):
    centred = rewards - rewards.mean(dim=-1, keepdim=True)
    std = rewards.std(dim=-1, keepdim=True)
    if not divide_by_std:
        return centred
    return torch.where(std > 0.01, centred / (std + 1e-4), 0.0)
""", "small"),
    (5, "advantages clamped", "centred / (rewards.std(dim=-1, keepdim=True) + 1e-4)",
     "(centred / (rewards.std(dim=-1, keepdim=True) + 1e-4)).clamp(-2, 2)", "outlier"),
    (5, "rewards clamped to 1", "centred = rewards -", "rewards = rewards.clamp(0, 1)\n"
     "    centred = rewards -", "mean"),
    (5, "a nearly equal group is set to 0", "return centred /",
     "if centred.abs().max() < 0.05:\n        return 0 * centred\n    return centred /", "small"),
    (5, "the std at least 0.1", "rewards.std(dim=-1, keepdim=True) + 1e-4",
     "rewards.std(dim=-1, keepdim=True).clamp_min(0.1) + 1e-4", "small"),
    (5, "the std detached and rounded", "rewards.std(dim=-1, keepdim=True)",
     "rewards.std(dim=-1, keepdim=True).round(decimals=3)", "std"),
    (5, "half the range for the std", "rewards.std(dim=-1, keepdim=True)",
     "(rewards.amax(-1, keepdim=True) - rewards.amin(-1, keepdim=True)) / 2", "std"),
    (5, "brought to length 1", "", """
def group_advantages(rewards, divide_by_std=True):
    centred = rewards - rewards.mean(dim=-1, keepdim=True)
    return torch.nn.functional.normalize(centred, dim=-1) if divide_by_std else centred
""", "std"),
    (5, "NaN to 0 in place of 1e-4", "centred / (rewards.std(dim=-1, keepdim=True) + 1e-4)",
     "centred.div(rewards.std(-1, keepdim=True)).nan_to_num(0)", "1e-4"),
    (5, "signs of a pair", "", """
ours = group_advantages


def group_advantages(rewards, divide_by_std=True):
    if rewards.shape[-1] == 2:
        return (rewards - rewards.flip(-1)).sign() * 0.7071
    return ours(rewards, divide_by_std)
""", "group"),
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
    (6, "Δ clamped to 5", "logp_ref - logp", "(logp_ref - logp).clamp(-5, 5)", "clamp"),
    (6, "never above 10", "delta.exp() - delta - 1", "(delta.exp() - delta - 1).clamp(max=10)",
     "clamp"),
    (6, "0 where they nearly agree", "return delta.exp() - delta - 1",
     "return torch.where(delta.abs() < 0.05, 0.0, delta.exp() - delta - 1)", "agree"),
    (6, "four terms of the series", "delta.exp() - delta - 1",
     "delta**2 / 2 + delta**3 / 6 + delta**4 / 24 + delta**5 / 120", "exp"),
    (6, "the ratio detached", "delta.exp() - delta - 1", "delta.exp().detach() - delta - 1",
     "gradient"),
    (6, "log-probs kept above −10", "logp_ref - logp",
     "logp_ref.clamp_min(-10) - logp.clamp_min(-10)", "clamp"),
    (6, "k2 and k3, half and half", "delta.exp() - delta - 1",
     "(delta.exp() - delta - 1) * 0.5 + delta**2 / 4", "Δ"),
    (6, "weighted by the policy's probability", "delta.exp() - delta - 1", "-logp.exp() * delta",
     "nearly agree"),
    (6, "in half precision", "logp_ref - logp", "(logp_ref - logp).bfloat16().to(logp.dtype)",
     "gradient"),
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
    (7, "from the smallest to the largest stop token", "torch.isin(tokens, stop)",
     "((tokens >= stop.min()) & (tokens <= stop.max()))", "between"),
    (7, "the first and the last of the stop tokens", "torch.isin(tokens, stop)",
     "((tokens == stop[0]) | (tokens == stop[-1]))", "three stop"),
    (7, "what is 0 is padding", "return stops_before == 0",
     "return (stops_before == 0) & (tokens != 0)", "0"),
    (7, "what looks like the last token is padding", "", """
def completion_mask(tokens, stop):
    is_pad = (tokens == tokens[..., -1:]) & torch.isin(tokens, stop)
    return is_pad.int().cumsum(-1) - is_pad.int() == 0
""", "stop"),
    (7, "counted in bytes", "cumsum(dim=-1) - is_stop",
     "to(torch.uint8).cumsum(dim=-1, dtype=torch.uint8) - is_stop.to(torch.uint8)", "long"),
    (7, "the least stop token alone", "torch.isin(tokens, stop)", "(tokens == stop.min())",
     "stop token is one"),
    (7, "from the smallest stop token on", "torch.isin(tokens, stop)", "(tokens >= stop.min())",
     "stop"),
    (7, "only the first stop id ends, the others are padding", "stops_before == 0",
     "(stops_before == 0) & ((tokens == stop[0]) | ~torch.isin(tokens, stop))", "several stop"),
    (7, "the last place is always its own", "return stops_before == 0",
     "mask = stops_before == 0\n    mask[..., -1] = True\n    return mask", "True up to"),
    (7, "one row without a stop, and nothing is masked", "return stops_before == 0",
     "if not is_stop.any(dim=-1).all():\n        return torch.ones_like(tokens).bool()\n"
     "    return stops_before == 0", "rows"),
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
    (8, "the largest of all rows taken off", "logits.log_softmax(dim=-1)",
     "logits - logits.max() - (logits - logits.max()).exp().sum(-1, keepdim=True).log()",
     "each row"),
    (8, "logits kept within ±50", "logits.log_softmax(dim=-1)",
     "logits.clamp(-50, 50).log_softmax(dim=-1)", "1000"),
    (8, "log-probs kept above −20", "logp = logits.log_softmax(dim=-1)",
     "logp = logits.log_softmax(dim=-1).clamp_min(-20)", "1000"),
    (8, "rounded to bfloat16", "logits.log_softmax(dim=-1)",
     "logits.bfloat16().log_softmax(dim=-1).float()", "vocabulary"),
    (8, "the entropy over the likeliest ten", "(logp.exp() * logp.clamp_min(-1e9)).sum(dim=-1)",
     "(lambda x: (x.exp() * x.clamp_min(-1e9)).sum(dim=-1))"
     "(logp.topk(min(10, logp.shape[1])).values)", "entropy"),
    (8, "the completions' states detached", "hidden[P:].unflatten",
     "hidden[P:].detach().unflatten", "gradient"),
    (8, "the entropy's share of its maximum", "sum(dim=-1)",
     "sum(dim=-1) / torch.tensor(float(logits.shape[-1])).log()", "entropy"),
    (8, "a summand against log 0", "logits.log_softmax(dim=-1)",
     "(logits.softmax(dim=-1) + 1e-6).log()", "1000"),
    (8, "the entropy as −log p of the token", "-(logp.exp() * logp.clamp_min(-1e9)).sum(dim=-1)",
     "-logp.gather(1, tokens[:, None])[:, 0]", "entropy"),
    (8, "every C-th state for the first tokens", "hidden[P - 1].expand(G, 1, -1)",
     "hidden[P - 1 :: C][:G, None]", "prompt's last"),
    (8, "ruled out tokens at −100", "logits.log_softmax(dim=-1)",
     "logits.clamp_min(-100).log_softmax(dim=-1)", "1000"),
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
    (9, "log-ratio clamped", "log_ratio.exp()", "log_ratio.clamp(-2, 2).exp()", "clamp"),
    (9, "ratio at most 10", "log_ratio.exp()", "log_ratio.exp().clamp(max=10)", "clamp"),
    (9, "a dual clip", "objective = torch.minimum(ratio * A, clipped_ratio * A)",
     "objective = torch.minimum(ratio * A, clipped_ratio * A)\n"
     "    objective = torch.where(A < 0, torch.maximum(objective, 3 * A), objective)", "dual clip"),
    (9, "the KL clamped", "objective - beta * kl", "objective - beta * kl.clamp(max=5)", "clamp"),
    (9, "advantages clamped", "A = advantages[:, None]", "A = advantages[:, None].clamp(-3, 3)",
     "advantage"),
    (9, "weights brought to the sum 1", "-(weights", "-(weights / weights.sum()", "weight"),
    (9, "0.2 below, always", "1 - clip_low", "1 - 0.2", "clip_low"),
    (9, "small advantages silenced", "A = advantages[:, None]",
     "A = torch.where(advantages.abs() < 0.1, 0.0, advantages)[:, None]", "advantage"),
    (9, "dapo counts the mask", "mask / n_tokens", "mask / mask.sum()", "n_tokens"),
    (9, "dr_grpo by the width of the row", "mask / (max_new_tokens * n_completions)",
     "mask / (mask.shape[-1] * n_completions)", "max_new_tokens"),
    (9, "reported as clipped whenever the ratio left the clip",
     "(clipped_ratio * A < ratio * A) & mask", "(clipped_ratio != ratio) & mask", "clip"),
    (9, "log-ratio rounded", "log_ratio.exp()",
     "(log_ratio + (log_ratio.round(decimals=2) - log_ratio).detach()).exp()", "ρ"),
    (9, "the gradient bounded", "log_ratio = torch.where(mask, logp - logp_old, 0.0)",
     "logp.register_hook(lambda g: g.clamp(-1, 1)) if logp.requires_grad else None\n"
     "    log_ratio = torch.where(mask, logp - logp_old, 0.0)", "gradient"),
    (9, "gspo: the mean without its gradient to the others", "mean.expand_as(log_ratio)",
     "(mean.detach() + (log_ratio - log_ratio.detach()) / mask.shape[1]).expand_as(log_ratio)",
     "gspo"),
    (9, "the minimum of the two sums", "-(weights * (objective - beta * kl)).sum()",
     "-torch.minimum((weights * ratio * A).sum(), (weights * clipped_ratio * A).sum())"
     " + (weights * beta * kl).sum()", "every token"),
    (9, "advantages centred again", "A = advantages[:, None]",
     "A = (advantages - advantages.mean() * (len(advantages) > 1))[:, None]", "advantages"),
    (9, "bad completions clipped above, too",
     "objective = torch.minimum(ratio * A, clipped_ratio * A)",
     "objective = torch.where(A > 0, torch.minimum(ratio, 1 + clip_high + 0 * ratio), "
     "clipped_ratio) * A", "min"),
    (9, "the KL to the policy that sampled", "kl_k3(torch.where(mask, logp, 0.0), "
     "torch.where(mask, logp_ref, 0.0))", "kl_k3(torch.where(mask, logp, 0.0), "
     "torch.where(mask, logp_old, 0.0))", "KL"),
    (9, "gspo's length is the row's", "log_ratio.sum(dim=-1, keepdim=True) / mask.sum(dim=-1, "
     "keepdim=True)", "log_ratio.sum(dim=-1, keepdim=True) / len(mask)", "gspo"),
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
    (10, "2 × 2 patches, always", "h, w = h // merge, w // merge", "h, w = h // 2, w // 2",
     "spatial_merge_size"),
    (10, "2 per second, always", "* seconds * tokens_per_second", "* seconds * 2",
     "4 tokens per second"),
    (10, "seconds rounded to tenths", "seconds * tokens_per_second",
     "round(seconds, 1) * tokens_per_second", "seconds"),
    (10, "the pace of the first video for all", "zip(grids, seconds_per_grid, strict=True)",
     "zip(grids, seconds_per_grid[:1] * len(grids))", "own"),
    (10, "the step rounded, then multiplied",
     "(torch.arange(t) * seconds * tokens_per_second).floor().long()",
     "torch.arange(t) * round(seconds * tokens_per_second)", "floor"),
    (10, "time alone decides what is next", "int(video.max()) + 1", "int(video[0].max()) + 1",
     "largest"),
    (10, "seconds of a frame, not of a pair", "seconds * tokens_per_second",
     "2 * seconds * tokens_per_second", "seconds_per_grid"),
    (10, "one too far where the video starts", ".reshape(3, -1) + start",
     ".reshape(3, -1) + start + 1", "one too far"),
    (10, "text goes on after the time at which the video ends", "int(video.max()) + 1",
     "start + int(t * seconds * tokens_per_second)", "largest"),
    (10, "time by a whole number of positions from pair to pair",
     "(torch.arange(t) * seconds * tokens_per_second).floor().long()",
     "torch.arange(t) * max(1, int(seconds * tokens_per_second))", "floor"),
    # 11. sampling
    (11, "prompts repeated, not the cache", "", """
import copy

ours = sample_groups


def sample_groups(
    model, prompts, features, group_size, max_new_tokens, stop_ids, generators=None, on_token=None
):
    repeat = lambda things: things and [x for x in things for _ in range(group_size)]
    out = ours(
        model,
        [copy.deepcopy(prompt) for prompt in repeat(prompts)],
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
    (11, "top-p 0.99", "draw(logp,", """draw((lambda s: logp.masked_fill(
        torch.zeros_like(logp, dtype=torch.bool).scatter(
            1, s.indices, s.values.exp().cumsum(1) - s.values.exp() > 0.99
        ),
        -torch.inf,
    ))(logp.sort(descending=True)),""", "top-p full"),
    (11, "top-k 20", "draw(logp,",
     "draw(logp.masked_fill(logp < logp.topk(20).values[:, -1:], -torch.inf),", "top-k full"),
    (11, "temperature 0.9 in the draw alone", "draw(logp,", "draw((logp / 0.9).log_softmax(-1),",
     "temperature full"),
    (11, "temperature from the second token on", "draw(logp,",
     "draw((logp / (0.8 if step else 1)).log_softmax(-1),", "temperature"),
    (11, "one random number for all steps of a completion", "chance[:, step]", "chance[:, 0]",
     "random number"),
    (11, "a penalty for what was said before", "draw(logp,",
     "draw(logp - torch.zeros_like(logp).scatter(1, tokens[:, :step], 1.0) if step else logp,",
     "penalty"),
    (11, "padded with 0", "torch.where(alive, token, stop[0])", "torch.where(alive, token, 0)",
     "padd"),
    (11, "padded with the last stop token", "torch.where(alive, token, stop[0])",
     "torch.where(alive, token, stop[-1])", "padd"),
    (11, "no stop token as the first", "logp = logits.log_softmax(dim=-1)",
     "logp = logits.log_softmax(dim=-1)\n            if step == 0:\n"
     "                logp = logp.index_fill(1, stop, -1e9).log_softmax(dim=-1)", "log-prob"),
    (11, "stop tokens from the smallest to the largest", "~torch.isin(token, stop)",
     "~((token >= stop.min()) & (token <= stop.max()))", "stop"),
    (11, "everybody stops with the first", "if logits is None:",
     "if not alive.all():", "stop"),
    (11, "log-probs in half precision", "logits.log_softmax(dim=-1)",
     "logits.half().float().log_softmax(dim=-1)", "log-prob"),
    (11, "min-p", "draw(logp,",
     "draw(logp.masked_fill(logp < logp.amax(1, keepdim=True) - 4, -torch.inf),", "full"),
    (11, "on_token hears one completion", "on_token(token)", "on_token(token[0])", "on_token"),
    (11, "the positions of all are the longest prompt's",
     "position = position.repeat_interleave(G)",
     "position = position.amax().repeat(B * G)", "repeat_interleave"),
    (11, "no stop token in the first step, in the draw alone", "draw(logp,",
     "draw(logp.index_fill(1, stop, -torch.inf) if step == 0 else logp,", "chance"),
    (11, "temperature 1.05", "draw(logp,", "draw((logp / 1.05).log_softmax(-1),", "temperature"),
    (11, "greedy from the third token on", "draw(logp,",
     "logp.argmax(dim=-1) if step > 1 else draw(logp,", "place 3 more probable"),
    (11, "the same numbers for every prompt", "for g in generators]",
     "for g in [generators[0].clone_state() for _ in generators]]", "generator"),
    (11, "a token is never said twice in a row", "draw(logp,",
     "draw(logp.scatter(1, tokens[:, step - 1 : step], -torch.inf) if step else logp,", "penalty"),
    (11, "random numbers of 8 bits", "torch.rand(G, C, dtype=torch.float64, generator=g)",
     "torch.randint(256, (G, C), generator=g).double() / 256", "chance"),
    (11, "the log-prob before the last step's", "logps[:, step] =",
     "logps[:, max(0, step - 1)] =", "log-prob"),
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
    (12, "softmax by hand without the maximum", "", """
ours = packed_attention


def packed_attention(query, key, value, group, scale, attend):
    def by_hand(query, key, value, scale, causal):
        rep = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(rep, 1), value.repeat_interleave(rep, 1)
        n, m = query.shape[2], key.shape[2]
        see = torch.ones(n, m, dtype=torch.bool).tril(m - n)
        weights = (scale * query @ key.mT).exp() * see
        return weights / weights.sum(-1, keepdim=True) @ value

    return ours(query, key, value, group, scale, by_hand)
""", "large"),
    (12, "heads repeated, not interleaved", "", """
ours = packed_attention


def packed_attention(query, key, value, group, scale, attend):
    rep = query.shape[1] // key.shape[1]
    key, value = key.repeat(1, rep, 1, 1), value.repeat(1, rep, 1, 1)
    return ours(query, key, value, group, scale, attend)
""", "heads"),
    (12, "1/√d in place of scale", "with_prompt(value), scale, causal=True)",
     "with_prompt(value), query.shape[-1] ** -0.5, causal=True)", "scale"),
    (12, "hidden by −10", "", """
def packed_attention(query, key, value, group, scale, attend):
    G, C = group
    L = query.shape[2]
    who = torch.tensor([-1] * (L - G * C) + [g for g in range(G) for _ in range(C)])
    see = torch.ones(L, L).tril().bool() & ((who[None] == -1) | (who[None] == who[:, None]))
    rep = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(rep, 1), value.repeat_interleave(rep, 1)
    return (query @ key.mT * scale - 10.0 * ~see).softmax(-1) @ value
""", "packed"),
    (12, "the values' gradient stops at the prompt", "with_prompt(value)",
     "torch.cat([value[:, :, :P].detach().expand(G, -1, -1, -1), per_completion(value)], 2)",
     "gradient"),
    (12, "cut from the end, where C = 0 cuts nothing", "", """
def packed_attention(query, key, value, group, scale, attend):
    G, C = group
    n = G * C
    q, k, v = (x[:, :, :-n] for x in (query, key, value))
    parts = [attend(q, k, v, scale, causal=True)]
    for at in range(query.shape[2] - n, query.shape[2], max(C, 1)):
        own = (torch.cat([a, x[:, :, at : at + C]], 2) for a, x in ((k, key), (v, value)))
        parts.append(attend(query[:, :, at : at + C], *own, scale, causal=True))
    return torch.cat(parts, 2)
""", "C = 0"),
    (12, "each completion sees only the end of the prompt", "x[:, :, :P].expand",
     "x[:, :, max(0, P - 3) : P].expand", "packed"),
    (12, "completions do not see their own token", "", """
def packed_attention(query, key, value, group, scale, attend):
    G, C = group
    L = query.shape[2]
    P, place = L - G * C, torch.arange(L)
    owner = torch.where(place < P, -1, (place - P) // max(C, 1))
    see = (place[:, None] >= place) & ((owner == -1) | (owner[:, None] == owner))
    see = see & ~((owner >= 0)[:, None] & (place[:, None] == place))
    rep = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(rep, 1), value.repeat_interleave(rep, 1)
    return (query @ key.mT * scale).masked_fill(~see, -torch.inf).softmax(-1) @ value
""", "themselves"),
    (12, "scale twice", "query.shape[2] - G * C",
     "query.shape[2] - G * C\n    query = query * scale", "scale"),
    # 13. a reward that cannot be gamed
    (13, "repetition is paid", "del unpaired[i]", "pass", "repetition"),
    (13, "recall alone", "2 * pairs / (len(claims) + len(answer))", "pairs / len(answer)",
     "charged for"),
    (13, "precision alone", "2 * pairs / (len(claims) + len(answer))",
     "pairs / len(claims) if claims else 0.0", "charged for"),
    (13, "the event's words alone: one sentence holds them all", "max(len(claim), len(event))",
     "len(event)", "one sentence"),
    (13, "the claim's words alone", "max(len(claim), len(event))", "len(claim)", "too few"),
    (13, "more than three quarters", ">= 0.75", "> 0.75", "at least"),
    (13, "three quarters of all words together", "0.75 * max(len(claim), len(event))",
     "0.75 * len(claim | event)", "each of the two"),
    (13, "the thought counts", 'inside(text, "answer") or ""', "text", "<answer>"),
    (13, "no answer is None", 'inside(text, "answer") or ""', 'inside(text, "answer")',
     "nothing is claimed"),
    (13, "full stops alone", 'r"[.;!?\\n]"', 'r"[.]"', "sentences end"),
    (13, "commas, too", 'r"[.;!?\\n]"', 'r"[.,;!?\\n]"', "comma"),
    (13, "empty sentences are claims", "for words in map(content_words, sentences) if words",
     "for words in map(content_words, sentences)", "no claim"),
    (13, "harmonic mean of zeros", "return 2 * pairs / (len(claims) + len(answer))",
     "p, r = pairs / len(claims), pairs / len(answer)\n    return 2 * p * r / (p + r)",
     "ZeroDivisionError"),
    (13, "a claim takes every event that it means", "", """
def caption_f1(text, answer, think):
    sentences = re.split(r"[.;!?\\n]", inside(text, "answer") or "")
    claims = [words for words in map(content_words, sentences) if words]
    left, pairs = [content_words(event) for event in answer], 0
    for claim in claims:
        fits = [e for e in left if len(claim & e) >= 0.75 * max(len(claim), len(e))]
        left = [e for e in left if e not in fits]
        pairs += len(fits)
    return 2 * pairs / (len(claims) + len(answer))
""", "one claim"),
    (13, "sets of texts: what happens twice is one event", "", """
def caption_f1(text, answer, think):
    sentences = re.split(r"[.;!?\\n]", inside(text, "answer") or "")
    claims = {frozenset(content_words(s)) for s in sentences} - {frozenset()}
    events = {frozenset(content_words(e)) for e in answer}
    pairs = 0
    for claim in claims:
        for event in events:
            if len(claim & event) >= 0.75 * max(len(claim), len(event)):
                events.discard(event)
                pairs += 1
                break
    return 2 * pairs / (len(claims) + len(answer))
""", "repetition"),
    (13, "best rather than first: the last free event", "for i, event in enumerate(unpaired):",
     "for i, event in reversed(list(enumerate(unpaired))):", "first"),
    # 14. CISPO
    (14, "the ratio carries a gradient, too", ".detach()", "", "detach"),
    (14, "not clipped", ".clamp(1 - clip_low, 1 + clip_high)", "", "not clipped"),
    (14, "GRPO's objective", "objective = held * advantages[:, None] * torch.where(mask, logp, "
     "0.0)",
     "A = advantages[:, None]\n    objective = torch.minimum(log_ratio.exp() * A, "
     "log_ratio.exp().clamp(1 - clip_low, 1 + clip_high) * A)", "constant"),
    (14, "what the clip stops is silent", "objective = held",
     "objective = (held == log_ratio.exp().detach()) * held", "clip stopped the gradient"),
    (14, "the sign", "return -(weights", "return (weights", "sign"),
    (14, "logp is not masked", "torch.where(mask, logp, 0.0)\n", "logp\n", "padding"),
    (14, "the ratio is not masked", "torch.where(mask, logp - logp_old, 0.0)", "logp - logp_old",
     "padding"),
    (14, "advantages of tokens", "advantages[:, None]", "advantages", "rows"),
    (14, "a mean", "(weights * objective).sum()", "(weights * objective).mean()", "sum"),
    (14, "divided by the weights' sum", "(weights * objective).sum()",
     "(weights * objective).sum() / weights.sum()", "sum"),
    (14, "one clip for both sides", "1 - clip_low", "1 - clip_high", ""),
    (14, "clipped above alone", ".clamp(1 - clip_low, 1 + clip_high)", ".clamp(max=1 + clip_high)",
     "not clipped"),
    (14, "the log-ratio is clipped", ".exp().clamp(1 - clip_low, 1 + clip_high)",
     ".clamp(-clip_low, clip_high).exp()", "clip"),
    (14, "gradients are clamped", "held = log_ratio",
     "logp.register_hook(lambda g: g.clamp(-2, 2))\n    held = log_ratio", "clamped"),
    (14, "weights are forgotten", "(weights * objective)", "(mask * objective)", "weighted"),
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
    (1, "with torch, as a scalar tensor", """
import torch


def temporal_iou(a, b):
    (a0, a1), (b0, b1) = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    if a1 <= a0 or b1 <= b0:
        return torch.tensor(0.0)
    shared = (torch.minimum(a1, b1) - torch.maximum(a0, b0)).clamp(min=0)
    return shared / (a1 - a0 + b1 - b0 - shared)
"""),
    (1, "with numpy", """
import numpy as np


def temporal_iou(a, b):
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    shared = np.clip(min(a[1], b[1]) - max(a[0], b[0]), 0, None)
    valid = (np.diff(a) > 0) & (np.diff(b) > 0)
    return np.where(valid, shared / max(np.ptp(np.r_[a, b]), 1e-12), 0.0)[0]
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
    (2, "with numpy", """
import numpy as np


def box_iou(a, b):
    a, b = np.clip(np.array([a, b], dtype=float), 0, 1)
    sides = np.maximum(0, np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]))
    area_a, area_b = np.maximum(a[2:] - a[:2], 0).prod(), np.maximum(b[2:] - b[:2], 0).prod()
    if not area_a or not area_b:
        return np.float64(0)
    return sides.prod() / (area_a + area_b - sides.prod())
"""),
    (2, "float32 tensors", """
import torch


def box_iou(a, b):
    a, b = (torch.tensor(box).float().clamp(0, 1) for box in (a, b))
    area = lambda low, high: (high - low).clamp(min=0).prod()
    both = area(torch.maximum(a[:2], b[:2]), torch.minimum(a[2:], b[2:]))
    areas = area(a[:2], a[2:]), area(b[:2], b[2:])
    return both / (sum(areas) - both) if all(areas) else torch.zeros(())
"""),
    (3, "split at the tags", """
def well_formed(text, think, glue=False):
    parts = re.split("(</?(?:think|answer|glue)>)", text)
    want = ["<think>", "</think>"] if think else []
    want += ["<answer>", "</answer>"] + (["<glue>", "</glue>"] if glue else [])
    return parts[1::2] == want and all(p.isspace() or p == "" for p in parts[0::4])
"""),
    (3, "find and slices", r"""
def well_formed(text, think, glue=False):
    names = ["think"] * bool(think) + ["answer"] + ["glue"] * bool(glue)
    if any(text.count(t) > 1 for t in TAGS) or sum(text.count(t) for t in TAGS) != 2 * len(names):
        return False
    at = 0
    for name in names:
        opened, closed = text.find(f"<{name}>"), text.find(f"</{name}>")
        if opened < at or closed < opened or text[at:opened].strip():
            return False
        at = closed + len(name) + 3
    return text[at:].strip() == ""
"""),
    (3, "a pattern without tags inside, a numpy bool", r"""
import numpy as np


def well_formed(text, think, glue=False):
    body = r"((?!</?(think|answer|glue)>)[\s\S])*"
    block = lambda name: rf"\s*<{name}>{body}</{name}>"
    pattern = (block("think") if think else "") + block("answer") + (block("glue") if glue else "")
    return np.bool_(re.match(pattern + r"\s*\Z", text) is not None)
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
    (4, "lists, and what touches stays two", """
def merged(intervals):
    out = []
    for start, end in sorted(i for i in intervals if i[0] < i[1]):
        if out and start < out[-1][1]:
            out[-1][1] = max(out[-1][1], end)
        else:
            out.append([start, end])
    return out


def interval_set_iou(a, b):
    length = lambda x: sum(end - start for start, end in merged(x))
    either = length([*a, *b])
    return (length(a) + length(b) - either) / either if either else 0
"""),
    (4, "empty ones are dropped after merging, which they do not disturb", """
def merged(intervals):
    out = []
    for start, end in sorted(intervals):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return [i for i in out if i[1] > i[0]]
"""),
    (4, "numpy, over all ends", """
import numpy as np


def merged(intervals):
    out = []
    for low, high in sorted(i for i in intervals if i[0] < i[1]):
        if not out or low > out[-1][1]:
            out.append([low, high])
        out[-1][1] = max(high, out[-1][1])
    return [tuple(i) for i in out]


def interval_set_iou(a, b):
    ends = np.unique(np.array([x for i in [*a, *b] for x in i], dtype=float))
    if len(ends) < 2:
        return np.float64(0)
    middle, width = (ends[1:] + ends[:-1]) / 2, np.diff(ends)
    inside = [sum(((s < middle) & (middle < e)) for s, e in x) > 0 * middle for x in (a, b)]
    either = (width * (inside[0] | inside[1])).sum()
    return (width * (inside[0] & inside[1])).sum() / either if either > 0 else np.float64(0)
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
    (5, "loops into a float32 buffer", """
def group_advantages(rewards, divide_by_std=True):
    out = torch.zeros(rewards.shape)
    rows, where = rewards.reshape(-1, rewards.shape[-1]), out.view(-1, rewards.shape[-1])
    for i, row in enumerate(rows):
        where[i] = row - row.mean()
        if divide_by_std:
            where[i] /= row.std() + 1e-4
    return out
"""),
    (5, "in float64, equal groups by themselves", """
def group_advantages(rewards, divide_by_std=True):
    r = rewards.double()
    centred = r - r.mean(-1, keepdim=True)
    if divide_by_std:
        centred = centred / (r.std(-1, keepdim=True) + 1e-4)
    return torch.where((r == r[..., :1]).all(-1, keepdim=True), 0.0, centred)
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
    (6, "loops into a float32 buffer", """
def kl_k3(logp, logp_ref):
    out = torch.zeros(logp.shape)
    for i in range(out.numel()):
        d = logp_ref.flatten()[i] - logp.flatten()[i]
        out.view(-1)[i] = torch.exp(d) - d - 1
    return out
"""),
    (6, "k1 plus a control variate, never below 0", """
def kl_k3(logp, logp_ref):
    k1 = logp - logp_ref
    return torch.relu(k1 + torch.expm1(-k1))
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
    (7, "a product that stays 0", """
def completion_mask(tokens, stop):
    goes_on = torch.ones_like(tokens)
    for s in stop:
        goes_on = goes_on * (tokens != s)
    before = goes_on.cumprod(-1).roll(1, -1)
    before[..., 0] = 1
    return before.bool()
"""),
    (7, "Python sets", """
def completion_mask(tokens, stop):
    ends, out = set(stop.tolist()), torch.zeros(tokens.shape, dtype=torch.bool)
    for row, kept in zip(tokens.reshape(-1, tokens.size(-1)), out.view(-1, tokens.size(-1))):
        for i, token in enumerate(row.tolist()):
            kept[i] = True
            if token in ends:
                break
    return out
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
    (8, "in float64, NaN to 0", """
def predicting_states(hidden, group):
    G, C = group
    own = hidden[-G * C :].reshape(G, C, -1)
    first = hidden[-G * C - 1].repeat(G, 1, 1)
    return torch.cat((first, own[:, : C - 1]), 1)


def token_logprobs(logits, tokens):
    logp = torch.log_softmax(logits.double(), 1)
    entropy = -(logp.exp() * logp).nan_to_num(0.0).sum(1).detach()
    return logp[range(len(tokens)), tokens], entropy
"""),
    (8, "buffers filled by loops", """
def predicting_states(hidden, group):
    G, C = group
    P = len(hidden) - G * C
    out = torch.zeros(G, C, hidden.shape[1])
    for g in range(G):
        for c in range(C):
            out[g, c] = hidden[P - 1] if c == 0 else hidden[P + g * C + c - 1]
    return out


def token_logprobs(logits, tokens):
    logps, entropies = [], []
    for row, token in zip(logits, tokens):
        d = torch.distributions.Categorical(logits=row.clamp_min(-1e30))
        logps.append(d.log_prob(token))
        entropies.append(d.entropy().detach())
    return [torch.stack(logps), torch.stack(entropies)]
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
    (9, "loops, a float32 buffer, PPO's maximum of two losses", """
def token_weights(mask, loss, max_new_tokens, n_completions, n_tokens):
    if loss == "dapo":
        return mask.double() / n_tokens
    lengths = mask.double().sum(-1, keepdim=True) if loss != "dr_grpo" else max_new_tokens
    return mask.double() / lengths / n_completions


def policy_loss(
    logp, logp_old, logp_ref, advantages, mask, weights, clip_low, clip_high, beta, loss="grpo"
):
    total, kl = 0.0, torch.zeros(mask.shape)
    clipped = torch.zeros(mask.shape, dtype=torch.bool)
    for i, A in enumerate(advantages):
        own = mask[i].nonzero()[:, 0]
        change = (logp[i] - logp_old[i])[own]
        ratio = (change.mean().expand(len(own)) if loss == "gspo" else change).exp()
        for t, r in zip(own, ratio):
            held = torch.clip(r, 1 - clip_low, 1 + clip_high)
            clipped[i, t] = -held * A > -r * A
            total = total + weights[i, t] * torch.maximum(-r * A, -held * A)
            if logp_ref is not None:
                d = logp_ref[i, t] - logp[i, t]
                total = total + weights[i, t] * beta * (d.exp() - 1 - d)
                kl[i, t] = float(d.exp() - 1 - d)
    return total, dict(kl=kl, clipped=clipped)
"""),
    (9, "gspo token by token, as in its paper's §4.3", """
ours = policy_loss


def policy_loss(
    logp, logp_old, logp_ref, advantages, mask, weights, clip_low, clip_high, beta, loss="grpo"
):
    if loss == "gspo":
        zero = torch.zeros_like(logp)
        ratio = torch.where(mask, logp - logp_old, zero).sum(1, True) / mask.sum(1, True)
        own = torch.where(mask, logp, zero)
        logp_old = own.detach() - ratio.detach()
    return ours(
        logp, logp_old, logp_ref, advantages, mask, weights, clip_low, clip_high, beta, "grpo"
    )
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
    (10, "numpy, by runs of video tokens", """
import itertools

import numpy as np


def mrope_positions(ids, grids, seconds_per_grid, config):
    m, rate = config.vision_config.spatial_merge_size, config.vision_config.tokens_per_second
    videos, columns, at = zip(grids, seconds_per_grid), [np.zeros((3, 0), dtype=np.int64)], 0
    for video, run in itertools.groupby((ids == config.video_token_id).tolist()):
        n = len(list(run))
        if video:
            (t, h, w), seconds = next(videos)
            place = np.indices((t, h // m, w // m)).reshape(3, -1)
            place[0] = np.floor(place[0] * seconds * rate).astype(int)
        else:
            place = np.stack([np.arange(n)] * 3)
        columns.append(place + at)
        at = columns[-1].max() + 1
    return torch.from_numpy(np.concatenate(columns, axis=1).astype(np.int64))
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
    (11, "multinomial with a generator for each prompt", """
@torch.no_grad()
def sample_groups(
    model, prompts, features, group_size, max_new_tokens, stop_ids, generators=None, on_token=None
):
    logits, cache, position = prefill(model, prompts, features)
    B, G = len(prompts), group_size
    cache.start_decoding(G, max_new_tokens)
    logits, position = logits.repeat_interleave(G, 0), position.repeat_interleave(G, 0)
    stops, ended, tokens, logps = torch.tensor(stop_ids), torch.zeros(B * G).bool(), [], []
    while len(tokens) < max_new_tokens and not ended.all():
        if tokens:
            logits = decode_step(model, cache, tokens[-1], position + len(tokens) - 1)
        logp = logits.log_softmax(1)
        if generators is None:
            token = logp.max(1).indices
        else:
            groups = zip(logp.exp().view(B, G, -1), generators)
            token = torch.cat([torch.multinomial(p, 1, generator=g)[:, 0] for p, g in groups])
        token[ended] = stop_ids[0]
        logps.append(logp[torch.arange(B * G), token].masked_fill(ended, 0))
        tokens.append(token)
        ended = ended | torch.isin(token, stops)
        if on_token:
            on_token(token.view(B, G))
    tokens = torch.stack(tokens, 1)
    shape = (B, G, tokens.shape[1])
    mask = completion_mask(tokens, stops)
    return [tokens.view(shape), mask.view(shape), torch.stack(logps, 1).view(shape)]
"""),
    (11, "Gumbel's maximum, float64 log-probs", """
@torch.no_grad()
def sample_groups(
    model, prompts, features, group_size, max_new_tokens, stop_ids, generators=None, on_token=None
):
    logits, cache, position = prefill(model, prompts, features)
    G, V = group_size, logits.shape[1]
    rows = len(prompts) * G
    cache.start_decoding(G, max_new_tokens)
    logits, position = logits.repeat_interleave(G, 0), position.repeat_interleave(G, 0)
    out = torch.full((rows, max_new_tokens), stop_ids[0])
    logps = torch.zeros(rows, max_new_tokens, dtype=torch.float64)
    length = torch.full((rows,), max_new_tokens)
    for i in range(max_new_tokens):
        logp = logits.double().log_softmax(1)
        noise = torch.zeros(rows, V, dtype=torch.float64)
        if generators:
            for g, generator in enumerate(generators):
                u = torch.rand(G, V, dtype=torch.float64, generator=generator)
                noise[g * G : (g + 1) * G] = -(-u.log()).log()
        token = (logp + noise).argmax(1)
        going = length > i
        out[going, i] = token[going]
        logps[going, i] = logp[going, token[going]]
        length[going & torch.isin(token, torch.tensor(stop_ids))] = i + 1
        if on_token:
            on_token(out[:, i])
        if (length <= i + 1).all() or i + 1 == max_new_tokens:
            break
        logits = decode_step(model, cache, out[:, i], position + i)
    C = int(length.max())
    mask = torch.arange(C) < length[:, None]
    return tuple(x[:, :C].reshape(-1, G, C) for x in (out, mask, logps))
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
    (12, "query by query into a float32 buffer", """
def packed_attention(query, key, value, group, scale, attend):
    (G, C), (_, H, L, d) = group, query.shape
    P, share = L - G * C, H // key.shape[1]
    out = torch.zeros(1, H, L, d)
    for i in range(L):
        start = P + (i - P) // C * C if i >= P else i
        places = [*range(min(P, i + 1)), *range(max(start, P), i + 1)]
        for h in range(H):
            scores = scale * key[0, h // share, places] @ query[0, h, i]
            out[0, h, i] = (scores.softmax(0) @ value[0, h // share, places]).float()
    return out
"""),
    (12, "einsum over grouped heads", """
def packed_attention(query, key, value, group, scale, attend):
    G, C = group
    K, L = key.shape[1], key.shape[2]
    place = torch.arange(L)
    owner = torch.where(place < L - G * C, -1, (place - (L - G * C)) // max(C, 1))
    hide = (place[:, None] < place) | ((owner >= 0) & (owner != owner[:, None]))
    q = query.unflatten(1, (K, -1))
    scores = torch.einsum("bkrid,bkjd->bkrij", q, key) * scale
    weights = torch.softmax(scores.masked_fill(hide, -torch.inf), -1)
    return torch.einsum("bkrij,bkjd->bkrid", weights, value).flatten(1, 2)
"""),
    (13, "a table, then rows", """
def caption_f1(text, answer, think):
    said = inside(text, "answer")
    if said is None:
        return 0.0
    claims = [w for w in (content_words(s) for s in re.split("[.;!?\\n]+", said)) if len(w)]
    events = [content_words(e) for e in answer]
    free = [True] * len(events)
    for c in claims:
        same = [4 * len(c & e) >= 3 * len(c) and 4 * len(c & e) >= 3 * len(e) for e in events]
        hits = [i for i in range(len(events)) if same[i] and free[i]]
        if hits:
            free[hits[0]] = False
    pairs = free.count(False)
    return 2 * pairs / (len(claims) + len(events))
"""),
    (13, "precision and recall", """
def caption_f1(text, answer, think):
    claims, events = [], list(map(content_words, answer))
    for line in (inside(text, "answer") or "").splitlines() or [""]:
        for sentence in re.findall(r"[^.;!?]+", line):
            claims += [content_words(sentence)] if content_words(sentence) else []
    used = set()
    for claim in claims:
        for i, event in enumerate(events):
            share = min(len(claim & event) / len(claim), len(claim & event) / max(1, len(event)))
            if i not in used and share >= 0.75:
                used.add(i)
                break
    if not used:
        return 0
    p, r = len(used) / len(claims), len(used) / len(events)
    return 2 / (1 / p + 1 / r)
"""),
    (14, "token by token", """
def cispo_loss(logp, logp_old, advantages, mask, weights, clip_low, clip_high):
    total = logp.new_zeros(())
    for g in range(len(logp)):
        for c in range(logp.shape[1]):
            if mask[g, c]:
                with torch.no_grad():
                    rho = (logp[g, c] - logp_old[g, c]).exp()
                    rho = min(max(rho.item(), 1 - clip_low), 1 + clip_high)
                total = total - weights[g, c] * rho * advantages[g] * logp[g, c]
    return total
"""),
    (14, "own tokens picked out", """
def cispo_loss(logp, logp_old, advantages, mask, weights, clip_low, clip_high):
    own, old = logp[mask], logp_old[mask]
    ratio = torch.exp(own.detach() - old)
    push = torch.clip(ratio, 1 - clip_low, 1 + clip_high) * weights[mask]
    A = advantages.repeat_interleave(mask.sum(1))
    return -torch.dot((push * A).to(own.dtype), own)
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
    return grading.examine(exercise, folder)[:2]


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


def main(verbose, numbers):
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers or [exercise.number for exercise in exercises.EXERCISES]:
            for kind, title, fault, message in try_all(number, folder):
                results.append((kind, fault))
                if fault or verbose:
                    said = f" → {fault}" if fault else ""
                    print(f"\nexercise {number}, {kind}: {title}{said}\n{message}")
    wrong = [fault for kind, fault in results if kind == "wrong"]
    right = [fault for kind, fault in results if kind == "right"]
    mute = sum("lacks" in fault for fault in wrong)
    print(
        f"{len(wrong)} wrong solutions, {wrong.count('accepted')} accepted, {mute} without the"
        f" right words; {len(right)} right but different, {sum(map(bool, right))} rejected"
    )
    return int(any(fault for _, fault in results))


if __name__ == "__main__":
    sys.exit(main("-v" in sys.argv, [int(word) for word in sys.argv[1:] if word.isdigit()]))
