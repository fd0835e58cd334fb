"""Train the bundled text-to-picture model: `python training/train_emoji.py --data FOLDER` writes emoji.safetensors.

FOLDER is npm's emoji-datasource-google 16.0.0, unpacked (`npm pack emoji-datasource-google@16.0.0`, then tar): its
pictures are Google's Noto Emoji (Apache-2.0). Takes two and a quarter hours on one CPU core; the file next to the
weights with the suffix .state keeps the progress, from which the same command resumes.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

if not __package__:  # run as a file
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # absent with python -I and in portable builds
    import _as_package

    __package__ = _as_package.TRAINING

from ..samplers.files.write import write_tensors, write_whole
from .models.emoji import LONGEST, SHAPE, WEIGHTS, EmojiUNet

__all__ = ["augmented", "load_pictures", "main"]

CATEGORIES = {
    "Smileys & Emotion", "Animals & Nature", "Food & Drink", "Objects", "Travel & Places", "Activities",
}  # fmt: skip
LEFT_OUT = {"emotion", "time", "hotel", "place-map", "sound", "award-medal"}  # signs and abstract ones
STOP_WORDS = {"with", "and", "of", "the", "on", "in", "to", "for", "at", "or", "over", "facing", "other"}
BATCH, AVERAGE, WARM_UP, FLAT = 48, 0.999, 300, 0.35
SAVE_EVERY = 300.0  # seconds


def load_pictures(folder: Path) -> tuple[Tensor, Tensor, list[str]]:
    """Premultiplied RGBA pictures, uint8 [M, 4, 64, 64]; word numbers [M, 12], 0 for none; the vocabulary."""
    pictures, texts = [], []
    entries = json.loads((folder / "emoji.json").read_text("utf-8"))
    for entry in sorted(entries, key=lambda entry: entry["sort_order"]):
        kept = entry["category"] in CATEGORIES and entry["subcategory"] not in LEFT_OUT
        if not (kept and entry["has_img_google"]):
            continue
        text = " ".join([entry["name"] or "", *entry["short_names"], entry["subcategory"]]).lower()
        words = [word for word in re.findall(r"[a-z]+", text) if len(word) > 1 and word not in STOP_WORDS]
        texts.append(list(dict.fromkeys(words))[:LONGEST])
        image = Image.open(folder / "img/google/64" / entry["image"]).convert("RGBA")
        rgba = np.asarray(image.resize((64, 64), Image.Resampling.LANCZOS), dtype=np.float32)
        rgba = np.concatenate([rgba[..., :3] * rgba[..., 3:] / 255, rgba[..., 3:]], axis=2)
        pictures.append(torch.from_numpy(rgba.round().astype(np.uint8)).permute(2, 0, 1))
    vocabulary = sorted({word for text in texts for word in text})
    number = {word: i + 1 for i, word in enumerate(vocabulary)}
    numbers = torch.zeros(len(texts), LONGEST, dtype=torch.long)
    for row, text in zip(numbers, texts, strict=True):
        row[: len(text)] = torch.tensor([number[word] for word in text])
    return torch.stack(pictures), numbers, vocabulary


def augmented(rgba: Tensor) -> Tensor:
    """Pictures [B, 3, 32, 32] in [-1, 1] of premultiplied RGBA [B, 4, 64, 64], different in every call.

    Turned, made smaller, shifted, mirrored, on a plain background, with a little noise: memorised pictures would make
    trajectories turn sharply, unlike those of a large model.
    """
    n = len(rgba)
    angle = (torch.rand(n) * 2 - 1) * math.radians(10)
    scale = 1 + 0.45 * torch.rand(n)
    shift = (torch.rand(n, 2) * 2 - 1) * ((1 - 1 / scale) * 0.9 + 0.02)[:, None]
    mirror = torch.randint(0, 2, (n,)) * 2.0 - 1
    cos, sin = angle.cos() * scale, angle.sin() * scale
    matrix = torch.stack([torch.stack([cos * mirror, -sin * mirror], 1), torch.stack([sin, cos], 1)], 1)
    place = torch.cat([matrix, -matrix @ shift[:, :, None]], dim=2)
    grid = F.affine_grid(place, [n, 4, 64, 64], align_corners=False)
    moved = F.avg_pool2d(F.grid_sample(rgba.float() / 255, grid, padding_mode="zeros", align_corners=False), 2)
    x = moved[:, :3] + (1 - moved[:, 3:]) * torch.rand(n, 3, 1, 1)
    return x * 2 - 1 + 0.02 * torch.randn(n, *SHAPE)


def flow_loss(network: EmojiUNet, pictures: Tensor, numbers: Tensor) -> Tensor:
    """The rectified-flow loss of a random batch, with single words (15 %) and whole prompts (12 %) dropped."""
    rows = torch.randint(len(pictures), (BATCH,))
    x0, words = augmented(pictures[rows]), numbers[rows]
    words = words * ((torch.rand(words.shape) >= 0.15) & (torch.rand(BATCH, 1) >= 0.12))
    noise, sigma = torch.randn_like(x0), torch.sigmoid(torch.randn(BATCH))
    x = torch.lerp(x0, noise, sigma.view(-1, 1, 1, 1)).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):  # a quarter faster than float32
        velocity = network(x, sigma, words)
    return (velocity.float() - (noise - x0)).square().mean()


def rate_at(iteration: int, part: float, rate: float) -> float:
    """Warm-up, then flat, then a cosine down to a hundredth; `part` of the time is over."""
    done = max(0.0, (part - FLAT) / (1 - FLAT))
    return rate * (0.505 + 0.495 * math.cos(math.pi * done)) * min(1.0, (iteration + 1) / WARM_UP)


def main() -> None:
    """Trains and writes the weights file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with emoji.json and img/google/64")
    add("--output", type=Path, default=WEIGHTS, help="weights file (default: the bundled one)")
    add("--seconds", type=float, default=8040.0, help="training time, over all runs (default: %(default)g)")
    add("--rate", type=float, default=6e-4, help="highest learning rate (default: %(default)g)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pictures, numbers, vocabulary = load_pictures(args.data)
    network, average = EmojiUNet(len(vocabulary)), EmojiUNet(len(vocabulary))
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    average.load_state_dict(network.state_dict())
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.rate, betas=(0.9, 0.99), weight_decay=0.01)
    parts, iteration, seconds = {"network": network, "average": average, "optimizer": optimizer}, 0, 0.0
    progress = args.output.with_suffix(".state")
    if progress.exists():
        state = torch.load(progress)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        iteration, seconds = state["iteration"], state["seconds"]
        torch.set_rng_state(state["random"])

    def save() -> None:
        state = {name: part.state_dict() for name, part in parts.items()}
        state |= {"iteration": iteration, "seconds": seconds, "random": torch.get_rng_state()}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_whole(progress, buffer.getvalue())
        halves = {name: tensor.half() for name, tensor in average.state_dict().items()}
        facts = {"words": json.dumps(vocabulary), "iteration": str(iteration)}
        facts["pictures"] = "Noto Emoji (Apache-2.0), emoji-datasource-google 16.0.0"
        write_tensors(args.output, halves, facts)

    began, saved, running = time.monotonic() - seconds, seconds, 0.0
    while seconds < args.seconds:
        for group in optimizer.param_groups:
            group["lr"] = rate_at(iteration, seconds / args.seconds, args.rate)
        loss = flow_loss(network, pictures, numbers)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        iteration += 1
        decay = min(AVERAGE, (1 + iteration) / (10 + iteration))
        with torch.no_grad():
            for mean, new in zip(average.parameters(), network.parameters(), strict=True):
                mean.lerp_(new, 1 - decay)
        running += (loss.item() - running) / min(iteration, 200)
        seconds = time.monotonic() - began
        if iteration % 100 == 0:
            print(f"iteration {iteration:6d}  loss {running:.4f}  {seconds:.0f} s", flush=True)
        if seconds - saved > SAVE_EVERY:
            save()
            saved = seconds
    save()


if __name__ == "__main__":
    main()
