"""What is in the files that authors published: names and shapes of every tensor.

Each function counts its layers as the authors' own code does, so that nothing here comes from
the names of diffusers.
"""


def dense(name, rows, columns=None, *, bias=True):
    """A layer: its weight (rows, columns), or a vector, and a bias."""
    weight = (rows,) if columns is None else (rows, columns)
    return {f"{name}.weight": weight} | ({f"{name}.bias": (rows,)} if bias else {})


def conv(name, out, into, side=3):
    """A convolution."""
    return {f"{name}.weight": (out, into, side, side), f"{name}.bias": (out,)}


def below(prefix, *parts):
    """Parts together, under a prefix."""
    return {prefix + name: shape for part in parts for name, shape in part.items()}


def ldm_resnet(name, out, into, time):
    """A ResBlock of latent diffusion's U-Net."""
    skip = conv("skip_connection", out, into, 1) if out != into else {}
    return below(
        f"{name}.", dense("in_layers.0", into), conv("in_layers.2", out, into),
        dense("emb_layers.1", out, time), dense("out_layers.0", out),
        conv("out_layers.3", out, out), skip,
    )  # fmt: skip


def ldm_attention(name, width, depth, context, *, linear):
    """A SpatialTransformer."""
    found = dense("norm", width)
    for k in range(depth):
        layers = [dense(f"norm{j}", width) for j in (1, 2, 3)]
        for attn, seen in (("attn1", width), ("attn2", context)):
            layers.append(dense(f"{attn}.to_q", width, width, bias=False))
            layers += [dense(f"{attn}.to_{x}", width, seen, bias=False) for x in "kv"]
            layers.append(dense(f"{attn}.to_out.0", width, width))
        layers += [dense("ff.net.0.proj", 8 * width, width), dense("ff.net.2", width, 4 * width)]
        found |= below(f"transformer_blocks.{k}.", *layers)
    for end in ("proj_in", "proj_out"):
        found |= dense(end, width, width) if linear else conv(end, width, width, 1)
    return below(f"{name}.", found)


def ldm_unet(depths, middle, context, *, width=320, linear, label=0):
    """A U-Net of latent diffusion.

    ``depths`` are the transformer layers of each level, 0 without attention; levels are 1, 2, 4
    and 4 times as wide as the first.
    """
    widths = [width * k for k in (1, 2, 4, 4)][: len(depths)]
    time, at, skips = 4 * width, 0, [width]
    found = dense("time_embed.0", time, width) | dense("time_embed.2", time, time)
    if label:
        found |= dense("label_emb.0.0", time, label) | dense("label_emb.0.2", time, time)
    found |= conv("input_blocks.0.0", width, 4)
    last = width
    for level, (wide, depth) in enumerate(zip(widths, depths, strict=True)):
        for _ in range(2):
            at += 1
            found |= ldm_resnet(f"input_blocks.{at}.0", wide, last, time)
            if depth:
                found |= ldm_attention(f"input_blocks.{at}.1", wide, depth, context, linear=linear)
            last = wide
            skips.append(wide)
        if level < len(widths) - 1:
            at += 1
            found |= conv(f"input_blocks.{at}.0.op", wide, wide)
            skips.append(wide)
    for k in (0, 2):
        found |= ldm_resnet(f"middle_block.{k}", last, last, time)
    found |= ldm_attention("middle_block.1", last, middle, context, linear=linear)
    at = 0
    for level in reversed(range(len(widths))):
        wide, depth = widths[level], depths[level]
        for k in range(3):
            found |= ldm_resnet(f"output_blocks.{at}.0", wide, last + skips.pop(), time)
            last = wide
            if depth:
                found |= ldm_attention(f"output_blocks.{at}.1", wide, depth, context, linear=linear)
            if level and k == 2:
                found |= conv(f"output_blocks.{at}.{2 if depth else 1}.conv", wide, wide)
            at += 1
    return found | dense("out.0", width) | conv("out.2", 4, width)


def ldm_vae(channels=4, widths=(128, 256, 512, 512), *, quant=True):
    """An autoencoder of latent diffusion."""

    def resnet(name, out, into):
        skip = conv("nin_shortcut", out, into, 1) if out != into else {}
        return below(
            f"{name}.", dense("norm1", into), conv("conv1", out, into), dense("norm2", out),
            conv("conv2", out, out), skip,
        )  # fmt: skip

    def middle(wide):
        attention = dense("norm", wide)
        for part in ("q", "k", "v", "proj_out"):
            attention |= conv(part, wide, wide, 1)
        return below(
            "mid.", resnet("block_1", wide, wide), below("attn_1.", attention),
            resnet("block_2", wide, wide),
        )  # fmt: skip

    encoder, last = conv("conv_in", widths[0], 3), widths[0]
    for level, wide in enumerate(widths):
        for k in range(2):
            encoder |= resnet(f"down.{level}.block.{k}", wide, last)
            last = wide
        if level < len(widths) - 1:
            encoder |= conv(f"down.{level}.downsample.conv", wide, wide)
    encoder |= middle(last) | dense("norm_out", last) | conv("conv_out", 2 * channels, last)
    decoder = conv("conv_in", last, channels) | middle(last)
    for level in reversed(range(len(widths))):
        for k in range(3):
            decoder |= resnet(f"up.{level}.block.{k}", widths[level], last)
            last = widths[level]
        if level:
            decoder |= conv(f"up.{level}.upsample.conv", last, last)
    decoder |= dense("norm_out", last) | conv("conv_out", 3, last)
    ends = {}
    if quant:
        ends = conv("quant_conv", 2 * channels, 2 * channels, 1)
        ends |= conv("post_quant_conv", channels, channels, 1)
    return below("encoder.", encoder) | below("decoder.", decoder) | ends


def clip(width=768, layers=12):
    """A CLIP text encoder as transformers names it."""
    found = {
        "embeddings.position_ids": (1, 77),
        "embeddings.token_embedding.weight": (49408, width),
        "embeddings.position_embedding.weight": (77, width),
        **dense("final_layer_norm", width),
    }
    for k in range(layers):
        attention = [dense(f"self_attn.{x}_proj", width, width) for x in ("k", "v", "q", "out")]
        found |= below(
            f"encoder.layers.{k}.", *attention, dense("layer_norm1", width),
            dense("mlp.fc1", 4 * width, width), dense("mlp.fc2", width, 4 * width),
            dense("layer_norm2", width),
        )  # fmt: skip
    return below("text_model.", found)


def open_clip(width, layers):
    """A text encoder of OpenCLIP."""
    found = {
        "positional_embedding": (77, width), "text_projection": (width, width),
        "logit_scale": (), "token_embedding.weight": (49408, width), **dense("ln_final", width),
    }  # fmt: skip
    for k in range(layers):
        found |= below(
            f"transformer.resblocks.{k}.", dense("ln_1", width), dense("ln_2", width),
            {"attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,)},
            dense("attn.out_proj", width, width), dense("mlp.c_fc", 4 * width, width),
            dense("mlp.c_proj", width, 4 * width),
        )  # fmt: skip
    return found


def mmdit(layers, *, width, twice=0, normed=False, side):
    """The transformer of Stable Diffusion 3; ``twice`` counts the blocks with two attentions."""
    found = {
        "pos_embed": (1, side * side, width),
        **below("x_embedder.", conv("proj", width, 16, 2)),
        **dense("t_embedder.mlp.0", width, 256), **dense("t_embedder.mlp.2", width, width),
        **dense("y_embedder.mlp.0", width, 2048), **dense("y_embedder.mlp.2", width, width),
        **dense("context_embedder", width, 4096),
        **dense("final_layer.adaLN_modulation.1", 2 * width, width),
        **dense("final_layer.linear", 64, width),
    }  # fmt: skip

    def attention(name, *, ends=True):
        norms = {f"ln_{x}.weight": (64,) for x in "qk"} if normed else {}
        proj = dense("proj", width, width) if ends else {}
        return below(f"{name}.", dense("qkv", 3 * width, width), proj, norms)

    mlp = dense("mlp.fc1", 4 * width, width) | dense("mlp.fc2", width, 4 * width)
    for k in range(layers):
        is_last, is_twice = k == layers - 1, k < twice
        context = attention("attn", ends=not is_last) | ({} if is_last else mlp)
        context |= dense("adaLN_modulation.1", (2 if is_last else 6) * width, width)
        picture = attention("attn") | mlp | (attention("attn2") if is_twice else {})
        picture |= dense("adaLN_modulation.1", (9 if is_twice else 6) * width, width)
        found |= below(f"joint_blocks.{k}.context_block.", context)
        found |= below(f"joint_blocks.{k}.x_block.", picture)
    return found


def flux(doubles=19, singles=38, *, guided=True, width=3072):
    """The transformer of FLUX.1."""
    found = dense("img_in", width, 64) | dense("txt_in", width, 4096)
    into = {"time_in": 256, "vector_in": 768, **({"guidance_in": 256} if guided else {})}
    for name, seen in into.items():
        found |= below(f"{name}.", dense("in_layer", width, seen), dense("out_layer", width, width))
    norms = {f"norm.{x}_norm.scale": (128,) for x in ("query", "key")}
    for k in range(doubles):
        for side in ("img", "txt"):
            found |= below(
                f"double_blocks.{k}.{side}_", dense("mod.lin", 6 * width, width),
                below("attn.", dense("qkv", 3 * width, width), norms, dense("proj", width, width)),
                dense("mlp.0", 4 * width, width), dense("mlp.2", width, 4 * width),
            )  # fmt: skip
    for k in range(singles):
        found |= below(
            f"single_blocks.{k}.", dense("linear1", 7 * width, width),
            dense("linear2", width, 5 * width), norms, dense("modulation.lin", 3 * width, width),
        )  # fmt: skip
    found |= dense("final_layer.linear", 64, width)
    return found | dense("final_layer.adaLN_modulation.1", 2 * width, width)


def z_image(layers=30, *, width=3840, inner=10240):
    """The transformer of Z-Image, as its authors and ComfyUI publish it in one file."""

    def block(name, *, steered):
        steer = dense("adaLN_modulation.0", 4 * width, 256) if steered else {}
        return below(
            f"{name}.", steer, dense("attention.qkv", 3 * width, width, bias=False),
            dense("attention.out", width, width, bias=False),
            {f"attention.{x}_norm.weight": (128,) for x in "qk"},
            *(dense(f"{at}_norm{j}", width, bias=False)
              for at in ("attention", "ffn") for j in (1, 2)),
            dense("feed_forward.w1", inner, width, bias=False),
            dense("feed_forward.w2", width, inner, bias=False),
            dense("feed_forward.w3", inner, width, bias=False),
        )  # fmt: skip

    found = {"x_pad_token": (1, width), "cap_pad_token": (1, width)}
    found |= dense("x_embedder", width, 64) | dense("t_embedder.mlp.0", 1024, 256)
    found |= dense("t_embedder.mlp.2", 256, 1024) | dense("cap_embedder.0", 2560, bias=False)
    found |= dense("cap_embedder.1", width, 2560)
    found |= dense("final_layer.linear", 64, width)
    found |= dense("final_layer.adaLN_modulation.1", width, 256)
    for k in range(2):
        found |= block(f"noise_refiner.{k}", steered=True)
        found |= block(f"context_refiner.{k}", steered=False)
    for k in range(layers):
        found |= block(f"layers.{k}", steered=True)
    return found


def qwen_image(layers=60, *, width=3072):
    """The transformer of Qwen-Image, whose authors use the names of diffusers."""
    found = dense("img_in", width, 64) | dense("txt_in", width, 3584)
    found |= dense("txt_norm", 3584, bias=False)
    stem = "time_text_embed.timestep_embedder.linear_"
    found |= dense(f"{stem}1", width, 256) | dense(f"{stem}2", width, width)
    found |= dense("norm_out.linear", 2 * width, width) | dense("proj_out", 64, width)
    names = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj")
    for k in range(layers):
        sides = [
            below(
                f"{side}_", dense("mod.1", 6 * width, width),
                dense("mlp.net.0.proj", 4 * width, width), dense("mlp.net.2", width, 4 * width),
            )
            for side in ("img", "txt")
        ]  # fmt: skip
        attention = [dense(name, width, width) for name in (*names, "to_add_out")]
        norms = {f"norm_{x}.weight": (128,) for x in ("q", "k", "added_q", "added_k")}
        found |= below(f"transformer_blocks.{k}.", *sides, below("attn.", *attention, norms))
    return found


def t5(layers=24, *, width=4096):
    """The encoder of a T5 XXL."""
    found = {"shared.weight": (32128, width), "encoder.final_layer_norm.weight": (width,)}
    for k in range(layers):
        attention = [dense(f"SelfAttention.{x}", width, width, bias=False) for x in "qkvo"]
        found |= below(
            f"encoder.block.{k}.layer.0.", *attention, dense("layer_norm", width, bias=False)
        )
        feed = [dense(f"DenseReluDense.wi_{j}", 10240, width, bias=False) for j in (0, 1)]
        feed.append(dense("DenseReluDense.wo", width, 10240, bias=False))
        found |= below(f"encoder.block.{k}.layer.1.", *feed, dense("layer_norm", width, bias=False))
    name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return found | {name: (32, 64)}


UNET, VAE = "model.diffusion_model.", "first_stage_model."


def sd15():
    """v1-5-pruned-emaonly: 1131 tensors of networks, and the noise schedule beside them."""
    unet = ldm_unet((1, 1, 1, 0), 1, 768, linear=False)
    found = below(UNET, unet) | below(VAE, ldm_vae())
    found |= below("cond_stage_model.transformer.", clip())
    schedule = (
        "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
        "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
    )  # fmt: skip
    return found | {name: (1000,) for name in schedule}


def sdxl():
    """sd_xl_base_1.0: 2515 tensors."""
    unet = ldm_unet((0, 2, 10), 10, 2048, linear=True, label=2816)
    found = below(UNET, unet) | below(VAE, ldm_vae())
    found |= below("conditioner.embedders.0.transformer.", clip())
    return found | below("conditioner.embedders.1.model.", open_clip(1280, 32))


def sd3(transformer, *, t5_layers=0):
    """A file of Stable Diffusion 3 with its encoders."""
    found = below(UNET, transformer) | below(VAE, ldm_vae(16, quant=False))
    for name, (width, layers) in {"clip_l": (768, 12), "clip_g": (1280, 32)}.items():
        own = {k: v for k, v in clip(width, layers).items() if "position_ids" not in k}
        own |= {"text_projection.weight": (width, width)}
        found |= below(f"text_encoders.{name}.transformer.", own)
    encoder = t5(t5_layers) if t5_layers else {}
    return found | below("text_encoders.t5xxl.transformer.", encoder)
