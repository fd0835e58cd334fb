"""Print how many MB of text encoders a ComfyModel gives back.

<ComfyUI's python> freed_encoders.py COMFYUI_PATH CHECKPOINT
"""

import gc
import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "training"))
import _as_package  # noqa: F401 - makes the folder the package learned_solvers
from learned_solvers.training.models.comfy import ComfyModel
from learned_solvers.training.models.loading import ModelFiles


def held():
    tensors = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()) / 2**20


model = ComfyModel.load(ModelFiles(checkpoint=Path(sys.argv[2]), comfyui=Path(sys.argv[1])))
model.encode(["a cat"], print)
before = held()
model.free_text_encoders()
print(before - held())
