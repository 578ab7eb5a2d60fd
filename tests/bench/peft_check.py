"""Does the PEFT package read our adapters as we mean them? Run in a venv that has that package:

    python3 -m venv data/peft-venv; data/peft-venv/bin/pip install torch==2.13.0 transformers peft
    python train.py --lora 8 --lr 1e-2 --steps 3 --out runs/lora
    python -m tools.merge runs/lora/policy runs/merged
    data/peft-venv/bin/python tests/bench/peft_check.py runs/lora/policy runs/merged

Prints the largest difference of logits, relative to the largest logit, between: PEFT on our adapter
folder, our merged folder in plain transformers, and the base, which must be far away from both.
"""

import json
import os
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText

adapters, merged = sys.argv[1:]
with open(os.path.join(adapters, "adapter_config.json"), encoding="utf-8") as f:
    base = AutoModelForImageTextToText.from_pretrained(json.load(f)["base_model_name_or_path"])
ids = torch.randint(20, 400, (2, 40), generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    logits = {"base": base(input_ids=ids).logits.clone()}
    logits["peft"] = PeftModel.from_pretrained(base, adapters)(input_ids=ids).logits
    logits["merged"] = AutoModelForImageTextToText.from_pretrained(merged)(input_ids=ids).logits
gap = lambda a, b: float((logits[a] - logits[b]).abs().max())
largest = float(logits["base"].abs().max())
print(
    f"largest difference of logits, as a share of the largest logit ({largest:.1f}):"
    f" peft and merged {gap('peft', 'merged') / largest:.1e};"
    f" peft and base {gap('peft', 'base') / largest:.1e}"
)
sys.exit(not gap("peft", "merged") < 1e-5 * largest < 1e-3 * largest < gap("peft", "base"))
