"""Names and shapes of the tensors in latent diffusion's own code, from the numbers in its config files.

A reference for what sdcli looks for in a single file, that knows nothing of diffusers: the modules are laid out as
`ldm/modules/diffusionmodules/openaimodel.py` (the U-Net), `…/model.py` and `ldm/models/autoencoder.py` (the VQ first
stage) lay them out, and each adds its parameters' names to a row.
"""

from collections.abc import Sequence

Shapes = dict[str, tuple[int, ...]]


def affine(name: str, *shape: int) -> Shapes:
    """A layer with a weight of this shape and a bias of its first side; a norm has but one."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def res_block(name: str, channels: int, out: int, embedding: int) -> Shapes:
    shapes = affine(f"{name}.in_layers.0", channels) | affine(f"{name}.in_layers.2", out, channels, 3, 3)
    shapes |= affine(f"{name}.emb_layers.1", out, embedding)
    shapes |= affine(f"{name}.out_layers.0", out) | affine(f"{name}.out_layers.3", out, out, 3, 3)
    return shapes if channels == out else shapes | affine(f"{name}.skip_connection", out, channels, 1, 1)


def spatial_transformer(name: str, channels: int, context: int) -> Shapes:
    block = f"{name}.transformer_blocks.0"
    shapes = affine(f"{name}.norm", channels) | affine(f"{name}.proj_in", channels, channels, 1, 1)
    for attention, source in (("attn1", channels), ("attn2", context)):
        shapes[f"{block}.{attention}.to_q.weight"] = (channels, channels)
        shapes[f"{block}.{attention}.to_k.weight"] = (channels, source)
        shapes[f"{block}.{attention}.to_v.weight"] = (channels, source)
        shapes |= affine(f"{block}.{attention}.to_out.0", channels, channels)
    shapes |= affine(f"{block}.ff.net.0.proj", 8 * channels, channels)  # GEGLU: a gate beside each of 4 × channels
    shapes |= affine(f"{block}.ff.net.2", channels, 4 * channels)
    for norm in ("norm1", "norm2", "norm3"):
        shapes |= affine(f"{block}.{norm}", channels)
    return shapes | affine(f"{name}.proj_out", channels, channels, 1, 1)


def unet(
    *, in_channels: int, out_channels: int, model_channels: int, attention_resolutions: Sequence[int],
    num_res_blocks: int, channel_mult: Sequence[int], context_dim: int,
) -> Shapes:  # fmt: skip
    """A U-Net with spatial transformers of depth 1, the arguments named as in the config files."""
    embedding = 4 * model_channels
    shapes = affine("time_embed.0", embedding, model_channels) | affine("time_embed.2", embedding, embedding)
    shapes |= affine("input_blocks.0.0", model_channels, in_channels, 3, 3)
    channels, factor, row, skipped = model_channels, 1, 0, [model_channels]
    for level, mult in enumerate(channel_mult):
        for _ in range(num_res_blocks):
            row += 1
            shapes |= res_block(f"input_blocks.{row}.0", channels, mult * model_channels, embedding)
            channels = mult * model_channels
            if factor in attention_resolutions:
                shapes |= spatial_transformer(f"input_blocks.{row}.1", channels, context_dim)
            skipped.append(channels)
        if level != len(channel_mult) - 1:
            row, factor = row + 1, 2 * factor
            shapes |= affine(f"input_blocks.{row}.0.op", channels, channels, 3, 3)
            skipped.append(channels)
    shapes |= res_block("middle_block.0", channels, channels, embedding)
    shapes |= spatial_transformer("middle_block.1", channels, context_dim)
    shapes |= res_block("middle_block.2", channels, channels, embedding)
    row = 0
    for level, mult in reversed(list(enumerate(channel_mult))):
        for layer in range(num_res_blocks + 1):
            out = mult * model_channels
            shapes |= res_block(f"output_blocks.{row}.0", channels + skipped.pop(), out, embedding)
            channels, place = out, 1
            if factor in attention_resolutions:
                shapes |= spatial_transformer(f"output_blocks.{row}.1", channels, context_dim)
                place = 2
            if level and layer == num_res_blocks:
                shapes |= affine(f"output_blocks.{row}.{place}.conv", channels, channels, 3, 3)
                factor //= 2
            row += 1
    return shapes | affine("out.0", channels) | affine("out.2", out_channels, model_channels, 3, 3)


def resnet_block(name: str, channels: int, out: int) -> Shapes:
    shapes = affine(f"{name}.norm1", channels) | affine(f"{name}.conv1", out, channels, 3, 3)
    shapes |= affine(f"{name}.norm2", out) | affine(f"{name}.conv2", out, out, 3, 3)
    return shapes if channels == out else shapes | affine(f"{name}.nin_shortcut", out, channels, 1, 1)


def middle(name: str, channels: int) -> Shapes:
    shapes = resnet_block(f"{name}.mid.block_1", channels, channels)
    for each in ("q", "k", "v", "proj_out"):
        shapes |= affine(f"{name}.mid.attn_1.{each}", channels, channels, 1, 1)
    shapes |= affine(f"{name}.mid.attn_1.norm", channels)
    return shapes | resnet_block(f"{name}.mid.block_2", channels, channels)


def vq_model(
    *, embed_dim: int, n_embed: int, z_channels: int, in_channels: int, out_ch: int, ch: int,
    ch_mult: Sequence[int], num_res_blocks: int,
) -> Shapes:  # fmt: skip
    """A vector-quantising autoencoder without attention but in its middle (`attn_resolutions: []`)."""
    shapes = affine("encoder.conv_in", ch, in_channels, 3, 3)
    channels = ch
    for level, mult in enumerate(ch_mult):
        for layer in range(num_res_blocks):
            shapes |= resnet_block(f"encoder.down.{level}.block.{layer}", channels, mult * ch)
            channels = mult * ch
        if level != len(ch_mult) - 1:
            shapes |= affine(f"encoder.down.{level}.downsample.conv", channels, channels, 3, 3)
    shapes |= middle("encoder", channels) | affine("encoder.norm_out", channels)
    shapes |= affine("encoder.conv_out", z_channels, channels, 3, 3)
    shapes |= affine("decoder.conv_in", channels, z_channels, 3, 3) | middle("decoder", channels)
    for level, mult in reversed(list(enumerate(ch_mult))):
        for layer in range(num_res_blocks + 1):
            shapes |= resnet_block(f"decoder.up.{level}.block.{layer}", channels, mult * ch)
            channels = mult * ch
        if level:
            shapes |= affine(f"decoder.up.{level}.upsample.conv", channels, channels, 3, 3)
    shapes |= affine("decoder.norm_out", channels) | affine("decoder.conv_out", out_ch, channels, 3, 3)
    shapes |= {"quantize.embedding.weight": (n_embed, embed_dim)}
    shapes |= affine("quant_conv", embed_dim, z_channels, 1, 1)
    return shapes | affine("post_quant_conv", z_channels, embed_dim, 1, 1)
