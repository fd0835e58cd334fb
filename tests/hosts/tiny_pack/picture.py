"""A checkpoint with known pictures: ComfyUI's own model, noise schedule and guidance, an answer in closed form."""

import comfy.sd
import folder_paths
import torch

from .registry import node
from .scene import landscape

DEVIATION = 0.05  # of the data around the landscape, in the model's latent space


@node("TinyPicture", ("MODEL", "CLIP", "VAE"), ckpt_name=folder_paths.get_filename_list("checkpoints"))
def load(ckpt_name):
    """Like CheckpointLoaderSimple, but for data ~ N(landscape, DEVIATION^2) and a linear VAE."""
    path = folder_paths.get_full_path_or_raise("checkpoints", ckpt_name)
    model, clip, *_ = comfy.sd.load_checkpoint_guess_config(path, output_vae=True, output_clip=True)
    colours = Colours(model.model.latent_format)

    def denoised(_, call):
        x, variance = call["input"], DEVIATION**2
        sigma = call["timestep"].view(-1, 1, 1, 1)
        mean = colours.latent(landscape(*x.shape[-2:])).to(x)
        return (variance * x + sigma**2 * mean) / (variance + sigma**2)

    model.set_model_unet_function_wrapper(denoised)
    return model, clip, colours


class Colours:
    """A VAE of one matrix, the one with which ComfyUI previews a latent: the preview is the picture."""

    def __init__(self, latent_format):
        self.format = latent_format
        self.factors = torch.tensor(latent_format.latent_rgb_factors)
        bias = getattr(latent_format, "latent_rgb_factors_bias", None)
        self.bias = torch.zeros(3) if bias is None else torch.tensor(bias)

    def latent(self, rgb):
        """The latent in the model's space, [C, H, W], of an RGB picture [3, H, W]."""
        return torch.einsum("rhw,rc->chw", 2 * rgb - 1 - self.bias[:, None, None], torch.linalg.pinv(self.factors))

    def encode(self, pixels):
        rgb = torch.nn.functional.avg_pool2d(pixels[..., :3].movedim(-1, 1), 8)
        return self.format.process_out(torch.stack([self.latent(picture) for picture in rgb]))

    def decode(self, latents):
        rgb = torch.einsum("bchw,cr->brhw", self.format.process_in(latents), self.factors)
        rgb = (rgb + self.bias[:, None, None] + 1) / 2
        return torch.nn.functional.interpolate(rgb, scale_factor=8, mode="bilinear").clamp(0, 1).movedim(1, -1)
