"""The picture that the hosts' closed-form models generate: a sun behind hills."""

import torch


def landscape(height, width):
    """The picture as RGB in [0, 1], shape [3, height, width]."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    rgb = torch.stack([0.35 + 0.6 * y, 0.55 + 0.2 * y, 0.95 - 0.45 * y])
    for mask, colour in (
        ((x - 0.7) ** 2 + (y - 0.3) ** 2 < 0.012, (1.0, 0.9, 0.45)),
        (y > 0.62 + 0.10 * torch.sin(7 * x + 1), (0.30, 0.45, 0.35)),
        (y > 0.78 + 0.07 * torch.sin(9 * x + 4), (0.13, 0.25, 0.20)),
    ):
        rgb = torch.where(mask, torch.tensor(colour)[:, None, None], rgb)
    return rgb
