"""Writes tiny models of the real architectures that ComfyUI's stock loaders accept.

    <ComfyUI's python> make_models.py COMFYUI_PATH MODELS_FOLDER

Randomly initialised, a few MB each: an SD 1.5 U-Net (eps, VP) with a ControlNet and a LoRA, an SD 2.1 (v), a
HunyuanDiT (v), an SD3 MMDiT with a LoRA, Wan's (two) and HunyuanVideo's transformers (flow, video), Wan's VAE and LTX's
audio-video transformer if the core can load tiny ones, a true FLUX. CLIP-L, and FLUX for cores that fix its width, have
their full shapes: their weights are strided views of small buffers.
"""

import dataclasses
import importlib.util
import inspect
import json
import math
from pathlib import Path

from comfy_on_cpu import ARGUMENTS

# isort: split

import comfy.cldm.cldm
import comfy.clip_model
import comfy.ldm.flux.model
import comfy.ldm.hunyuan_video.model
import comfy.ops
import comfy.sd1_clip
import torch
from comfy.ldm.hydit.models import HunYuanDiT
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.ldm.wan.model import WanModel
from comfy.ldm.wan.vae import WanVAE
from comfy.taesd.taesd import Decoder, Encoder
from safetensors.torch import save_file

MODELS = Path(ARGUMENTS[0])
META = {"dtype": torch.float32, "device": "meta", "operations": comfy.ops.disable_weight_init}

# ComfyUI recognises SD by 320 channels and the context and projections of SD 1.5 or 2; levels and depth are free.
SD = {"image_size": 32, "in_channels": 4, "model_channels": 320, "num_res_blocks": [1], "channel_mult": [1]}
SD |= {"transformer_depth": [1], "transformer_depth_middle": -2, "use_spatial_transformer": True, "num_heads": 8}
SD15 = {**SD, "legacy": False, "context_dim": 768, "use_linear_in_transformer": False}
SD21 = {**SD, "legacy": False, "context_dim": 1024, "use_linear_in_transformer": True}
# Sizes are in the file's metadata: text of 2 * 64 for video and audio each, latents of 128 channels and of 8 x 16.
LTXAV = {"num_attention_heads": 2, "attention_head_dim": 32, "cross_attention_dim": 64, "caption_channels": 64}
LTXAV |= {"audio_num_attention_heads": 2, "audio_attention_head_dim": 32, "audio_cross_attention_dim": 64}
LTXAV |= {"connector_num_attention_heads": 2, "connector_attention_head_dim": 32, "connector_num_layers": 1}
LTXAV |= {"num_layers": 1}

FLUX_FIELDS = {f.name for f in dataclasses.fields(comfy.ldm.flux.model.FluxParams)}
FLUX_WIDTH_IS_FREE = "global_modulation" in FLUX_FIELDS  # the release that added it reads the width from the file
# Values of FLUX and HunyuanVideo; each core has some of the fields.
FLUX = {"in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "mlp_ratio": 4.0, "axes_dim": [16, 56, 56]}
FLUX |= {"qkv_bias": True, "guidance_embed": True, "depth": 1}


def sd(config):
    return UNetModel(out_channels=4, transformer_depth_output=[0, 0], **config, **META)


def sd3(width=64, pooled=32):
    context = {"target": "torch.nn.Linear", "params": {"in_features": width, "out_features": 128}}
    sizes = {"patch_size": 2, "in_channels": 16, "out_channels": 16, "depth": 2, "adm_in_channels": pooled}
    positions = {"num_patches": 32 * 32, "pos_embed_max_size": 32, "pos_embed_scaling_factor": None}
    others = {"input_size": None, "context_embedder_config": context, "qk_norm": "rms", "x_block_self_attn_layers": []}
    return OpenAISignatureMMDITWrapper(**sizes, **positions, **others, **META)


def hunyuanvideo():
    values = {**FLUX, "patch_size": [1, 2, 2], "context_in_dim": 64, "hidden_size": 128, "num_heads": 1, "theta": 256}
    switches = ("byt5", "meanflow", "meanflow_sum", "use_cond_type_embedding")
    values |= {"depth_single_blocks": 1, "vision_in_dim": None, **dict.fromkeys(switches, False)}
    fields = {f.name for f in dataclasses.fields(comfy.ldm.hunyuan_video.model.HunyuanVideoParams)}
    values = {k: v for k, v in values.items() if k in fields}
    return comfy.ldm.hunyuan_video.model.HunyuanVideo(image_model="hunyuan_video", **values, **META)


def flux(context=64):
    hidden, context = (128, context) if FLUX_WIDTH_IS_FREE else (3072, 4096)
    values = {**FLUX, "patch_size": 2, "context_in_dim": context, "hidden_size": hidden, "num_heads": hidden // 128}
    values |= {"depth_single_blocks": int(FLUX_WIDTH_IS_FREE), "theta": 10000, "txt_ids_dims": []}
    values = {k: v for k, v in values.items() if k in FLUX_FIELDS}
    return comfy.ldm.flux.model.Flux(image_model="flux", **values, **META)


def clip_l():
    """CLIP-L, 123 M parameters, the text encoder of SD 1.5, SD3 and FLUX; no loader accepts another shape."""
    config = json.loads((Path(comfy.sd1_clip.__file__).parent / "sd1_clip_config.json").read_text())
    return comfy.clip_model.CLIPTextModel(config, torch.float32, "meta", comfy.ops.disable_weight_init)


def random_values(network, gain=1.0, seed=0, thin=False):
    """Random weights by key. With `thin`, matrices are views of a few short buffers: a .pth file keeps strides."""
    generator, buffers, values = torch.Generator().manual_seed(seed), {}, {}
    for key, tensor in network.state_dict().items():
        if key.endswith(("query_norm.weight", "key_norm.weight")):  # called .scale in files of every age
            key = key.removesuffix("weight") + "scale"
        fan_in = math.prod(tensor.shape[1:])
        if thin and tensor.ndim == 2:
            if fan_in not in buffers:
                buffers[fan_in] = torch.randn(1 << 18, generator=generator) / math.sqrt(fan_in)
            values[key] = buffers[fan_in].as_strided(tensor.shape, (5, 3))
        elif tensor.ndim >= 2 and not key.endswith(("modulation", "pos_embed")):
            values[key] = torch.randn(tensor.shape, generator=generator) * gain / math.sqrt(fan_in)
        elif key.endswith((".scale", "norm.weight")) or (tensor.ndim == 1 and key.endswith("weight")):
            values[key] = torch.ones(tensor.shape)
        else:
            values[key] = torch.randn(tensor.shape, generator=generator) * 0.02
    return values


def lora(network, rank=2):
    """A LoRA on every attention projection, in the format that uses ComfyUI's own key names."""
    generator, values = torch.Generator().manual_seed(5), {}
    for key, tensor in network.state_dict().items():
        if ".attn" in key and tensor.ndim == 2:
            stem = f"diffusion_model.{key.removesuffix('.weight')}"
            values[f"{stem}.lora_down.weight"] = torch.randn(rank, tensor.shape[1], generator=generator) * 0.2
            values[f"{stem}.lora_up.weight"] = torch.randn(tensor.shape[0], rank, generator=generator) * 0.2
    return values


def vae(channels, scale, shift=0.0):
    """TAESD's encoder and decoder as a VAE file, with the latent's scale."""
    values = {"vae_scale": torch.tensor(scale), "vae_shift": torch.tensor(shift)}
    for part, make_network in (("encoder", Encoder), ("decoder", Decoder)):
        with torch.device("meta"):
            network = make_network(latent_channels=channels)
        values |= prefixed(f"taesd_{part}.", random_values(network, gain=1.3, seed=3))
    return values


def prefixed(prefix, values):
    return {prefix + key: value for key, value in values.items()}


def save(values, file, metadata=None):
    """Writes a file below MODELS; a .pth or .ckpt keeps the strides of thin weights."""
    path = MODELS / file
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(values, path, metadata)
    else:
        torch.save(values, path)


unet, text, sd_vae = random_values(sd(SD15), 0.7), random_values(clip_l(), seed=1, thin=True), vae(4, 0.18215)
save(unet, "diffusion_models/tiny_sd15.safetensors")
save(text, "text_encoders/tiny_clip_l.pth")
save(sd_vae, "vae/tiny_taesd.safetensors")
save(vae(16, 0.3611, 0.1159), "vae/tiny_taef1.safetensors")
parts = {"model.diffusion_model.": unet, "cond_stage_model.transformer.": text, "first_stage_model.": sd_vae}
whole = {key: value for prefix, values in parts.items() for key, value in prefixed(prefix, values).items()}
save(whole, "checkpoints/tiny_sd15_whole.ckpt")

controlnet = comfy.cldm.cldm.ControlNet(hint_channels=3, **SD15, **META)
save(random_values(controlnet, seed=4), "controlnet/tiny_controlnet.safetensors")
save(lora(sd(SD15)), "loras/tiny_lora.safetensors")
save(lora(sd3()), "loras/tiny_sd3_lora.safetensors")

vpred = random_values(sd(SD21), 0.7)
# ComfyUI tells SD 2's v prediction from its eps models by the spread of this bias, on a level that a tiny model lacks.
vpred["output_blocks.11.1.transformer_blocks.0.norm1.bias"] = torch.tensor([-1.0, 1.0])
save(prefixed("model.diffusion_model.", vpred), "diffusion_models/tiny_sd21.safetensors")

wan = WanModel(model_type="t2v", dim=128, ffn_dim=128, num_heads=1, num_layers=1, in_dim=16, out_dim=16, **META)
networks = {"hydit": HunYuanDiT(hidden_size=128, depth=2, **META), "sd3": sd3(), "sd3_clip": sd3(4096, 2048)}
networks |= {"wan": wan, "hunyuanvideo": hunyuanvideo()}
if FLUX_WIDTH_IS_FREE:
    networks |= {"flux": flux(), "flux_clip": flux(768)}
else:
    save(random_values(flux(), thin=True), "diffusion_models/tiny_flux.pth")
for name, network in networks.items():
    save(random_values(network), f"diffusion_models/tiny_{name}.safetensors")
save(random_values(wan, seed=6), "diffusion_models/tiny_wan_low.safetensors")
if "image_channels" in inspect.signature(WanVAE.__init__).parameters:  # the release that reads the width from the file
    video_vae = {"dim": 16, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": []}
    with torch.device("meta"):
        network = WanVAE(temperal_downsample=[False, True, True], image_channels=3, dropout=0.0, **video_vae)
    save(random_values(network), "vae/tiny_wan_vae.safetensors")
if importlib.util.find_spec("comfy.ldm.lightricks.av_model") is not None:
    from comfy.ldm.lightricks.av_model import LTXAVModel

    config = {"config": json.dumps({"transformer": LTXAV})}
    save(random_values(LTXAVModel(**LTXAV, **META)), "diffusion_models/tiny_ltxav.safetensors", config)
