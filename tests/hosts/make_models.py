"""Write tiny models of the real architectures that ComfyUI's stock loaders accept.

    <ComfyUI's python> make_models.py COMFYUI_PATH MODELS_FOLDER

Randomly initialised, a few MB each: an SD 1.5 U-Net (eps, VP), an SD3 MMDiT and a Wan transformer (flow), a true FLUX.
CLIP-L, and FLUX for cores that fix its width, have their full shapes: their weights are strided views of small buffers.
"""

import dataclasses
import json
import math
import sys
from pathlib import Path

COMFY, MODELS = sys.argv[1], Path(sys.argv[2])
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, COMFY)

import comfy.options

comfy.options.enable_args_parsing()

import comfy.clip_model
import comfy.ldm.flux.model
import comfy.ops
import comfy.sd1_clip
import torch
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.wan.model import WanModel
from comfy.taesd.taesd import Decoder, Encoder
from safetensors.torch import save_file

META = {"dtype": torch.float32, "device": "meta", "operations": comfy.ops.disable_weight_init}


def sd(context, linear):
    # Detection wants 320 channels, SD 1.5's or 2's context and projections; levels and depth are free.
    return UNetModel(
        image_size=32,
        in_channels=4,
        out_channels=4,
        model_channels=320,
        num_res_blocks=[1],
        channel_mult=[1],
        transformer_depth=[1],
        transformer_depth_output=[0, 0],
        transformer_depth_middle=-2,
        context_dim=context,
        use_spatial_transformer=True,
        use_linear_in_transformer=linear,
        legacy=False,
        num_heads=8,
        **META,
    )


def sd3(width=64, pooled=32):
    context = {"target": "torch.nn.Linear", "params": {"in_features": width, "out_features": 128}}
    return OpenAISignatureMMDITWrapper(
        input_size=None,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        depth=2,
        adm_in_channels=pooled,
        context_embedder_config=context,
        num_patches=32 * 32,
        pos_embed_max_size=32,
        pos_embed_scaling_factor=None,
        qk_norm="rms",
        x_block_self_attn_layers=[],
        **META,
    )


def wan():
    return WanModel(model_type="t2v", dim=128, ffn_dim=128, num_heads=1, num_layers=1, in_dim=16, out_dim=16, **META)


FLUX_FIELDS = {f.name for f in dataclasses.fields(comfy.ldm.flux.model.FluxParams)}
FLUX_WIDTH_IS_FREE = "global_modulation" in FLUX_FIELDS  # came together with a width read from the file


def flux(context=64):
    hidden, context = (128, context) if FLUX_WIDTH_IS_FREE else (3072, 4096)
    values = {
        "in_channels": 16,
        "patch_size": 2,
        "out_channels": 16,
        "vec_in_dim": 768,
        "context_in_dim": context,
        "hidden_size": hidden,
        "mlp_ratio": 4.0,
        "num_heads": hidden // 128,
        "depth": 1,
        "depth_single_blocks": 1 if FLUX_WIDTH_IS_FREE else 0,
        "axes_dim": [16, 56, 56],
        "theta": 10000,
        "qkv_bias": True,
        "guidance_embed": True,
        "txt_ids_dims": [],
    }
    values = {k: v for k, v in values.items() if k in FLUX_FIELDS}
    return comfy.ldm.flux.model.Flux(image_model="flux", **values, **META)


def file_names(state):
    """Flux-type norms are called .scale in the files of all ages."""
    suffixes = ("query_norm.weight", "key_norm.weight")
    return {k[: -len("weight")] + "scale" if k.endswith(suffixes) else k: v for k, v in state.items()}


def values_of(state, gain=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for key, tensor in file_names(state).items():
        if tensor.ndim >= 2 and not key.endswith(("modulation", "pos_embed")):
            made[key] = torch.randn(tensor.shape, generator=generator) * gain / math.sqrt(math.prod(tensor.shape[1:]))
        elif key.endswith((".scale", "norm.weight")) or (tensor.ndim == 1 and key.endswith("weight")):
            made[key] = torch.ones(tensor.shape)
        else:
            made[key] = torch.randn(tensor.shape, generator=generator) * 0.02
    return made


def thin_values_of(state, seed=0):
    """Full shapes in a small file: a .pth keeps strides, so every matrix is a view of one short buffer."""
    buffer = torch.randn(1 << 18, generator=torch.Generator().manual_seed(seed))
    made, scaled = {}, {}
    for key, tensor in file_names(state).items():
        if tensor.ndim == 2:
            rows, columns = tensor.shape
            source = scaled.setdefault(columns, buffer / math.sqrt(columns))
            made[key] = source.as_strided((rows, columns), (5, 3))
        elif key.endswith((".scale", "norm.weight")):
            made[key] = torch.ones(tensor.shape)
        else:
            made[key] = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed)) * 0.02
    return made


def clip_l():
    """CLIP-L, 123 M parameters, as the text encoder of SD 1.5, SD3 and FLUX; its shape is not free in any loader."""
    config = json.loads((Path(comfy.sd1_clip.__file__).parent / "sd1_clip_config.json").read_text())
    model = comfy.clip_model.CLIPTextModel(config, torch.float32, "meta", comfy.ops.disable_weight_init)
    return thin_values_of(model.state_dict(), seed=1)


def tiny_vae(name, channels):
    """Encoder and decoder of TAESD in one file, with the latent's scale, as a VAE file."""
    scale, shift = {"taesd": (0.18215, 0.0), "taef1": (0.3611, 0.1159)}[name]
    states = {"vae_scale": torch.tensor(scale), "vae_shift": torch.tensor(shift)}
    for part, network in (("encoder", Encoder), ("decoder", Decoder)):
        with torch.device("meta"):
            state = network(latent_channels=channels).state_dict()
        state = values_of(state, gain=1.3, seed=3)
        save_file(state, MODELS / "vae_approx" / f"{name}_{part}.safetensors")
        states |= {f"taesd_{part}.{k}": v for k, v in state.items()}
    save_file(states, MODELS / "vae" / f"tiny_{name}.safetensors")
    return states


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def main():
    nets, texts, checkpoints = (MODELS / name for name in ("diffusion_models", "text_encoders", "checkpoints"))
    for folder in (nets, texts, checkpoints, MODELS / "vae", MODELS / "vae_approx"):
        folder.mkdir(parents=True, exist_ok=True)
    unet = values_of(sd(768, linear=False).state_dict(), 0.7)
    save_file(unet, nets / "tiny_sd15.safetensors")
    vpred = values_of(sd(1024, linear=True).state_dict(), 0.7)
    # The width of this bias, of a level that a tiny model lacks, tells SD 2's v prediction from its eps models.
    vpred["output_blocks.11.1.transformer_blocks.0.norm1.bias"] = torch.tensor([-1.0, 1.0])
    save_file(prefixed("model.diffusion_model.", vpred), nets / "tiny_sd21.safetensors")
    for name, make in (("tiny_sd3", sd3), ("tiny_wan", wan), ("tiny_sd3_clip", lambda: sd3(4096, 2048))):
        save_file(values_of(make().state_dict()), nets / f"{name}.safetensors")
    if FLUX_WIDTH_IS_FREE:
        save_file(values_of(flux().state_dict()), nets / "tiny_flux.safetensors")
        save_file(values_of(flux(768).state_dict()), nets / "tiny_flux_clip.safetensors")
    else:
        torch.save(thin_values_of(flux().state_dict()), nets / "tiny_flux.pth")
    text, vae, _ = clip_l(), tiny_vae("taesd", 4), tiny_vae("taef1", 16)
    torch.save(text, texts / "tiny_clip_l.pth")
    parts = {"model.diffusion_model.": unet, "cond_stage_model.transformer.": text, "first_stage_model.": vae}
    whole = {key: value for prefix, state in parts.items() for key, value in prefixed(prefix, state).items()}
    torch.save(whole, checkpoints / "tiny_sd15_whole.ckpt")


main()
