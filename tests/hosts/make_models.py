"""Write tiny models of the real architectures that ComfyUI's stock loaders accept.

    <ComfyUI's python> make_models.py COMFYUI_PATH MODELS_FOLDER

Randomly initialised, a few MB each: an SD 1.5 U-Net (eps, VP) with a ControlNet and a LoRA, an SD 2.1 (v), a
HunyuanDiT (v), an SD3 MMDiT with a LoRA, Wan's and HunyuanVideo's transformers (flow, video), LTX's audio-video
transformer where the core has it, a true FLUX. CLIP-L, and FLUX for cores that fix its width, have their full shapes:
their weights are strided views of small buffers.
"""

import dataclasses
import importlib.util
import json
import math
import sys
from pathlib import Path

COMFY, MODELS = sys.argv[1], Path(sys.argv[2])
sys.argv = [sys.argv[0], "--cpu"]
sys.path.insert(0, COMFY)

import comfy.options

comfy.options.enable_args_parsing()

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
from comfy.taesd.taesd import Decoder, Encoder
from safetensors.torch import save_file

META = {"dtype": torch.float32, "device": "meta", "operations": comfy.ops.disable_weight_init}


# Detection wants 320 channels, SD 1.5's or 2's context and projections; levels and depth are free.
SD = {
    "image_size": 32,
    "in_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1],
    "channel_mult": [1],
    "transformer_depth": [1],
    "transformer_depth_middle": -2,
    "use_spatial_transformer": True,
    "legacy": False,
    "num_heads": 8,
}
SD15 = {**SD, "context_dim": 768, "use_linear_in_transformer": False}
SD21 = {**SD, "context_dim": 1024, "use_linear_in_transformer": True}


def sd(config):
    return UNetModel(out_channels=4, transformer_depth_output=[0, 0], **config, **META)


def sd15_controlnet():
    return comfy.cldm.cldm.ControlNet(hint_channels=3, **SD15, **META)


def lora(state, rank=2):
    """A LoRA on every attention projection, in the format without any weird key names."""
    generator = torch.Generator().manual_seed(5)
    made = {}
    for key, tensor in state.items():
        if ".attn" in key and tensor.ndim == 2:
            stem = f"diffusion_model.{key[: -len('.weight')]}"
            made[f"{stem}.lora_down.weight"] = torch.randn(rank, tensor.shape[1], generator=generator) * 0.2
            made[f"{stem}.lora_up.weight"] = torch.randn(tensor.shape[0], rank, generator=generator) * 0.2
    return made


def hydit():
    return HunYuanDiT(hidden_size=128, depth=2, **META)


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


def hunyuanvideo():
    values = {
        "in_channels": 16,
        "patch_size": [1, 2, 2],
        "out_channels": 16,
        "vec_in_dim": 768,
        "context_in_dim": 64,
        "hidden_size": 128,
        "mlp_ratio": 4.0,
        "num_heads": 1,
        "depth": 1,
        "depth_single_blocks": 1,
        "axes_dim": [16, 56, 56],
        "theta": 256,
        "qkv_bias": True,
        "guidance_embed": True,
        "byt5": False,
        "meanflow": False,
        "meanflow_sum": False,
        "use_cond_type_embedding": False,
        "vision_in_dim": None,
    }
    known = {f.name for f in dataclasses.fields(comfy.ldm.hunyuan_video.model.HunyuanVideoParams)}
    values = {k: v for k, v in values.items() if k in known}
    return comfy.ldm.hunyuan_video.model.HunyuanVideo(image_model="hunyuan_video", **values, **META)


# Sizes travel in the file's metadata: text of 2 * 64 for video and audio each, latents of 128 channels and of 8 x 16.
LTXAV = {
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "cross_attention_dim": 64,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 32,
    "audio_cross_attention_dim": 64,
    "caption_channels": 64,
    "num_layers": 1,
    "connector_attention_head_dim": 32,
    "connector_num_attention_heads": 2,
    "connector_num_layers": 1,
}
HAS_LTXAV = importlib.util.find_spec("comfy.ldm.lightricks.av_model") is not None


def ltxav():
    from comfy.ldm.lightricks.av_model import LTXAVModel

    return LTXAVModel(**LTXAV, **META)


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
    for folder in (nets, texts, checkpoints, *(MODELS / name for name in ("vae", "vae_approx", "controlnet", "loras"))):
        folder.mkdir(parents=True, exist_ok=True)
    unet = values_of(sd(SD15).state_dict(), 0.7)
    save_file(unet, nets / "tiny_sd15.safetensors")
    save_file(values_of(sd15_controlnet().state_dict(), seed=4), MODELS / "controlnet" / "tiny_controlnet.safetensors")
    save_file(lora(sd(SD15).state_dict()), MODELS / "loras" / "tiny_lora.safetensors")
    save_file(lora(sd3().state_dict()), MODELS / "loras" / "tiny_sd3_lora.safetensors")
    vpred = values_of(sd(SD21).state_dict(), 0.7)
    # The width of this bias, of a level that a tiny model lacks, tells SD 2's v prediction from its eps models.
    vpred["output_blocks.11.1.transformer_blocks.0.norm1.bias"] = torch.tensor([-1.0, 1.0])
    save_file(prefixed("model.diffusion_model.", vpred), nets / "tiny_sd21.safetensors")
    for name, make in (
        ("tiny_hydit", hydit),
        ("tiny_sd3", sd3),
        ("tiny_sd3_clip", lambda: sd3(4096, 2048)),
        ("tiny_wan", wan),
        ("tiny_hunyuanvideo", hunyuanvideo),
    ):
        save_file(values_of(make().state_dict()), nets / f"{name}.safetensors")
    if HAS_LTXAV:
        config = {"config": json.dumps({"transformer": LTXAV})}
        save_file(values_of(ltxav().state_dict()), nets / "tiny_ltxav.safetensors", config)
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
