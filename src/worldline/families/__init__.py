"""Every kind of model is known once this is imported: a file's `kind` finds its configuration among them."""

import worldline.tokenizers.cosmos
import worldline.tokenizers.fsq_video
import worldline.tokenizers.wan_vae
import worldline.worlds.st_transformer
import worldline.worlds.wan  # noqa: F401
