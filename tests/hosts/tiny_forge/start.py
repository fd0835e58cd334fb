"""Starts a real Forge on the CPU: python start.py CHECKOUT --data-dir BASE ... (Forge's own options).

Forge's webui.py runs unchanged. A CPU build of torchvision lacks operators, which are declared here; pytorch_lightning,
which Forge imports only to quiet its logger, is replaced.
"""

import os
import sys
import types

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.dirname(HERE)]
checkout = sys.argv.pop(1)
os.chdir(checkout)
sys.path.insert(0, checkout)
sys.argv[0] = "webui.py"
sys.dont_write_bytecode = True
torch.set_num_threads(2)
try:
    import torchvision  # noqa: F401
except RuntimeError:
    for name in [name for name in sys.modules if name.startswith("torchvision")]:
        del sys.modules[name]
    operators = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        operators.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
lightning = types.ModuleType("pytorch_lightning")
lightning.utilities = types.SimpleNamespace(rank_zero=types.ModuleType("rank_zero"))
sys.modules["pytorch_lightning"] = lightning

import webui  # imports and initializes everything, loads extensions
import tiny_engine  # after it: Forge's modules import each other in a circle
from modules_forge import main_thread

tiny_engine.install()
webui.webui()
main_thread.loop()
